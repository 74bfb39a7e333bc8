"""The API process's side of an engine process: one connection, and a stream for each request."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from msgspec.structs import replace

from dsv2.engine.request import Limits, OverloadedError, Request, RequestError
from dsv2.service.serving import Canceller, EngineGoneError, Sink
from dsv2.service.worker.heartbeat import HANG_SECONDS, SILENT_SECONDS, Pulse
from dsv2.service.worker.process import MAX_FROM_ENGINE, MAX_TO_ENGINE, addresses
from dsv2.service.worker.wire import (
    Ask,
    Batch,
    Cancel,
    Stats,
    Tokens,
    Welcome,
    decode_from_engine,
    encode,
    to_wire,
)

log = logging.getLogger("dsv2.service.client")

_POLLIN = int(zmq.POLLIN)
_TICK = 0.2
"""Seconds between two looks at the engine's pulse."""
_ASK_AGAIN = 5
"""Ticks without a welcome after which the engine is asked once more."""
_MOST_UNSENT = 10_000
"""Messages that wait for the engine to read them; more than it can ever have under way."""


class EngineClient:
    """An engine in another process; see :class:`dsv2.service.serving.Engine`.

    It belongs to the event loop that starts it. When the engine process is lost, every open stream
    ends with an :class:`EngineGoneError`, and the client connects to the next one by itself.

    Args:
        folder: of the engine's sockets.
        name: of the engine.
        hang_after: seconds in one step after which the engine counts as hung.
        silent_after: seconds without a heartbeat after which it counts as gone. A process that
            ends is noticed at once.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str = "engine",
        *,
        hang_after: float = HANG_SECONDS,
        silent_after: float = SILENT_SECONDS,
    ) -> None:
        self._where = addresses(folder, name)
        self._hang_after, self._silent_after = hang_after, silent_after
        self._sinks: dict[str, Sink] = {}
        self._unsent: list[str] = []
        self._is_connected = False
        self._welcome: Welcome | None = None
        self._ready = asyncio.Event()
        self._asked = self._count = 0
        self._context: zmq.asyncio.Context | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to connect; the engine need not be there yet."""
        if self._context is not None:
            raise RuntimeError("the client has been started before")
        self._context = zmq.asyncio.Context()
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(
            self._context,
            self._where.heartbeat,
            hang_after=self._hang_after,
            silent_after=self._silent_after,
        )
        # A plain socket: one of zmq.asyncio would double what a token costs.
        socket: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.DEALER)
        self._socket = socket
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _MOST_UNSENT),
            (zmq.MAXMSGSIZE, MAX_FROM_ENGINE),
            (zmq.RECONNECT_IVL, 50),
            (zmq.RECONNECT_IVL_MAX, 500),
        ):
            socket.setsockopt(option, value)
        self._monitor: Any = socket.get_monitor_socket(
            zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED
        )
        socket.connect(self._where.requests)
        self._loop.add_reader(socket.FD, self._read)
        self._tasks = [asyncio.create_task(one) for one in (self._follow(), self._watch())]

    async def close(self) -> None:
        """Disconnect; open streams end with an :class:`EngineGoneError`."""
        if self._context is None:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all("the server is stopping")
        self._loop.remove_reader(self._socket.FD)
        self._pulse.close()
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()

    async def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until the engine can be used.

        Raises:
            EngineGoneError: it is not there after so many seconds.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            raise EngineGoneError(f"the engine is not up after {seconds} s") from None

    @property
    def limits(self) -> Limits:
        """What the engine can take; of the last one while there is none."""
        known = self._known
        return Limits(known.vocab_size, known.max_context, known.max_logprobs)

    @property
    def description(self) -> str:
        """What runs where, for people."""
        return self._known.description

    @property
    def _known(self) -> Welcome:
        if self._welcome is None:
            raise EngineGoneError("the engine is not up yet")
        return self._welcome

    @property
    def is_healthy(self) -> bool:
        """Whether the engine is connected and its step loop has shown itself of late."""
        return self._ready.is_set() and self._pulse.trouble is None

    @property
    def stats(self) -> Stats:
        """As of the last heartbeat."""
        return Stats() if self._context is None else self._pulse.stats

    def submit(self, request: Request, sink: Sink) -> Canceller:
        """As :meth:`dsv2.service.serving.Engine.submit`; outputs bear a name of the client's."""
        if not self._ready.is_set():
            raise EngineGoneError("the engine is not up")
        if (trouble := self._pulse.trouble) is not None:
            raise EngineGoneError(trouble)
        # A name of our own: what a cancelled request still yields reaches no other one.
        self._count += 1
        name = str(self._count)
        if not self._send(_frame(request, name)):
            raise OverloadedError("the engine does not take requests just now; try again later")
        self._sinks[name] = sink

        def cancel() -> None:
            # What has ended is not in there any more.
            if self._sinks.pop(name, None) is not None:
                self._cancel([name])

        return cancel

    def _send(self, frame: bytes) -> bool:
        """Hand a message to the socket; false when it takes none."""
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        # Sending may have used up the sign that there is something to read.
        self._loop.call_soon(self._read)
        return True

    def _cancel(self, ids: Iterable[str]) -> None:
        """Cancel requests, now or as soon as the socket takes messages."""
        self._unsent += [one for one in ids if not self._send(encode(Cancel(one)))]

    def _read(self) -> None:
        """Take in all that is there: only then does the socket give a sign again."""
        socket = self._socket
        while not socket.closed and int(socket.get(zmq.EVENTS)) & _POLLIN:
            self._take(socket.recv(zmq.NOBLOCK))

    def _take(self, frame: bytes) -> None:
        try:
            message = decode_from_engine(frame)
        except msgspec.MsgspecError:
            log.exception("the engine sent something that cannot be read")
            self._give_up("the engine sent something that cannot be read")
            return
        if isinstance(message, Batch):
            for output in message.outputs:
                self._hand_on(output)
        elif isinstance(message, Welcome) and self._is_connected:
            if not self._ready.is_set():
                log.info("connected to engine process %d: %s", message.pid, message.description)
            self._welcome = message
            self._pulse.reset()
            self._ready.set()

    def _hand_on(self, output: Tokens) -> None:
        if output.finish_reason is None:
            sink = self._sinks.get(output.id)
        else:
            sink = self._sinks.pop(output.id, None)
        if sink is None:
            return  # it was cancelled meanwhile
        if output.finish_reason == "rejected":
            sink.fail(_refusal(output))
        else:
            sink.put(output)

    async def _follow(self) -> None:
        """Know at once when the engine process comes or goes."""
        while True:
            frames = await self._monitor.recv_multipart()
            (event, _) = struct.unpack("=hi", frames[0])
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self._is_connected, self._asked = True, 0
                self._send(encode(Ask()))
            elif event == zmq.Event.DISCONNECTED:
                self._read()  # what it said before it went
                self._is_connected = False
                self._ready.clear()
                # What the lost one did not read is kept for the next one, and cancelled there.
                self._give_up("the engine process has ended")

    async def _watch(self) -> None:
        """End the streams of an engine that hangs, and repeat what could not be sent."""
        while True:
            await asyncio.sleep(_TICK)
            if self._is_connected and not self._ready.is_set():
                self._asked += 1
                if self._asked % _ASK_AGAIN == 0:
                    self._send(encode(Ask()))
            elif self._sinks and (trouble := self._pulse.trouble) is not None:
                self._give_up(trouble)
            if self._unsent:
                unsent, self._unsent = self._unsent, []
                self._cancel(unsent)

    def _give_up(self, reason: str) -> None:
        """End all streams, and have the engine drop their requests should it come back."""
        ids = list(self._sinks)
        self._fail_all(reason)
        self._cancel(ids)

    def _fail_all(self, reason: str) -> None:
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(EngineGoneError(reason))


def _frame(request: Request, name: str) -> bytes:
    """A request as it is sent, under a name of the connection's own.

    Raises:
        RequestError: it cannot be sent at all.
    """
    try:
        frame = encode(replace(to_wire(request), id=name))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("request", f"cannot be sent: {error!s:.200}") from error
    if len(frame) > MAX_TO_ENGINE:
        raise RequestError(
            "prompt", f"makes a message of {len(frame)} bytes, allowed are {MAX_TO_ENGINE}"
        )
    return frame


def _refusal(item: Tokens) -> RequestError | OverloadedError:
    if item.field is None:
        return OverloadedError(item.error or "the engine is full; try again later")
    return RequestError(item.field, item.error or "is not allowed")
