"""An answer as events: from any place on, for any number of pages, while it grows or afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dsv2.service.chats.run import Run
from dsv2.service.chats.runs import Runs
from dsv2.service.chats.shapes import message_shape
from dsv2.service.chats.text import Delta
from dsv2.service.inference.answers import encode
from dsv2.service.inference.sse import Patience
from dsv2.service.serving import Caller
from dsv2.service.store import chat_messages
from dsv2.service.store.chat_messages import Message
from dsv2.service.web.errors import ApiError

POLL_SECONDS = 0.5
"""How often an answer of another process is looked at."""
_KEEP_ALIVE = b": keep-alive\n\n"

Events = AsyncGenerator[bytes, None]


def site_event(name: str, fields: object) -> bytes:
    """An event of the site's: a name and its data."""
    return b"event: " + name.encode() + b"\ndata: " + encode(fields) + b"\n\n"


def events_of(runs: Runs, caller: Caller, message: Message, start: int) -> Events:
    """The events of an answer that the caller may read, from a place in its text on."""
    run = runs.find(message.id)
    if run is not None:
        return _followed(run, start, runs.inference.patience.keep_alive)
    return _looked_at(runs, caller, message, start)


async def _followed(run: Run, start: int, keep_alive: float) -> Events:
    reader = run.text.read(start)
    while True:
        is_over = run.text.is_closed
        delta = reader.take()
        if delta is not None:
            yield site_event("delta", delta.shape)
        elif is_over:
            yield site_event("done", message_shape(run.message))
            return
        elif not await run.text.wait(keep_alive):
            yield _KEEP_ALIVE


async def _looked_at(runs: Runs, caller: Caller, message: Message, start: int) -> Events:
    at = min(start, len(message.content))
    quiet = 0.0
    while True:
        text = message.content[at:]
        if text:
            yield site_event("delta", Delta(at, text).shape)
            at, quiet = at + len(text), 0.0
        if message.status != "running":
            yield site_event("done", message_shape(message))
            return
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS
        if quiet >= runs.inference.patience.keep_alive:
            yield _KEEP_ALIVE
            quiet = 0.0
        try:
            message = await runs.office.read(_reading(caller.user_id, message.id))
        except ApiError:
            return  # it was deleted


def _reading(user_id: str, message_id: str) -> Callable[[Any], Message]:
    return lambda db: chat_messages.get_message(db, user_id, message_id)


class EventsResponse(Response):
    """Sends events until there are no more, or nobody takes them.

    Args:
        events: what is sent.
        patience: how long to wait for a page that takes nothing.
        leave: is called at the end.
    """

    def __init__(self, events: Events, patience: Patience, leave: Callable[[], None]) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._events, self._patience, self._leave = events, patience, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(self._send(send)), asyncio.create_task(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            sent, _ = await asyncio.gather(*tasks, return_exceptions=True)
            self._leave()
        if isinstance(sent, Exception) and not isinstance(sent, (TimeoutError, OSError)):
            raise sent

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with contextlib.aclosing(self._events) as events:
            await self._pass(send, start)
            async for event in events:
                body = {"type": "http.response.body", "body": event, "more_body": True}
                await self._pass(send, body)
        await self._pass(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._patience.slow_reader):
            await send(message)
