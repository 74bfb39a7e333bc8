"""HTTP/1.1 as cheap as Python allows: one connection, one exchange at a time.

A protocol's callback per read of the socket, with httptools' parser in C, wakes no task until the
answer is whole. Where a server is measured the client must not be what is slow: with 64 streams
this took 25 µs of CPU per event, most of it the system's for the socket, and httpx 130.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools


class AddressError(ValueError):
    """The address is not one of a server."""


class LostError(ConnectionError):
    """The connection ended before the answer did."""


class ProtocolError(ValueError):
    """What came is not HTTP."""


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        host: a name, or an IP address without brackets.
        port: of it.
        is_secure: whether it is reached by TLS.
        authority: what ``Host`` says.
        base: path of the API, ``/v1`` at its end.
    """

    host: str
    port: int
    is_secure: bool
    authority: str
    base: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """From a URL; ``/v1`` is added where it does not end with it.

        Raises:
            AddressError: it is no URL of http or https, or says more than where.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise AddressError(f"url {url!r:.200}: {error}") from error
        bad = not url.isascii() or not url.isprintable() or " " in url
        if parts.scheme not in ("http", "https") or not parts.hostname or bad:
            raise AddressError(f"url {url!r:.200}, allowed is http://HOST:PORT or https://HOST")
        if parts.username is not None or parts.query or parts.fragment:
            raise AddressError("url has a user, a query or a fragment, allowed are host and path")
        is_secure = parts.scheme == "https"
        base = parts.path.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        port = port if port is not None else (443 if is_secure else 80)
        return cls(parts.hostname, port, is_secure, parts.netloc, base)


class Sink(Protocol):
    """Takes an answer as it comes; times are seconds of :func:`time.perf_counter`."""

    def begin(self, status: int, headers: dict[str, str], now: float) -> None:
        """The head; names are in lower case."""
        ...

    def feed(self, piece: bytes, now: float) -> None:
        """A piece of the body. What it raises ends the exchange."""
        ...


class Connection(asyncio.Protocol):
    """One connection.

    Attributes:
        is_reusable: whether another exchange may follow the last.
        idle_since: when the last one ended.
    """

    def __init__(self) -> None:
        self.is_reusable = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._has_head = self._is_begun = self._is_whole = self._may_go_on = False

    @classmethod
    async def open(cls, address: Address, context: ssl.SSLContext | None) -> Connection:
        """Connect.

        Raises:
            OSError: there is no way to the server, or its certificate is not good.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, address.host, address.port, ssl=context)
        return connection

    async def exchange(self, request: bytes, sink: Sink) -> None:
        """Send a request and wait for the end of its answer.

        Raises:
            LostError: the connection ended before.
            ProtocolError: the answer is not HTTP.
            Exception: whatever ``sink`` raised.
        """
        if self._transport is None:
            raise LostError("the connection is closed")
        self.is_reusable = False
        self._sink, self._headers, self._pieces = sink, {}, []
        self._has_head = self._is_begun = self._is_whole = self._may_go_on = False
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        finally:
            self._done = self._sink = None
            self.idle_since = time.perf_counter()

    def close(self) -> None:
        """Hang up at once."""
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        now, done = time.perf_counter(), self._done
        if done is None or done.done() or self._sink is None:
            self.is_reusable = False  # It speaks out of turn.
            return
        try:
            self._parser.feed_data(data)
            if self._has_head and not self._is_begun:
                self._is_begun = True
                self._sink.begin(self._parser.get_status_code(), self._headers, now)
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._sink.feed(piece, now)
        except httptools.HttpParserError as error:
            done.set_exception(ProtocolError(f"not HTTP: {error}"))
        except Exception as error:  # The sink's: it goes to whoever waits.
            done.set_exception(error)
        else:
            if self._is_whole:
                self.is_reusable = self._may_go_on
                done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone; ``error`` says why unless the server closed it."""
        self._transport, self.is_reusable = None, False
        if self._done is None or self._done.done():
            return
        # Without a length or chunks, the end of the connection is the end of the answer.
        is_open_ended = self._has_head and not self._headers.keys() & {
            "content-length", "transfer-encoding",
        }  # fmt: skip
        if error is None and is_open_ended:
            self._done.set_result(None)
        else:
            self._done.set_exception(LostError(str(error or "the server closed the connection")))

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        # Asked now: the parser forgets it with the next byte.
        self._is_whole, self._may_go_on = True, self._parser.should_keep_alive()
