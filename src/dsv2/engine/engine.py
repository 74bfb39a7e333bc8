"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from dsv2.engine.batch import build_batch
from dsv2.engine.request import MAX_SEED, Limits, Request, validate
from dsv2.engine.runner import Runner
from dsv2.engine.sampler import Choice, TokenLogprobs, sample
from dsv2.engine.scheduler import Scheduler, Sequence


@dataclass(frozen=True)
class TokenOutput:
    """What a step yielded for one request.

    Attributes:
        request_id: whose it is.
        token: the new token, or None when the request failed.
        logprobs: where they were asked for.
        finish_reason: ``stop``, ``length`` or ``error`` at the end, else None.
    """

    request_id: str
    token: int | None
    logprobs: TokenLogprobs | None
    finish_reason: str | None


class Engine:
    """Runs many requests at once.

    Args:
        runner: model and cache.
        scheduler: blocks and order.
        limits: what a request may ask.
        ends: the model's end-of-sequence tokens.
    """

    def __init__(
        self, runner: Runner, scheduler: Scheduler, limits: Limits, ends: Collection[int]
    ) -> None:
        self._runner, self._scheduler = runner, scheduler
        self.limits = limits
        self._ends = frozenset(ends)
        self._sequences: dict[str, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request is under way."""
        return bool(self._sequences)

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            RequestError: it does not pass the gate, or its id is in use.
        """
        validate(request, self.limits)
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use")
        seed = request.params.seed
        sequence = Sequence(
            request,
            seed=secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
            tokens=list(request.prompt_ids),
        )
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence

    def abort(self, request_id: str) -> None:
        """Stop a request and free its blocks; one that has ended is left alone."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            self._scheduler.finish(sequence)

    def step(self) -> list[TokenOutput]:
        """Compute one batch; empty when it held chunks of prompts alone, or nothing was to do."""
        works = self._scheduler.plan()
        if not works:
            return []
        logits = self._runner.run(build_batch(works, self._runner.device))
        ready = [work.sequence for work in works if work.finishes]
        for work in works:
            work.sequence.computed += work.count
        choices = sample(logits, ready, self._ends) if ready else []
        return [
            self._take(sequence, choice) for sequence, choice in zip(ready, choices, strict=True)
        ]

    def _take(self, sequence: Sequence, choice: Choice) -> TokenOutput:
        request, reason = sequence.request, None
        if choice.token is None:
            reason = "error"
        else:
            sequence.tokens.append(choice.token)
            ended = choice.token in self._ends and not request.params.ignore_eos
            if ended or choice.token in request.params.stop_token_ids:
                reason = "stop"
            elif sequence.num_generated >= request.params.max_tokens:
                reason = "length"
        if reason is not None:
            self.abort(request.id)
        return TokenOutput(request.id, choice.token, choice.logprobs, reason)
