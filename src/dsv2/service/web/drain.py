"""The way out: while the server drains, nothing new begins and what is under way may end."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv2.service.web.app import answer_of
from dsv2.service.web.errors import ApiError

_ALWAYS = ("/health", "/ready")
"""Answered to the end, so that whoever watches sees what goes on."""


class Drain:
    """Counts requests under way, and refuses new ones once it has begun.

    Args:
        app: what is behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.has_begun = False

    @property
    def open(self) -> int:
        """Requests under way."""
        return self._open

    def begin(self) -> None:
        """Refuse what comes from now on."""
        self.has_begun = True

    async def wait(self, seconds: float) -> bool:
        """Wait until nothing is under way; False if that takes longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer 503 and close its connection."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
            return
        if self.has_begun:
            error = ApiError(
                503, "The server is stopping; try again later", code="server_is_stopping",
                headers={"Connection": "close", "Retry-After": "10"},
            )  # fmt: skip
            await answer_of(error, scope)(scope, receive, send)
            return
        self._open += 1
        self._empty.clear()

        async def answer(message: Message) -> None:
            # A client must not send its next request on a connection that is about to be closed.
            if self.has_begun and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._open -= 1
            if not self._open:
                self._empty.set()
