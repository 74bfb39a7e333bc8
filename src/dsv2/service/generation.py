"""Choices of one request under way: engine requests in, pieces of text out, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from dsv2.engine.request import Request
from dsv2.service.answers import CallDelta, Usage, usage_of
from dsv2.service.serving import Engine, EngineGoneError, Ticket
from dsv2.service.tool_stream import AnswerReader
from dsv2.service.wire import Logprobs, Tokens
from dsv2.shapes import BLOCK_SIZE

MAX_INBOX = 256
"""Messages of the engine that wait for a slow client before no more are taken from it."""


class AnswerError(RuntimeError):
    """The engine has ended a request without an answer; ``output`` says why."""

    def __init__(self, choice: Choice, output: Tokens) -> None:
        super().__init__(output.error or output.finish_reason)
        self.choice, self.output = choice, output


@dataclass
class Piece:
    """What one choice has got since its last piece.

    Attributes:
        choice: whose.
        is_first: whether it is the choice's first.
        tokens: new ones, up to the one that completed a stop string.
        text: that may be shown.
        logprobs: one per token, where they were asked for.
        calls: pieces of tool calls.
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
    prompt_logprobs: list[Logprobs | None] | None = None
    cached_tokens: int = 0
    finish: str | None = None


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
        self.inbox: deque[Tokens] = deque()
        self.failure: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.has_answered = asyncio.Event()
        self.has_room = asyncio.Event()
        self.has_begun = False
        self.finish: str | None = None


class Generation:
    """Runs the choices of a request.

    One task per choice takes from the engine what there is; :meth:`next` hands it on, however much
    has gathered, so that a slow reader gets larger pieces and not more of them. Whoever starts it
    must :meth:`close` it: that cancels what is still under way in the engine.

    Args:
        engine: computes.
        choices: in order of their index.
        ticket: is told what has been produced.
    """

    def __init__(self, engine: Engine, choices: Sequence[Choice], ticket: Ticket) -> None:
        self.choices = list(choices)
        self._engine, self._ticket = engine, ticket
        self._ready: deque[Choice] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._open = len(self.choices)
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        for choice in self.choices:
            choice.task = asyncio.create_task(self._pump(choice))

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
    def finish(self) -> str:
        """Why the request has ended, in one word for the books."""
        reasons = {choice.finish for choice in self.choices}
        for reason in ("length", "tool_calls"):
            if reason in reasons:
                return reason
        return "stop"

    async def next(self) -> list[Piece]:
        """Wait for something and take it all; nothing after :meth:`nudge`.

        Raises:
            AnswerError: the engine ended a choice without an answer.
            Exception: whatever the engine's stream has raised.
        """
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        pieces: list[Piece] = []
        while self._ready:
            choice = self._ready.popleft()
            if choice.finish is None and choice.inbox:
                piece = self._take(choice)
                if piece.tokens or piece.finish or (piece.is_first and choice.has_begun):
                    pieces.append(piece)
            if choice.finish is None and choice.failure is not None and not choice.inbox:
                if not pieces:
                    raise choice.failure
                self._ready.appendleft(choice)  # raised once these pieces are out
                break
        if pieces:
            self._ticket.note(self._prompt_tokens, self._cached_tokens, self._completion_tokens)
        return pieces

    def nudge(self) -> None:
        """Let :meth:`next` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def close(self) -> None:
        """Cancel what is under way, and wait until the engine has been told."""
        tasks = [choice.task for choice in self.choices if choice.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, choice: Choice) -> None:
        try:
            if choice.leader is not None:
                await choice.leader.has_answered.wait()
            async with aclosing(self._engine.stream(choice.request)) as stream:
                async for output in stream:
                    choice.has_answered.set()
                    choice.inbox.append(output)
                    self._wake(choice)
                    if output.finish_reason is not None:
                        return
                    if len(choice.inbox) >= MAX_INBOX:
                        choice.has_room.clear()
                        await choice.has_room.wait()
            raise EngineGoneError("the engine has ended an answer without a word")
        except Exception as error:  # for the one who waits in next()
            choice.failure = error
            self._wake(choice)
        finally:
            choice.has_answered.set()

    def _wake(self, choice: Choice) -> None:
        if not self._ready or self._ready[-1] is not choice:
            self._ready.append(choice)
        self.nudge()

    def _take(self, choice: Choice) -> Piece:
        """Everything that waits in a choice's inbox as one piece."""
        piece = Piece(choice, is_first=not choice.has_begun)
        while choice.inbox and piece.finish is None:
            output = choice.inbox.popleft()
            if output.finish_reason in ("error", "rejected"):
                choice.failure = AnswerError(choice, output)
                break
            self._read(choice, output, piece)
        choice.has_room.set()
        self._completion_tokens += len(piece.tokens)
        if piece.finish is not None:
            choice.finish = piece.finish
            choice.inbox.clear()
            self._open -= 1
        return piece

    def _read(self, choice: Choice, output: Tokens, piece: Piece) -> None:
        if not choice.has_begun:
            self._begin(choice, output, piece)
        if choice.is_silent:
            piece.finish = output.finish_reason
            return
        reader, is_over = choice.reader, False
        for token in output.tokens:
            told = reader.push(token)
            piece.tokens.append(token)
            piece.text += told.text
            if told.calls:
                piece.calls += told.calls
            if told.is_over:
                is_over = True
                break
        if output.logprobs is not None:
            piece.logprobs += output.logprobs[: len(piece.tokens) - len(piece.logprobs)]
        reason = "stop" if is_over else output.finish_reason
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
            assert choice.task is not None
            choice.task.cancel()  # the engine goes no further
        else:
            told = choice.reader.finish()
            piece.text += told.text
            piece.calls += told.calls
        piece.finish = "tool_calls" if choice.reader.num_calls and reason == "stop" else reason
