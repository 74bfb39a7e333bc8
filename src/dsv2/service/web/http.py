"""What surrounds every request: an id, a log line, the host's name, and the size of its body.

All are plain ASGI. What comes before a body is bounded by :mod:`dsv2.service.web.bounded_http`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Collection
from typing import Protocol

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv2.service.inference.answers import encode
from dsv2.service.web.error_shapes import body_at
from dsv2.service.web.errors import ApiError

log = logging.getLogger("dsv2.service")
access_log = logging.getLogger("dsv2.service.access")

CHUNK = "dsv2.chunk"
"""Extension of an ASGI scope; see :mod:`dsv2.service.web.bounded_http`."""
MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 60.0
"""For a whole body to come."""


async def refuse(error: ApiError, scope: Scope, send: Send) -> None:
    """Send an error as the whole answer."""
    body = encode(body_at(scope, error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RequestWatch(Protocol):
    """Is told of every request."""

    def request_begun(self) -> None:
        """One has come."""
        ...

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """One has its answer; ``status`` is 0 for a client that left before it."""
        ...


class RequestContext:
    """Gives each request an id, and writes a line about it when it has ended.

    The id is the server's own, in ``x-request-id``; ``openai-processing-ms`` is the time to the
    answer's first byte. The log has one JSON object per line: method, template of the route,
    status, milliseconds, request id and account id; never a body, a header or a query.
    """

    def __init__(self, app: ASGIApp, watch: RequestWatch | None = None) -> None:
        self._app, self._watch = app, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._watch is not None:
            self._watch.request_begun()
        begun, status = time.perf_counter(), 0
        identity = secrets.token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"] = identity

        async def send_start(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                spent = round((time.perf_counter() - begun) * 1000)
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", identity.encode()),
                    (b"openai-processing-ms", str(spent).encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_start)
        except ClientDisconnect:
            # It left before all of its request was here: no fault of ours, and nobody to answer.
            log.debug("the client of request %s left before its body was whole", identity)
        except Exception as error:
            log.error("unforeseen error in request %s", identity, exc_info=error)
            if status:  # too late for another answer: the server cuts the connection
                raise
            problem = ApiError(500, "The server failed; the request can be sent again")
            await refuse(problem, scope, send_start)
        finally:
            seconds = time.perf_counter() - begun
            # A template: no ids, no query.
            route = getattr(scope.get("route"), "path", None)
            if self._watch is not None:
                self._watch.request_ended(scope["method"], route or "none", status, seconds)
            if access_log.isEnabledFor(logging.INFO):
                fields = {
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "request_id": identity,
                    "account_id": getattr(state.get("caller"), "account_id", None),
                }
                access_log.info("request", extra={"fields": fields})


class HostCheck:
    """Refuses requests to other names with 421, so that no web page can rebind its own to us.

    Args:
        app: what is protected.
        allowed: names without ports, in small letters; an IPv6 address in brackets.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "").lower()
            name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
            if name not in self._allowed:
                if scope["type"] == "http":
                    error = ApiError(421, "This server does not go by that name")
                    await refuse(error, scope, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies that are too large with 413, too slow with 408, and compressed ones with 415.

    The length is checked where it is announced and counted where it is not.
    """

    def __init__(
        self, app: ASGIApp, limit: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS
    ) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            problem = ApiError(415, "A compressed body is not read; send it plain")
            await refuse(problem, scope, send)
            return
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18:
            await refuse(ApiError(400, "The content length is no number"), scope, send)
            return
        if int(length) > self._limit:
            await refuse(self._too_large(), scope, send)
            return
        seen, is_whole, has_started = 0, False, False
        late = time.monotonic() + self._seconds

        async def count() -> Message:
            nonlocal seen, is_whole
            if is_whole:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout(late - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    408, f"The body was not there after {self._seconds:g} s",
                    headers={"Connection": "close"},
                ) from None  # fmt: skip
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                seen += len(message.get("body", b""))
                if seen > self._limit:
                    raise self._too_large()
            return message

        async def note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, count, note)
        except ApiError as error:  # raised above, where no handler of the application's stands
            if has_started:
                raise
            await refuse(error, scope, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._limit} bytes")
