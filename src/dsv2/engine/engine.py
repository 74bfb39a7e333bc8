"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from dsv2.engine.batch import build_batch
from dsv2.engine.request import MAX_SEED, Limits, Request, RequestError, validate
from dsv2.engine.runner import Runner
from dsv2.engine.sampler import Choice, TokenLogprobs, sample, token_logprobs
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.sequence import Sequence, Work
from dsv2.engine.speculate import Drafter
from dsv2.engine.structured import Pending, StructureCompiler, StructureError

_LOGPROB_ROWS = 64
"""Prompt positions whose logits are alive at once: 64 rows of 102,400 fp32 are 26 MB."""

_COMPILE_WAIT = 0.01
"""Seconds to wait for a structure when nothing else is to do."""


@dataclass(frozen=True)
class TokenOutput:
    """What a step yielded for one request; with speculation there may be several.

    Attributes:
        request_id: whose it is.
        token: the new token, or None when the request failed.
        logprobs: where they were asked for.
        finish_reason: ``stop``, ``length`` or ``error`` at the end, else None.
        error: what went wrong, with finish reason ``error``.
        cached_tokens: with the first token, how many of the prompt were found in the cache.
        prompt_logprobs: with the first token, where they were asked for: one entry per token of
            the prompt, None for the first.
    """

    request_id: str
    token: int | None
    logprobs: TokenLogprobs | None
    finish_reason: str | None
    error: str | None = None
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


@dataclass(frozen=True)
class EngineStats:
    """A look at the engine.

    Attributes:
        running: sequences under way.
        waiting: sequences in line.
        free_blocks: cache blocks that can be had.
        total_blocks: all cache blocks.
        preemptions: since the start.
        prompt_tokens: of admitted requests, since the start.
        cached_tokens: of those, found in the cache.
        drafted_tokens: guesses that were verified.
        accepted_tokens: of those, right.
        undrafted_steps: how often a sequence got no guesses because the draft model's cache was
            full, its context too short or its numbers not finite.
    """

    running: int
    waiting: int
    free_blocks: int
    total_blocks: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    undrafted_steps: int


