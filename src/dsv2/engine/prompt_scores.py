"""Logprobs of the tokens of prompts, as far as they are computed."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

import torch
from torch import Tensor

from dsv2.engine.runner import Runner
from dsv2.engine.sampler import TokenLogprobs, logprob_rows, read_logprobs
from dsv2.engine.sequence import Work
from dsv2.engine.transfer import to_device

_ROWS = 64
"""Positions whose logits are alive at once: 64 rows of 102,400 fp32 are 26 MB."""


class PromptScores:
    """Of the requests that ask for them, from the first chunk of a prompt to the first token.

    Args:
        runner: turns hidden states into logits.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._found: dict[str, list[TokenLogprobs | None]] = {}

    def of(self, request_id: str) -> tuple[TokenLogprobs | None, ...] | None:
        """One entry per token of a prompt, None for the first; None where nobody asked."""
        found = self._found.get(request_id)
        return None if found is None else tuple(found)

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._found.pop(request_id, None)

    def add(self, works: Ordered[Work], hidden: Tensor) -> None:
        """Score the tokens that a step's positions predict, some rows at a time.

        Args:
            works: the step's plan.
            hidden: of all its positions, one work after the other [T, D].
        """
        start = 0
        for work in works:
            sequence, first = work.sequence, start
            start += work.count
            count = sequence.request.params.prompt_logprobs
            if count is None or sequence.in_answer:
                continue
            if sequence.computed == 0:
                self._found[sequence.request.id] = [None]
            found = self._found[sequence.request.id]
            targets = sequence.request.prompt_ids[
                sequence.computed + 1 : sequence.computed + work.count + 1
            ]
            for place in range(0, len(targets), _ROWS):
                some = targets[place : place + _ROWS]
                logits = self._runner.logits(hidden[first + place : first + place + len(some)])
                tokens = to_device(some, torch.int64, logits.device)
                rows = logprob_rows(logits, tokens, count).tolist()
                found += [read_logprobs(row, count) for row in rows]
