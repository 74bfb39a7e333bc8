"""uvicorn's parser of HTTP with bounds on what comes before a body: its size, and its time.

And a way to write parts of a body without a task: ``scope["extensions"][CHUNK]["write"](data)``
writes at once and returns true, or writes nothing where the client reads too slowly or is gone.
Wrappers of ``send`` that stand between do not hear of such parts; the status and the end of the
body still go through them.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dsv2.service.inference.answers import encode
from dsv2.service.web.error_shapes import body_for
from dsv2.service.web.errors import ApiError
from dsv2.service.web.http import CHUNK, refuse

MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers."""
HEAD_SECONDS = 30.0
"""From the first byte of a request, or from the connection, to the end of its headers."""


def _too_large() -> ApiError:
    words = f"The request's headers are larger than {MAX_HEAD} bytes"
    return ApiError(431, words, headers={"Connection": "close"})


async def _refuse_large(scope: Scope, receive: Receive, send: Send) -> None:
    await refuse(_too_large(), scope, send)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Its arguments are uvicorn's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._head = 0
        self._is_in_head = True
        self._timer: asyncio.TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn; and the time for the first headers begins."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn, which tells the last request alone: those before it end as well."""
        self._stop_timer()
        super().connection_lost(exc)
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """As uvicorn, but for headers without an end."""
        super().data_received(data)
        if not self._is_in_head:
            return
        self._head += len(data)
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self._end_with(_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._head, self._is_in_head = 0, True
        if self._timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The end of its headers."""
        self._is_in_head = False
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD:
            self.app = _refuse_large  # the connection ends with it
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.scope["extensions"] = {CHUNK: {"write": partial(self._write_chunk, self.cycle)}}
            self._cycles = [one for one in self._cycles if not one.response_complete]
            self._cycles.append(self.cycle)

    def _write_chunk(self, cycle: RequestResponseCycle, data: bytes) -> bool:
        ends = cycle.disconnected or cycle.response_complete or not cycle.chunked_encoding
        if ends or self.flow.write_paused or not data:  # an empty chunk would end the body
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says in plain text, in the shape that the address's clients know."""
        self._end_with(ApiError(400, msg))

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._head:
            message = f"The request's headers were not there after {HEAD_SECONDS:g} s"
            self._end_with(ApiError(408, message))
        self.transport.close()

    def _end_with(self, error: ApiError) -> None:
        """Answer what has not become a request, and close."""
        cycle = self.cycle
        is_between = cycle is None or cycle.response_complete or not cycle.response_started
        # In the middle of another answer it would be read as a part of that one.
        if is_between and not self.pipeline:
            path = self.url.partition(b"?")[0].decode("ascii", "replace")
            body = encode(body_for(path, error))
            status = HTTPStatus(error.status)
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n" % (status, status.phrase.encode(), len(body)) + body
            )
        self.transport.close()
