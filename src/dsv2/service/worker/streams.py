"""Between an engine's callbacks and asynchronous iteration, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from dsv2.engine.request import Request
from dsv2.service.serving import Engine, EngineGoneError, Sink
from dsv2.service.worker.wire import Tokens, join


class _Waiting:
    """What came for one request and was not read yet: never more than one item."""

    def __init__(self) -> None:
        self._item: Tokens | None = None
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def put(self, output: Tokens) -> None:
        self._item = output if self._item is None else join(self._item, output)
        self._news.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._news.set()

    async def take(self) -> Tokens:
        while self._item is None:
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        item, self._item = self._item, None
        return item


async def outputs_of(engine: Engine, request: Request) -> AsyncGenerator[Tokens, None]:
    """Submit a request and yield what comes of it; the last item has a ``finish_reason``.

    What comes while the caller is busy is joined to one item. Closing the generator early cancels
    the request.

    Raises:
        EngineGoneError, OverloadedError, RequestError: as :meth:`Engine.submit` and its sink say.
    """
    waiting = _Waiting()
    cancel = engine.submit(request, waiting)
    try:
        while True:
            item = await waiting.take()
            yield replace(item, id=request.id)
            if item.finish_reason is not None:
                return
    finally:
        cancel()


def pump(outputs: AsyncGenerator[Tokens, None], sink: Sink) -> asyncio.Task[None]:
    """Hand what a generator yields to a sink, in a task, which may be cancelled."""

    async def run() -> None:
        has_ended = False
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    has_ended = output.finish_reason is not None
                    sink.put(output)
            if not has_ended:
                raise EngineGoneError("the engine has ended an answer without a word")
        except Exception as error:  # for the one who reads the sink
            sink.fail(error)

    return asyncio.create_task(run())
