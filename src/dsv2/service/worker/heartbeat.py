"""The heartbeat of an engine process: sent by a thread of its own, heard by whoever wants to.

It tells how long ago the step loop went round. So a loop that hangs is seen by its age, and a
process that is stopped or gone by the silence.
"""

from __future__ import annotations

import asyncio
import threading
import time
from types import TracebackType
from typing import Any, Protocol

import msgspec
import zmq

from dsv2.service.worker.process import BEAT_SECONDS
from dsv2.service.worker.wire import Heartbeat, Stats, decode_from_engine, encode

SILENT_SECONDS = 5.0
"""A process that is not heard for so long is gone, or as good as gone."""
HANG_SECONDS = 30.0
"""A step loop that has not gone round for so long hangs, unless its steps are known to be longer:
a chunk of a long prompt on a CPU takes seconds."""
_POLLIN = int(zmq.POLLIN)
_MAX_BEAT = 64 * 1024
"""Bytes of a heartbeat."""


class Beating(Protocol):
    """What a heartbeat tells of."""

    @property
    def age(self) -> float:
        """Seconds since the loop went round."""
        ...

    @property
    def stats(self) -> Stats:
        """As of now."""
        ...


class Beats:
    """Sends the heartbeat of a step loop while it is open, whatever the loop does.

    Args:
        context: of the process.
        address: to bind.
        loop: that it tells of.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, loop: Beating
    ) -> None:
        self._loop = loop
        self._socket = context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.bind(address)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dsv2-heartbeat", daemon=True)

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._socket.send(encode(Heartbeat(self._loop.age, self._loop.stats)), zmq.NOBLOCK)


class Pulse:
    """Listens to the heartbeat of an engine process, also of the next one at the same address.

    Args:
        context: whose sockets live in this event loop.
        address: of the heartbeat.
        hang_after: a step loop that old hangs; in seconds.
        silent_after: a process that is not heard for so long is gone; in seconds.

    Attributes:
        stats: as of the last heartbeat.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        *,
        hang_after: float = HANG_SECONDS,
        silent_after: float = SILENT_SECONDS,
    ) -> None:
        self.hang_after, self.silent_after = hang_after, silent_after
        self.stats = Stats()
        self._age = 0.0
        self._heard: float | None = None
        # A plain socket: one of zmq.asyncio takes several times as long for a beat, and an idle
        # server does little else.
        self._socket: zmq.Socket[bytes] = zmq.Socket(context, zmq.SUB)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_BEAT)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self._socket.subscribe(b"")
        self._socket.connect(address)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._listen)
        self._loop.call_soon(self._listen)

    def _listen(self) -> None:
        """Take in all that is there: only then does the socket give a sign again."""
        while not self._socket.closed and int(self._socket.get(zmq.EVENTS)) & _POLLIN:
            try:
                beat = decode_from_engine(self._socket.recv(zmq.NOBLOCK))
            except msgspec.MsgspecError:
                continue
            if isinstance(beat, Heartbeat):
                self.stats, self._age = beat.stats, beat.age
                self._heard = time.monotonic()

    def reset(self) -> None:
        """Take it that a process has been seen right now."""
        self._heard, self._age = time.monotonic(), 0.0

    @property
    def trouble(self) -> str | None:
        """What is wrong: the step loop hangs, or nothing was heard; None when all is well."""
        if self._heard is None:
            return "the engine has not been heard yet"
        silence = time.monotonic() - self._heard
        if silence > self.silent_after:
            return f"the engine has not been heard for {silence:.1f} s"
        if self._age + silence > self.hang_after:
            return f"the engine has been in one step for {self._age + silence:.0f} s"
        return None

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()
