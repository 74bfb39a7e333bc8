"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from itertools import accumulate

from dsv2.engine.prompt_scores import PromptScores
from dsv2.engine.request import MAX_SEED, Limits, Request, RequestError, validate
from dsv2.engine.runner import Launch, Runner
from dsv2.engine.sampler import NOT_FINITE_TEXT, Choice, TokenLogprobs, sample
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.sequence import UNKNOWN, Sequence, Work
from dsv2.engine.shaping import needs_last_token
from dsv2.engine.speculate import Drafter
from dsv2.engine.structured import Pending, StructureCompiler, StructureError, follow

_COMPILE_WAIT = 0.01
"""Seconds to wait for a structure when nothing else is to do."""


@dataclass(frozen=True)
class TokenOutput:
    """What a step yielded for one request; with speculation there may be several.

    Attributes:
        request_id: whose it is.
        token: the new token, or None when the request failed.
        logprobs: where they were asked for.
        finish_reason: at the end ``stop``, ``length``, ``error``, or ``rejected`` for one that has
            lost its place in a full line to another tenant's; else None.
        error: what went wrong, with finish reason ``error`` or ``rejected``.
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
        overlapped_steps: steps that were started while the one before was being computed.
        captured_steps: sizes of a decode step that were captured for the GPU.
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
    overlapped_steps: int
    captured_steps: int


@dataclass
class _Flight:
    """A step that was started.

    Attributes:
        works: its plan.
        launch: what will come of it.
        is_foreseen: whether its sequences go on already as if it had been collected.
    """

    works: list[Work]
    launch: Launch
    is_foreseen: bool = False


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
        self._prompt_scores = PromptScores(runner)
        self._ended: list[TokenOutput] = []
        self._prompt_tokens = self._cached_tokens = self._drafted = self._accepted = 0
        self._flight: _Flight | None = None
        self._overlapped = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is under way."""
        return bool(self._sequences or self._ended)

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
            overlapped_steps=self._overlapped,
            captured_steps=self._runner.num_captures,
        )

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            RequestError: it does not pass the gate, or its id is in use.
            OverloadedError: too many are waiting, and no tenant has more in line than this one.
        """
        validate(request, self.limits)
        if request.id in self._sequences or any(
            one.request_id == request.id for one in self._ended
        ):
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
        gives_way = self._scheduler.add(sequence)
        self._sequences[request.id] = sequence
        if gives_way is not None:
            self._forget(gives_way)
            words = "the line is full, and others have less in it; try again later"
            name = gives_way.request.id
            self._ended.append(TokenOutput(name, None, None, "rejected", words))
        if structure is not None and self._structures is not None:
            self._compiling[request.id] = self._structures.submit(structure)

    def abort(self, request_id: str) -> None:
        """Stop a request and free its blocks; nothing more is said of it, even if it had ended."""
        self._ended = [one for one in self._ended if one.request_id != request_id]
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence)

    def abandon(self) -> list[str]:
        """After a step that raised: end every request that was in it; their ids.

        What it wrote to the cache is forgotten. Those in line are left there, but for one that lost
        its blocks while its next token was being chosen: that token is lost too.
        """
        self._flight = None
        halfway = [one for one in self._scheduler.waiting if one.tokens[-1] == UNKNOWN]
        sequences = [*self._scheduler.running, *halfway]
        for sequence in sequences:
            self._end(sequence, forget=True)
        return [sequence.request.id for sequence in sequences]

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._forget(sequence)
        self._scheduler.finish(sequence, forget=forget)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.id]
        self._prompt_scores.forget(sequence.request.id)
        pending = self._compiling.pop(sequence.request.id, None)
        if pending is not None:
            pending.cancel()
        if self._drafter is not None:
            self._drafter.forget(sequence)

    def step(self) -> list[TokenOutput]:
        """Compute one batch; empty when it held chunks of prompts alone, or nothing was to do.

        On a GPU the batch after it is under way when this returns, wherever the host need not know
        this one's tokens to prepare it.
        """
        outputs = self._step()
        ended, self._ended = self._ended, []
        return ended + outputs

    def _step(self) -> list[TokenOutput]:
        flight = self._flight
        if flight is not None and not any(self._lives(work.sequence) for work in flight.works):
            flight = self._flight = None
        if flight is None:
            if self._drafter is not None:
                self._drafter.draft([s for s in self._scheduler.running if s.remaining == 1])
            self._take_structures()
            flight = self._launch(None)
            if flight is None:
                if self._compiling and not self._ended:
                    next(iter(self._compiling.values())).wait(_COMPILE_WAIT)
                return []
        following = None
        if self._may_overlap(flight):
            # Should the next launch fail, this step's tokens are still there to be collected.
            self._flight = flight
            self._foresee(flight)
            self._take_structures()
            following = self._launch(flight)
            self._overlapped += following is not None
        self._flight = following
        return self._collect(flight)

    def _lives(self, sequence: Sequence) -> bool:
        """Whether a sequence of a step under way has not ended meanwhile."""
        return self._sequences.get(sequence.request.id) is sequence

    def _may_overlap(self, flight: _Flight) -> bool:
        """Whether the next step can be planned and started before this one's tokens are known."""
        return (
            self._runner.is_asynchronous
            and self._drafter is None
            and flight.launch.is_decode
            and not flight.is_foreseen
            and not any(needs_last_token(work.sequence) for work in flight.works)
        )

    def _foresee(self, flight: _Flight) -> None:
        """Go on as if every sequence had its token and no answer ended with it.

        Answers that reach their ``max_tokens`` with it are full, and are not planned again.
        """
        flight.is_foreseen = True
        for work in flight.works:
            if self._lives(work.sequence):
                self._scheduler.foresee(work)
                work.sequence.tokens.append(UNKNOWN)

    def _launch(self, before: _Flight | None) -> _Flight | None:
        """Plan a step and start it, perhaps behind one that computes; None without any work."""
        works = self._scheduler.plan()
        if not works:
            return None
        unknown, picks = {}, None
        if before is not None:
            picks = before.launch.picks
            unknown = {
                work.sequence: row
                for row, work in enumerate(before.works)
                if self._lives(work.sequence)
            }
        launch = self._runner.launch(works, self._ends, unknown, picks)
        if launch.hidden is not None:
            self._prompt_scores.add(works, launch.hidden)
        return _Flight(works, launch)

    def _take_structures(self) -> None:
        """Let sequences go whose structure is compiled; end those whose structure is bad."""
        for name, pending in list(self._compiling.items()):
            sequence = self._sequences[name]
            try:
                sequence.matcher = pending.result()
            except StructureError as error:
                self._end(sequence)
                self._ended.append(TokenOutput(name, None, None, "error", str(error)))
                continue
            if sequence.matcher is not None:
                sequence.waits = False
                del self._compiling[name]

    def _collect(self, flight: _Flight) -> list[TokenOutput]:
        """Take in a step's tokens, and those of drafts as long as the drafts are right."""
        outputs: list[TokenOutput] = []
        works, counts = flight.works, flight.launch.counts
        choices = iter(flight.launch.picks.choices())
        first = [next(choices) if count else None for count in counts]
        living = [self._lives(work.sequence) for work in works]
        known = [len(work.sequence.tokens) - flight.is_foreseen for work in works]
        drafts = [list(work.sequence.drafts) for work in works]
        reasons: dict[int, str] = {}
        going_on: list[int] = []
        for place in flight.launch.broken():
            if living[place]:
                problem = Choice(None, error=NOT_FINITE_TEXT)
                self._take(works[place].sequence, problem, place, outputs, reasons)
        for place, (work, choice) in enumerate(zip(works, first, strict=True)):
            if choice is None or not living[place]:
                continue
            if flight.is_foreseen:
                assert work.sequence.tokens.pop() == UNKNOWN
            self._take(work.sequence, choice, place, outputs, reasons)
            if place not in reasons and counts[place] > 1 and choice.token == drafts[place][0]:
                going_on.append(place)
        self._verify(flight, going_on, drafts, outputs, reasons)
        for place, work in enumerate(works):
            if not living[place]:
                continue
            sequence = work.sequence
            sequence.drafts = []
            if flight.is_foreseen:
                self._scheduler.settle(work)
            else:
                accepted = None
                if counts[place]:
                    self._drafted += counts[place] - 1
                    right = max(len(sequence.tokens) - known[place] - 1, 0)
                    self._accepted += right
                    accepted = known[place] + right - sequence.computed
                self._scheduler.advance(work, accepted)
            if place in reasons:
                self._end(sequence, forget=reasons[place] == "error")
        return outputs

    def _verify(
        self, flight: _Flight, open_works: list[int], drafts: list[list[int]],
        outputs: list[TokenOutput], reasons: dict[int, str],
    ) -> None:  # fmt: skip
        """Choose on behind drafts that were right; ``open_works`` are those of the first turn."""
        works, counts, logits = flight.works, flight.launch.counts, flight.launch.logits
        starts, turn = [0, *accumulate(counts)], 1
        while open_works:
            rows = [starts[place] + turn for place in open_works]
            sequences = [works[place].sequence for place in open_works]
            going_on = []
            for place, choice in zip(
                open_works, sample(logits[rows], sequences, self._ends), strict=True
            ):
                self._take(works[place].sequence, choice, place, outputs, reasons)
                more = place not in reasons and turn + 1 < counts[place]
                if more and choice.token == drafts[place][turn]:
                    going_on.append(place)
            open_works = going_on
            turn += 1

    def _take(
        self, sequence: Sequence, choice: Choice, place: int, outputs: list[TokenOutput],
        reasons: dict[int, str],
    ) -> None:  # fmt: skip
        """Take a token in and tell of it; note the reason to finish, if there is one."""
        problem = follow(sequence.matcher, choice.token)
        if problem is not None:
            choice = Choice(None, error=problem)
        reason = self._append(sequence, choice)
        outputs.append(self._output(sequence, choice, reason))
        if reason is not None:
            reasons[place] = reason

    def _append(self, sequence: Sequence, choice: Choice) -> str | None:
        """Take the token in; the reason to finish, if there is one."""
        params = sequence.request.params
        if choice.token is None:
            return "error"
        sequence.tokens.append(choice.token)
        if sequence.matcher is not None and sequence.matcher.is_complete:
            return "stop"
        ended = choice.token in self._ends and not params.ignore_eos
        if ended or choice.token in params.stop_token_ids:
            return "stop"
        return "length" if sequence.is_full else None

    def _output(self, sequence: Sequence, choice: Choice, reason: str | None) -> TokenOutput:
        request = sequence.request
        if choice.token is None or sequence.num_generated > 1:
            return TokenOutput(request.id, choice.token, choice.logprobs, reason, choice.error)
        self._prompt_tokens += sequence.num_prompt
        self._cached_tokens += sequence.cached_tokens
        return TokenOutput(
            request.id, choice.token, choice.logprobs, reason,
            cached_tokens=sequence.cached_tokens,
            prompt_logprobs=self._prompt_scores.of(request.id),
        )  # fmt: skip
