"""A client that asks for streams and notes when every piece of them comes."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from dsv2.service.load.connection import Address, Connection, LostError, ProtocolError
from dsv2.service.load.events import (
    DONE,
    EventReader,
    MalformedError,
    error_message,
    read_chunk,
)
from dsv2.service.load.record import Record

GOOD_ENDS = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})
"""Finish reasons of an answer that is whole; others mean that the server gave up."""

NO_CONNECTION = "no connection"
"""Failure of a request that never reached the server."""

_MAX_IDLE_SECONDS = 2.0
"""Servers close what is idle longer, and a request sent at that moment would count as lost."""

_MAX_ERROR_BYTES = 65_536
_MAX_MESSAGE = 300

_PATHS = {"completions": "completions", "chat": "chat/completions"}


class ServerError(RuntimeError):
    """The server cannot be measured: it is not there or does not take what it is asked.

    Args:
        message: for people.
        status: of HTTP, where it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Ask:
    """What every request has but for its prompt.

    Attributes:
        model: its name.
        endpoint: ``completions`` or ``chat``.
        max_tokens: most tokens of an answer.
        ignore_eos: ask for all of them; a parameter that servers of OpenAI's own do not know.
        temperature: 0 for greedy answers.
    """

    model: str
    endpoint: str = "completions"
    max_tokens: int = 128
    ignore_eos: bool = True
    temperature: float = 0.0

    def body(self, prompt: dict[str, Any]) -> bytes:
        """A request's body; ``prompt`` holds ``prompt`` or ``messages``."""
        fields: dict[str, Any] = {
            "model": self.model,
            **prompt,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True
        return msgspec.json.encode(fields)


class Client:
    """Asks one server. Connections that are free are used again, else new ones are opened.

    Args:
        url: of the server, with or without ``/v1``.
        key: sent as a bearer token; never shown.
        timeout: most seconds of one request, from sending to its end.

    Raises:
        AddressError: the URL is not one of a server.
        ValueError: the key cannot be sent.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 600.0) -> None:
        self.address = Address.parse(url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("the key has characters that no key has")
        self._key, self._timeout = key, timeout
        self._context = ssl.create_default_context() if self.address.is_secure else None
        self._idle: list[Connection] = []
        head = f"Host: {self.address.authority}\r\nUser-Agent: dsv2-bench\r\n"
        if key:
            head += f"Authorization: Bearer {key}\r\n"
        self._head = head + "Accept-Encoding: identity\r\n"

    async def ask(self, endpoint: str, body: bytes, number: int, due: float) -> Record:
        """Send a request for a stream and note what comes; a failure is noted, not raised."""
        record = Record(number, due)
        answer = _Answer(record)
        request = self._request("POST", _PATHS[endpoint], body, "text/event-stream")
        record.started = time.perf_counter()
        try:
            await self._exchange(request, answer)
        except TimeoutError:
            record.failure = "timeout"
            record.message = f"no end within {self._timeout:g} s"
        except (MalformedError, ProtocolError) as error:
            record.failure, record.message = "malformed", str(error)
        except LostError as error:
            if not answer.is_whole:
                kind = "no answer" if record.headers is None else "cut off"
                record.failure, record.message = kind, str(error)
        except OSError as error:
            record.failure, record.message = NO_CONNECTION, str(error)
        record.ended = time.perf_counter()
        answer.settle()
        if record.message is not None:
            record.message = self._shown(record.message)
        return record

    async def models(self) -> list[str]:
        """Names of the models that the server lists.

        Raises:
            ServerError: it is not there, refuses, or has no such list.
        """
        page = _Page()
        where = f"{self.address.authority}{self.address.base}/models"
        try:
            await self._exchange(self._request("GET", "models", b"", "application/json"), page)
            if page.status != 200:
                message = self._shown(error_message(bytes(page.body)))
                raise ServerError(f"{where}: HTTP {page.status}: {message}", page.status)
            listed = msgspec.json.decode(bytes(page.body), type=_Listing).data
        except TimeoutError as error:
            raise ServerError(f"{where} does not answer") from error
        except OSError as error:
            raise ServerError(f"{where} cannot be reached: {error}") from error
        except (ProtocolError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ServerError(f"{where} is no list of models: {error}") from error
        return [one.id for one in listed]

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, sink: _Answer | _Page) -> None:
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connect()
                await connection.exchange(request, sink)
        finally:
            if connection is not None:
                if connection.is_reusable:
                    self._idle.append(connection)
                else:
                    connection.close()

    async def _connect(self) -> Connection:
        while self._idle:
            # The one used last: the others grow old and are given up.
            connection = self._idle.pop()
            fresh = time.perf_counter() - connection.idle_since < _MAX_IDLE_SECONDS
            if fresh and connection.is_reusable:
                return connection
            connection.close()
        return await Connection.open(self.address, self._context)

    def _request(self, method: str, path: str, body: bytes, accept: str) -> bytes:
        head = f"{method} {self.address.base}/{path} HTTP/1.1\r\n{self._head}Accept: {accept}\r\n"
        if method == "POST":
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return head.encode("ascii") + b"\r\n" + body

    def _shown(self, text: str) -> str:
        """Fit to be printed: short, on one line, and without the key should a server repeat it."""
        if self._key:
            text = text.replace(self._key, "***")
        clean = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * _MAX_MESSAGE])
        return " ".join(clean.split())[:_MAX_MESSAGE]


class _Answer:
    """Reads a stream of events into a record."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._events = EventReader()
        self._refusal = bytearray()
        self._end: float | None = None
        self._is_done = False

    @property
    def is_whole(self) -> bool:
        """Whether the answer said that it has ended."""
        return self._is_done and self._record.finish_reason is not None

    def begin(self, status: int, headers: dict[str, str], now: float) -> None:
        record = self._record
        record.headers, record.status = now, status
        record.request_id = headers.get("x-request-id")
        kind = headers.get("content-type", "")
        if status == 200 and not kind.startswith("text/event-stream"):
            raise MalformedError(f"the answer is {kind or 'of no type'!r:.60}, not a stream")

    def feed(self, piece: bytes, now: float) -> None:
        if self._record.status != 200:
            self._refusal += piece[: _MAX_ERROR_BYTES - len(self._refusal)]
            return
        for data in self._events.feed(piece):
            if data == DONE:
                self._is_done = True
            else:
                self._take(data, now)

    def _take(self, data: bytes, now: float) -> None:
        record, chunk = self._record, read_chunk(data)
        if (failure := chunk.failure) is not None:
            record.failure, record.message = "error in stream", failure
        has_text, told = False, 0
        for choice in chunk.choices:
            has_text = has_text or choice.has_text
            told += len(choice.token_ids or ())
            if choice.finish_reason is not None:
                record.finish_reason, self._end = choice.finish_reason, now
        if (usage := chunk.usage) is not None:
            told = usage.completion_tokens - record.completion_tokens
            record.is_counted = True
            record.prompt_tokens = usage.prompt_tokens
            record.completion_tokens = usage.completion_tokens
            record.cached_tokens = usage.cached_tokens
        if has_text:
            if record.first is None:
                record.first = now
            record.times.append(now)
            record.tokens.append(max(told, 0))

    def settle(self) -> None:
        """Once nothing more comes: what it was."""
        record = self._record
        if not record.is_counted:
            record.completion_tokens = sum(record.tokens) or len(record.times)
        if record.first is None and record.completion_tokens:
            record.first = self._end
        if record.failure is not None:
            return
        if record.status != 200:
            record.failure = f"HTTP {record.status}"
            record.message = error_message(bytes(self._refusal))
        elif record.finish_reason is None:
            record.failure, record.message = "cut off", "the stream ended without a finish_reason"
        elif record.finish_reason not in GOOD_ENDS:
            record.failure = f"finished by {record.finish_reason!r:.40}"
            record.message = "the server gave the answer up"


class _Page:
    """Reads a small answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()

    def begin(self, status: int, headers: dict[str, str], now: float) -> None:
        self.status = status

    def feed(self, piece: bytes, now: float) -> None:
        self.body += piece
        if len(self.body) > 1 << 22:
            raise ProtocolError("the list is longer than 4 MiB")


class _Model(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[_Model]