class Engine:
    """Runs many requests at once.

    Args:
        runner: model and cache.
        scheduler: blocks and order.
        limits: what a request may ask.
        ends: the model's end-of-sequence tokens.
        drafter: guesses tokens for speculation, or None.
        structures: compiles the structures of answers, or None to refuse them.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        limits: Limits,
        ends: Collection[int],
        drafter: Drafter | None = None,
        structures: StructureCompiler | None = None,
    ) -> None:
        self._runner, self._scheduler = runner, scheduler
        self.limits = limits
        self._ends = frozenset(ends)
        self._drafter, self._structures = drafter, structures
        self._compiling: dict[str, Pending] = {}
        self._sequences: dict[str, Sequence] = {}
        self._prompt_logprobs: dict[str, list[TokenLogprobs | None]] = {}
        self._prompt_tokens = self._cached_tokens = self._drafted = self._accepted = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is under way."""
        return bool(self._sequences)

    @property
    def stats(self) -> EngineStats:
        """The present state and the totals since the start."""
        scheduler = self._scheduler
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            free_blocks=scheduler.pool.num_free,
            total_blocks=scheduler.pool.total,
            preemptions=scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            undrafted_steps=0 if self._drafter is None else self._drafter.num_undrafted,
        )

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            RequestError: it does not pass the gate, or its id is in use.
            OverloadedError: too many are waiting.
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
        structure = request.params.structure
        if structure is not None and self._structures is None:
            raise RequestError(
                "structure", "needs llguidance, which `pip install dsv2[serve]` brings"
            )
        sequence.waits = structure is not None
        self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        if structure is not None and self._structures is not None:
            self._compiling[request.id] = self._structures.submit(structure)

    def abort(self, request_id: str) -> None:
        """Stop a request and free its blocks; one that has ended is left alone."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        del self._sequences[sequence.request.id]
        self._prompt_logprobs.pop(sequence.request.id, None)
        self._compiling.pop(sequence.request.id, None)
        if self._drafter is not None:
            self._drafter.forget(sequence)
        self._scheduler.finish(sequence, forget=forget)

    def step(self) -> list[TokenOutput]:
        """Compute one batch; empty when it held chunks of prompts alone, or nothing was to do."""
        if self._drafter is not None:
            self._drafter.draft([s for s in self._scheduler.running if s.remaining == 1])
        failed = self._take_structures()
        works = self._scheduler.plan()
        if not works:
            if self._compiling and not failed:
                next(iter(self._compiling.values())).wait(_COMPILE_WAIT)
            return failed
        batch = build_batch(works, self._runner.device)
        hidden = self._runner.forward(batch)
        self._score_prompts(works, hidden)
        assert batch.logit_rows is not None
        logits = self._runner.logits(hidden[batch.logit_rows.long()])
        return failed + self._choose(works, logits)

    def _take_structures(self) -> list[TokenOutput]:
        """Let sequences go whose structure is compiled; end those whose structure is bad."""
        failed = []
        for name, pending in list(self._compiling.items()):
            sequence = self._sequences[name]
            try:
                sequence.matcher = pending.result()
            except StructureError as error:
                self._end(sequence)
                failed.append(TokenOutput(name, None, None, "error", str(error)))
                continue
            if sequence.matcher is not None:
                sequence.waits = False
                del self._compiling[name]
        return failed

    def _score_prompts(self, works: list[Work], hidden: Tensor) -> None:
        """Logprobs of the prompt tokens that a work's positions predict, some rows at a time."""
        start = 0
        for work in works:
            sequence, first = work.sequence, start
            start += work.count
            count = sequence.request.params.prompt_logprobs
            if count is None or sequence.in_answer:
                continue
            if sequence.computed == 0:
                self._prompt_logprobs[sequence.request.id] = [None]
            found = self._prompt_logprobs[sequence.request.id]
            targets = sequence.request.prompt_ids[
                sequence.computed + 1 : sequence.computed + work.count + 1
            ]
            for place in range(0, len(targets), _LOGPROB_ROWS):
                some = targets[place : place + _LOGPROB_ROWS]
                logits = self._runner.logits(hidden[first + place : first + place + len(some)])
                found += [
                    token_logprobs(row, token, count)
                    for row, token in zip(logits, some, strict=True)
                ]

    def _choose(self, works: list[Work], logits: Tensor) -> list[TokenOutput]:
        """Choose the next token of each sequence, and of its drafts as long as they are right."""
        outputs: list[TokenOutput] = []
        known = [len(work.sequence.tokens) for work in works]
        drafts = [list(work.sequence.drafts) for work in works]
        # Counted before any token is appended, which changes what a work's numbers mean.
        counts = [work.num_choices for work in works]
        starts = [0, *accumulate(counts)]
        reasons: dict[int, str] = {}
        open_works = [place for place, count in enumerate(counts) if count]
        turn = 0
        while open_works:
            rows = [starts[place] + turn for place in open_works]
            picked = logits if len(rows) == logits.shape[0] else logits[rows]
            choices = sample(picked, [works[place].sequence for place in open_works], self._ends)
            going_on = []
            for place, choice in zip(open_works, choices, strict=True):
                work = works[place]
                reason = self._append(work.sequence, choice)
                outputs.append(self._output(work.sequence, choice, reason))
                if reason is not None:
                    reasons[place] = reason
                elif turn + 1 < counts[place] and choice.token == drafts[place][turn]:
                    going_on.append(place)
            open_works = going_on
            turn += 1
        for place, work in enumerate(works):
            sequence = work.sequence
            sequence.drafts = []
            accepted = None
            if counts[place]:
                self._drafted += counts[place] - 1
                new = len(sequence.tokens) - known[place]
                self._accepted += max(new - 1, 0)
                accepted = known[place] + max(new - 1, 0) - sequence.computed
            self._scheduler.advance(work, accepted)
            if place in reasons:
                self._end(sequence, forget=reasons[place] == "error")
        return outputs

    def _append(self, sequence: Sequence, choice: Choice) -> str | None:
        """Take the token in; the reason to finish, if there is one."""
        params = sequence.request.params
        if choice.token is None:
            return "error"
        sequence.tokens.append(choice.token)
        if sequence.matcher is not None:
            sequence.matcher.take(choice.token)  # the sampler chose among what it allows
            if sequence.matcher.is_complete:
                return "stop"
        ended = choice.token in self._ends and not params.ignore_eos
        if ended or choice.token in params.stop_token_ids:
            return "stop"
        return "length" if sequence.num_generated >= params.max_tokens else None

    def _output(self, sequence: Sequence, choice: Choice, reason: str | None) -> TokenOutput:
        request = sequence.request
        if choice.token is None or sequence.num_generated > 1:
            return TokenOutput(request.id, choice.token, choice.logprobs, reason, choice.error)
        self._prompt_tokens += sequence.num_prompt
        self._cached_tokens += sequence.cached_tokens
        scored = self._prompt_logprobs.get(request.id)
        return TokenOutput(
            request.id, choice.token, choice.logprobs, reason,
            cached_tokens=sequence.cached_tokens,
            prompt_logprobs=None if scored is None else tuple(scored),
        )  # fmt: skip
