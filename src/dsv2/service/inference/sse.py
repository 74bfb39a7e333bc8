"""Answers on their way to the client: as server-sent events, or whole.

The status is not sent before there is something to send, so that what fails at once has its own
status. A request that waits gets a sign of life after a while, a comment or a blank line; from then
on the status is 200, and an error stands in the body alone.

An error in a stream is its last event, ``data: {"error": ...}``, and no ``data: [DONE]`` follows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dsv2.service.inference.answers import Usage, encode
from dsv2.service.inference.failures import as_api_error, queue_timeout
from dsv2.service.inference.generation import Choice, Generation, Piece
from dsv2.service.inference.pace import Pace
from dsv2.service.serving import Engine, Finish, Ticket
from dsv2.service.web.app import answer_of
from dsv2.service.web.error_shapes import body_at
from dsv2.service.web.errors import ApiError
from dsv2.service.web.http import CHUNK

DONE = b"data: [DONE]\n\n"
_SETTLING = 2.0
"""Seconds that the end of an answer waits for its settlement: the books may be locked longer."""


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def named_event(name: str, fields: dict[str, Any]) -> bytes:
    """A server-sent event with a name, which its data repeats as ``type``."""
    data = encode({"type": name} | fields)
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


class Writer(Protocol):
    """Turns pieces into bytes.

    Attributes:
        is_stream: whether every piece goes out at once, as an event.
    """

    is_stream: bool

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """What is to be sent now; nothing where the answer is sent whole."""
        ...

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """What is sent of choices that the engine could not finish, before the error."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """An error, as what a stream ends with or as the body of an answer that has begun."""
        ...

    def close(self, usage: Usage) -> bytes:
        """The end, or the whole answer."""
        ...


class WholeWriter:
    """What writers of answers that are sent whole have in common."""

    is_stream = False

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """Nothing: an answer that is sent whole is whole, or an error."""
        return b""

    def fail(self, error: ApiError) -> bytes:
        """The error alone."""
        return encode(error.body)


class AnswerWatch(Protocol):
    """Is told of every answer of the engine."""

    def first_token(self, model: str, seconds: float) -> None:
        """It came so many seconds after the request."""
        ...

    def answered(self, model: str, finish: str, tokens: int, seconds: float) -> None:
        """A request has ended, so many seconds after its first token, with so many in all."""
        ...


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
        keep_alive: without a word to the client, until a sign of life.
        in_line: until the first token, then 503.
        slow_reader: for a client to take what it is sent, then it is dropped.
    """

    keep_alive: float = 10.0
    in_line: float = 600.0
    slow_reader: float = 60.0


class GenerationResponse(Response):
    """Runs a request to its end and sends the answer.

    The ticket is taken when the answer begins to run and is closed whatever happens, before the
    last word of an answer is sent; a client that goes away ends the request in the engine within
    one step.

    Args:
        engine: computes.
        choices: what to compute.
        admit: takes the ticket, or raises :class:`ApiError`.
        writer: of the answer.
        patience: how long to wait for whom.
        prompt: what the body calls the prompt.
        names: the body's names of other fields of the engine's.
        model: its name, for ``watch``.
        watch: is told of the answer.
        pace: of all streams of the server.
    """

    def __init__(
        self,
        engine: Engine,
        choices: Sequence[Choice],
        admit: Callable[[], Awaitable[Ticket]],
        writer: Writer,
        patience: Patience,
        *,
        prompt: str,
        names: dict[str, str],
        model: str = "",
        watch: AnswerWatch | None = None,
        pace: Pace | None = None,
    ) -> None:
        super().__init__()
        self._engine, self._choices, self._admit = engine, choices, admit
        self._writer, self._patience = writer, patience
        self._prompt, self._names = prompt, names
        self._model, self._watch = model, watch
        self._pace = pace or Pace()
        self._first: float | None = None
        self._closing: asyncio.Task[None] | None = None
        self._scope: Scope = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        self._scope = scope
        try:
            ticket = await self._admit()
        except ApiError as error:
            await answer_of(error, scope)(scope, receive, send)
            return
        finish: Finish = "cancelled"
        try:
            generation = Generation(self._engine, self._choices, ticket)
            connection = _Connection(
                generation, receive, send, self._patience, dict(ticket.headers),
                _chunk_writer(scope) if self._writer.is_stream else None,
            )  # fmt: skip
            try:
                with self._pace.stream():
                    finish = await self._run(generation, connection, ticket)
            except asyncio.CancelledError:
                if not connection.is_dropped:
                    raise
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                finish = "dropped"
            finally:
                if self._watch is not None and self._first is not None:
                    tokens = generation.usage.completion_tokens
                    spent = connection.waited - self._first
                    self._watch.answered(self._model, finish, tokens, spent)
                connection.close()
                generation.close()
        finally:
            await (self._closing or ticket.close(finish))

    async def _run(self, generation: Generation, connection: _Connection, ticket: Ticket) -> Finish:
        """Everything up to the end of the body; why it has ended."""
        writer = self._writer

        def relay(pieces: list[Piece]) -> None:
            if pieces:
                connection.push(writer.write(pieces))
                generation.hold(self._pace.next(generation.now, is_stream=True))

        content_type = "text/event-stream; charset=utf-8" if writer.is_stream else None
        connection.headers["content-type"] = content_type or "application/json"
        connection.sign_of_life = b": keep-alive\n\n" if writer.is_stream else b"\n"
        try:
            while not generation.is_over:
                pieces = await generation.next()
                if self._first is None and generation.has_begun:
                    self._first = connection.waited
                    if self._watch is not None:
                        self._watch.first_token(self._model, self._first)
                if connection.is_gone:
                    return "cancelled"
                if not generation.has_begun and connection.waited > self._patience.in_line:
                    raise queue_timeout(self._patience.in_line)
                data = writer.write(pieces) if pieces else connection.overdue()
                if data or connection.unsent:
                    await connection.send(data)
                if pieces:
                    until = self._pace.next(generation.now, is_stream=writer.is_stream)
                    generation.hold(until)
                    generation.relay = relay if connection.can_push else None
            data = writer.close(generation.usage)
        except Exception as error:  # CancelledError is none
            problem = as_api_error(error, prompt=self._prompt, names=self._names)
            await self._fail(problem, generation, connection)
            return "error"
        if not writer.is_stream:
            ticket.keep(200, connection.headers["content-type"], data)
        # First: what the client is told that it has taken is paid, and its answer kept for its key,
        # also where this process dies the next moment.
        self._closing = asyncio.create_task(ticket.close(generation.finish))
        await asyncio.wait((self._closing,), timeout=_SETTLING)
        await connection.send(data, is_last=True)
        return generation.finish

    async def _fail(self, error: ApiError, generation: Generation, connection: _Connection) -> None:
        if not connection.has_started:
            connection.headers |= {name.lower(): value for name, value in error.headers.items()}
            connection.headers["content-type"] = "application/json"
            body = encode(body_at(self._scope, error))
            await connection.send(body, is_last=True, status=error.status)
        elif self._writer.is_stream:
            left = [choice for choice in generation.choices if choice.finish is None]
            data = self._writer.abandon(left) if error.status == 503 else b""
            await connection.send(data + self._writer.fail(error), is_last=True)
        else:
            await connection.send(self._writer.fail(error), is_last=True)


