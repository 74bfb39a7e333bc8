"""Choices of one request under way: engine requests in, pieces of text out, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dsv2.engine.request import Request
from dsv2.service.inference.answers import CallDelta, Usage, usage_of
from dsv2.service.inference.tool_stream import AnswerReader, Told
from dsv2.service.serving import Canceller, Engine, Finish, Ticket
from dsv2.service.worker.wire import Logprobs, Tokens, join
from dsv2.shapes import BLOCK_SIZE


class AnswerError(RuntimeError):
    """The engine has ended a request without an answer; ``output`` says why."""

    def __init__(self, choice: Choice, output: Tokens) -> None:
        super().__init__(output.error or output.finish_reason)
        self.choice, self.output = choice, output


@dataclass(slots=True)
class Piece:
    """What one choice has got since its last piece.

    Attributes:
        choice: whose.
        is_first: whether it is the choice's first.
        tokens: new ones, up to the one that completed a stop string.
        text: that may be shown.
        logprobs: one per token, where they were asked for.
        calls: pieces of tool calls, behind the text.
        late: text behind the first of these calls.
        prompt_logprobs: with the first piece, where they were asked for.
        cached_tokens: of the prompt, with the first piece.
        finish: why the choice has ended, with its last piece.
    """

    choice: Choice
    is_first: bool
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Logprobs] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    late: str = ""
    prompt_logprobs: list[Logprobs | None] | None = None
    cached_tokens: int = 0
    finish: str | None = None

    @property
    def words(self) -> str:
        """All text, wherever it stands."""
        return self.text + self.late

    def add(self, told: Told) -> None:
        """What tokens have told, in its order."""
        if self.calls:
            self.late += told.text
        else:
            self.text += told.text
        self.calls += told.calls


class Choice:
    """One answer to one prompt.

    Args:
        index: among the request's choices.
        request: to the engine.
        reader: of its tokens.
        leader: the choice of the same prompt that goes first, so that the prompt is computed once
            and the others find it in the prefix cache; None for that one itself.
        is_silent: the prompt alone is wanted, the one token that must be generated is not.
    """

    def __init__(
        self, index: int, request: Request, reader: AnswerReader, leader: Choice | None = None,
        *, is_silent: bool = False,
    ) -> None:  # fmt: skip
        self.index, self.request, self.reader, self.leader = index, request, reader, leader
        self.is_silent = is_silent
        self.waiting: Tokens | None = None
        self.failure: Exception | None = None
        self.is_ready = self.has_begun = False
        self.finish: str | None = None
        self.wake: Callable[[Choice], None] = _ignore
        self.cancel: Canceller = _do_nothing

    @property
    def is_urgent(self) -> bool:
        """Whether what waits is the first or the last of it."""
        if self.failure is not None or not self.has_begun:
            return True
        return self.waiting is not None and self.waiting.finish_reason is not None

    def put(self, output: Tokens) -> None:
        """As a :class:`dsv2.service.serving.Sink`; what was not read yet is joined to one."""
        self.waiting = output if self.waiting is None else join(self.waiting, output)
        self.wake(self)

    def fail(self, error: Exception) -> None:
        """As a :class:`dsv2.service.serving.Sink`."""
        self.failure = error
        self.wake(self)


def _ignore(choice: Choice) -> None:
    """Nobody waits for it."""


def _do_nothing() -> None:
    """There is nothing to cancel."""


class Generation:
    """Runs the choices of a request.

    :meth:`next` hands on what has come, however much, so that a slow reader gets larger pieces and
    not more of them. Whoever starts it must :meth:`close` it: that cancels what is still under way
    in the engine.

    With a ``relay``, pieces in the middle of choices are given to it as they come, while somebody
    waits in :meth:`next`, which then goes on waiting: to wake a task for a token costs more than
    all that is done with it.

    Args:
        engine: computes.
        choices: in order of their index.
        ticket: is told what has been produced.

    Attributes:
        relay: see above; what it raises, :meth:`next` raises.
    """

    def __init__(self, engine: Engine, choices: Sequence[Choice], ticket: Ticket) -> None:
        self.choices = list(choices)
        self._engine, self._ticket = engine, ticket
        self._ready: deque[Choice] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._open = len(self.choices)
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._held_until = 0.0
        self._may_end = any(choice.reader.may_end for choice in self.choices)
        self._timer: asyncio.TimerHandle | None = None
        self._followers: dict[Choice, list[Choice]] = {}
        self.relay: Callable[[list[Piece]], None] | None = None
        self._failure: Exception | None = None
        for choice in self.choices:
            choice.wake = self._wake
            if choice.leader is not None:
                self._followers.setdefault(choice.leader, []).append(choice)
        for choice in self.choices:
            if choice.leader is None:
                self._start(choice)

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended."""
        return self._open == 0

    @property
    def has_begun(self) -> bool:
        """Whether anything was produced."""
        return self._prompt_tokens > 0

    @property
    def usage(self) -> Usage:
        """Of all choices so far; a prompt counts once, however many answers it gets."""
        return usage_of(self._prompt_tokens, self._cached_tokens, self._completion_tokens)

    @property
    def finish(self) -> Finish:
        """Why the request has ended, in one word for the books."""
        reasons = {choice.finish for choice in self.choices}
        if "length" in reasons:
            return "length"
        return "tool_calls" if "tool_calls" in reasons else "stop"

    async def next(self) -> list[Piece]:
        """Wait for something and take it all; nothing after :meth:`nudge`.

        Raises:
            AnswerError: the engine ended a choice without an answer.
            Exception: whatever the engine's stream has raised.
        """
        if not self._may_go():
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            raise self._failure
        return self._take_all()

    def _take_all(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._ready:
            choice = self._ready.popleft()
            choice.is_ready = False
            if choice.finish is None and choice.waiting is not None:
                piece = self._take(choice, choice.waiting)
                if piece.tokens or piece.finish or (piece.is_first and choice.has_begun):
                    pieces.append(piece)
            if choice.finish is None and choice.failure is not None:
                if not pieces:
                    raise choice.failure
                choice.is_ready = True
                self._ready.appendleft(choice)  # raised once these pieces are out
                break
        if pieces:
            self._ticket.note(self._prompt_tokens, self._cached_tokens, self._completion_tokens)
        return pieces

    def nudge(self) -> None:
        """Let :meth:`next` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def now(self) -> float:
        """The clock of :meth:`hold`, in seconds."""
        return self._loop.time()

    def hold(self, until: float) -> None:
        """Let :meth:`next` gather up to then, but for the first and the last of a choice.

        Where what is read may end an answer, it is read at once: the engine would go on meanwhile.
        """
        if not self._may_end:
            self._held_until = until

    def close(self) -> None:
        """Cancel what is under way."""
        self._followers.clear()
        if self._timer is not None:
            self._timer.cancel()
        for choice in self.choices:
            choice.wake = _ignore
            choice.cancel()

    def _start(self, choice: Choice) -> None:
        try:
            choice.cancel = self._engine.submit(choice.request, choice)
        except Exception as error:  # for the one who waits in next()
            choice.fail(error)

    def _wake(self, choice: Choice) -> None:
        if self._followers:
            for follower in self._followers.pop(choice, ()):
                self._start(follower)
        if not choice.is_ready:
            choice.is_ready = True
            self._ready.append(choice)
        if self._timer is not None and not choice.is_urgent:
            return  # it goes out with what waits already
        if self._waiter is not None and self._may_go():
            self._go()

    def _may_go(self) -> bool:
        """Whether there is something that need not or must not wait any longer."""
        if not self._ready:
            return False
        if self._loop.time() >= self._held_until or self._is_urgent():
            return True
        if self._timer is None:
            self._timer = self._loop.call_at(self._held_until, self._release)
        return False

    def _is_urgent(self) -> bool:
        # A loop, not any(): this runs for every token of every stream.
        for choice in self._ready:  # noqa: SIM110
            if choice.is_urgent:
                return True
        return False

    def _release(self) -> None:
        self._timer = None
        if self._ready and self._waiter is not None:
            self._go()

    def _go(self) -> None:
        """Give pieces to the relay, or let :meth:`next` return them."""
        if self.relay is None or self._is_urgent():
            self.nudge()
            return
        try:
            self.relay(self._take_all())
        except Exception as error:  # it must not reach the engine's other requests
            self._failure = error
        if self._failure is not None or self.is_over:
            self.nudge()

    def _take(self, choice: Choice, output: Tokens) -> Piece:
        """What waits of a choice as one piece."""
        piece = Piece(choice, is_first=not choice.has_begun)
        choice.waiting = None
        if output.finish_reason in ("error", "rejected"):
            choice.failure = AnswerError(choice, output)
        if choice.failure is None or output.tokens:
            self._read(choice, output, piece)
        self._completion_tokens += len(piece.tokens)
        if piece.finish is not None:
            choice.finish = piece.finish
            self._open -= 1
        return piece

    def _read(self, choice: Choice, output: Tokens, piece: Piece) -> None:
        if not choice.has_begun:
            self._begin(choice, output, piece)
        if choice.is_silent:
            piece.finish = output.finish_reason
            return
        reader, is_over = choice.reader, False
        if reader.is_plain:
            piece.tokens = output.tokens
            piece.text += reader.text_of(output.tokens)
        else:
            for token in output.tokens:
                told = reader.push(token)
                piece.tokens.append(token)
                piece.add(told)
                if told.is_over:
                    is_over = True
                    break
        if output.logprobs is not None:
            piece.logprobs += output.logprobs[: len(piece.tokens) - len(piece.logprobs)]
        reason = output.finish_reason if choice.failure is None else None
        if is_over:
            reason = "stop"
        if reason is not None:
            self._end(choice, piece, reason, is_over=is_over)

    def _begin(self, choice: Choice, output: Tokens, piece: Piece) -> None:
        choice.has_begun = True
        piece.prompt_logprobs = output.prompt_logprobs
        if choice.leader is None:
            self._prompt_tokens += len(choice.request.prompt_ids)
            piece.cached_tokens = output.cached_tokens // BLOCK_SIZE * BLOCK_SIZE
            self._cached_tokens += piece.cached_tokens

    def _end(self, choice: Choice, piece: Piece, reason: str, *, is_over: bool) -> None:
        if is_over:
            choice.cancel()  # the engine goes no further
        else:
            piece.add(choice.reader.finish())
        piece.finish = "tool_calls" if choice.reader.num_calls and reason == "stop" else reason
