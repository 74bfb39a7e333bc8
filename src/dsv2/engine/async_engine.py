"""The engine behind asyncio: a thread steps, coroutines submit, stream and cancel."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType

from dsv2.engine.engine import Engine, EngineStats, TokenOutput
from dsv2.engine.request import Request

_Item = TokenOutput | BaseException
_Order = tuple[Request, "_Stream"] | tuple[str, "_Stream | None"]
"""A request and who reads it, or the id of one to cancel, and whose if only theirs."""


class EngineDeadError(RuntimeError):
    """The step loop has stopped; its cause is attached."""


class _Stream:
    """Outputs of one request on their way from the step thread to a coroutine."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.items: asyncio.Queue[_Item] = asyncio.Queue()

    def push(self, items: list[_Item]) -> None:
        def deliver() -> None:
            for item in items:
                self.items.put_nowait(item)

        try:
            self.loop.call_soon_threadsafe(deliver)
        except RuntimeError:  # the loop is closed: nobody reads this any more
            return


class AsyncEngine:
    """Runs an engine's steps in a thread of its own.

    The thread alone touches the engine: what coroutines want is put in a line that it empties
    before every step, so that a cancelled request is gone within one step.

    Args:
        engine: not to be used by anybody else from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._streams: dict[str, _Stream] = {}
        self._wake = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._stopping = False
        self._death: BaseException | None = None
        self._heartbeat = time.monotonic()
        self._stats = engine.stats
        self._thread = threading.Thread(target=self._run, name="dsv2-engine", daemon=True)
        self._thread.start()

    @property
    def seconds_since_heartbeat(self) -> float:
        """Age of the last sign of life: a step longer than this, or a hang."""
        return time.monotonic() - self._heartbeat

    @property
    def is_alive(self) -> bool:
        """Whether steps go on."""
        return self._thread.is_alive() and self._death is None

    @property
    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._stats

    async def stream(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        """Submit a request and yield its outputs; leaving the loop early cancels it.

        Where :meth:`cancel` ends it, the last output has the finish reason ``cancelled``.

        Raises:
            RequestError: the request does not pass the gate.
            OverloadedError: too many are waiting.
            EngineDeadError: the engine stopped.
        """
        stream = _Stream(asyncio.get_running_loop())
        self._order((request, stream))
        ended = False
        try:
            while not ended:
                item = await stream.items.get()
                if isinstance(item, BaseException):
                    ended = True
                    raise item
                ended = item.finish_reason is not None
                yield item
        finally:
            if not ended:
                self._cancel(request.id, stream)

    def cancel(self, request_id: str) -> None:
        """End a request, wherever it is; one that is not there is left alone."""
        self._cancel(request_id, None)

    def _cancel(self, request_id: str, stream: _Stream | None) -> None:
        try:
            self._order((request_id, stream))
        except EngineDeadError:
            return  # everything has ended with the engine

    def _order(self, order: _Order) -> None:
        with self._wake:
            if self._death is not None or self._stopping:
                raise EngineDeadError("the engine has stopped") from self._death
            self._orders.append(order)
            self._wake.notify()

    def close(self) -> None:
        """Stop after the step under way; open streams end with an EngineDeadError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._obey():
                outputs = self._engine.step()
                self._heartbeat = time.monotonic()
                self._stats = self._engine.stats
                self._deliver(outputs)
        except BaseException as error:  # whatever it was, those who wait must hear of it
            self._death = error
        finally:
            self._bury()

    def _obey(self) -> bool:
        """Carry out what was ordered; wait while there is nothing to do. False to stop."""
        with self._wake:
            while not self._orders and not self._stopping and not self._engine.has_work:
                self._wake.wait(timeout=1.0)
                self._heartbeat = time.monotonic()
            orders, stopping = list(self._orders), self._stopping
            self._orders.clear()
        for subject, stream in orders:
            if isinstance(subject, Request):
                assert stream is not None
                self._add(subject, stream)
            else:
                self._end(subject, stream)
        return not stopping

    def _end(self, name: str, only: _Stream | None) -> None:
        stream = self._streams.get(name)
        if stream is None or only not in (None, stream):
            return  # it has ended, or never began because another one has its id
        self._engine.abort(name)
        del self._streams[name]
        stream.push([TokenOutput(name, None, None, "cancelled")])

    def _add(self, request: Request, stream: _Stream) -> None:
        try:
            self._engine.add(request)
        except Exception as error:  # the gate's, the line's, or of what nobody thought: its own
            if request.id not in self._streams:
                self._engine.abort(request.id)  # should it have got half way
            stream.push([error])
        else:
            self._streams[request.id] = stream

    def _deliver(self, outputs: list[TokenOutput]) -> None:
        grouped: dict[str, list[_Item]] = {}
        for output in outputs:
            grouped.setdefault(output.request_id, []).append(output)
        for name, items in grouped.items():
            self._streams[name].push(items)
            last = items[-1]
            if isinstance(last, TokenOutput) and last.finish_reason is not None:
                del self._streams[name]

    def _bury(self) -> None:
        """Nobody is left waiting."""
        with self._wake:
            self._stopping = True
            late = [stream for subject, stream in self._orders if isinstance(subject, Request)]
            self._orders.clear()
        for stream in (*self._streams.values(), *late):
            assert stream is not None
            error = EngineDeadError("the engine has stopped")
            error.__cause__ = self._death
            stream.push([error])
        self._streams.clear()