def _chunk_writer(scope: Scope) -> Callable[[bytes], bool] | None:
    """The server's way to write a part of a body at once, where it has one."""
    found: Callable[[bytes], bool] | None = scope.get("extensions", {}).get(CHUNK, {}).get("write")
    return found


class _Connection:
    """One client: what it is sent, whether it is there, and whether it reads."""

    def __init__(
        self, generation: Generation, receive: Receive, send: Send, patience: Patience,
        headers: dict[str, str], write: Callable[[bytes], bool] | None = None,
    ) -> None:  # fmt: skip
        self._generation, self._receive, self._send = generation, receive, send
        self._write = write
        self.unsent = b""
        self._patience = patience
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.sign_of_life = b""
        self.has_started = self.is_gone = self.is_dropped = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._begun = self._spoken = self._loop.time()
        self._sending_since: float | None = None
        shortest = min(patience.keep_alive, patience.in_line, patience.slow_reader)
        self._period = min(1.0, shortest / 4)
        self._timer = self._loop.call_later(self._period, self._tick)
        self._watcher = asyncio.create_task(self._watch())

    @property
    def waited(self) -> float:
        """Seconds since the request began."""
        return self._loop.time() - self._begun

    def overdue(self) -> bytes:
        """A sign of life, when it is time for one."""
        quiet = self._loop.time() - self._spoken
        return self.sign_of_life if quiet >= self._patience.keep_alive else b""

    @property
    def can_push(self) -> bool:
        """Whether :meth:`push` may be called."""
        return self._write is not None and self.has_started

    def push(self, data: bytes) -> None:
        """Send a part of the body past all that stands between; if it must wait, keep it.

        What stands there has seen the status, and minds no parts that follow it.
        """
        assert self._write is not None
        if not data:
            return
        if self._write(data):
            self._spoken = self._loop.time()
        else:
            self.unsent += data
            self._generation.nudge()

    async def send(self, data: bytes, *, is_last: bool = False, status: int = 200) -> None:
        """Send a part of the body, and the status before the first."""
        self._sending_since = self._loop.time()
        data, self.unsent = self.unsent + data, b""
        if not self.has_started:
            self.has_started = True
            if is_last:
                self.headers["content-length"] = str(len(data))
            else:
                # What stands between us and the client must not gather the events.
                self.headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
            headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
            await self._pass({"type": "http.response.start", "status": status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._sending_since = None
        self._spoken = self._loop.time()

    async def _pass(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.is_gone = True
            self._generation.nudge()

    def close(self) -> None:
        """Let go."""
        self._timer.cancel()
        self._watcher.cancel()

    async def _watch(self) -> None:
        with contextlib.suppress(Exception):  # whatever is wrong with the connection, it is gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
        self.is_gone = True
        self._generation.nudge()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period, self._tick)
        now = self._loop.time()
        if self._sending_since is not None:
            if now - self._sending_since > self._patience.slow_reader and self._task is not None:
                self.is_dropped = True
                self._task.cancel()
        elif now - self._spoken >= self._patience.keep_alive or not self._generation.has_begun:
            self._generation.nudge()
