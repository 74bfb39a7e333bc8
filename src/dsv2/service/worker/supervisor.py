"""Keeps an engine process running: starts it, watches it, kills one that hangs, starts the next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from dsv2.service.worker.heartbeat import HANG_SECONDS, SILENT_SECONDS, Pulse
from dsv2.service.worker.process import (
    EXIT_CLEAN,
    EXIT_REFUSED,
    Drain,
    Report,
    WorkerOptions,
    addresses,
    check_private,
)
from dsv2.service.worker.wire import refusing

log = logging.getLogger("dsv2.service.supervisor")

State = Literal["stopped", "starting", "ready", "restarting", "failed"]
COMMAND = (sys.executable, "-m", "dsv2.service.worker")
_TICK = 0.2
"""Seconds between two looks at the engine's pulse."""
_GRACE = 3.0
"""Seconds beyond the time to drain after which a process that was asked to stop is killed."""
_MAX_REPORT = 1 << 20
"""Bytes of a line that the process writes."""

_decode_report = refusing(msgspec.json.Decoder(Report).decode)


@dataclass(frozen=True)
class Patience:
    """How long an engine process may take, and how often it may fail; times in seconds.

    Attributes:
        ready: from start to service, with the pull and the conversion of a model in it.
        hang: one step of the engine.
        silent: without a heartbeat.
        restarts: most restarts within ``window``; one more failure is final.
        window: that restarts are counted in.
        first_delay: before the first restart; each further one within the window waits twice as
            long.
        longest_delay: bound of that.
    """

    ready: float = 3600.0
    hang: float = HANG_SECONDS
    silent: float = SILENT_SECONDS
    restarts: int = 5
    window: float = 600.0
    first_delay: float = 0.5
    longest_delay: float = 30.0


class Supervisor:
    """Runs one engine process after the other until it is stopped.

    It belongs to the event loop that starts it, and the process ends with the thread of that loop.

    Args:
        options: of the process. The folder of its sockets must exist, and be ours alone.
        patience: before a process is given up.
        on_failed: called once, with the reason, when there will be no further process. The server
            then ends with an exit status that is not zero.
        command: that runs the process; by default :data:`COMMAND`.

    Attributes:
        state: ``starting`` until the first process serves, ``ready``, ``restarting`` from the loss
            of a process until the next one serves, ``failed``; ``stopped`` before and after.
        restarts: processes started after the first one.
        progress: the last report of the process; None before there is any.
        failure: why the state is ``failed``, or why the last process was lost.
    """

    def __init__(
        self,
        options: WorkerOptions,
        *,
        patience: Patience | None = None,
        on_failed: Callable[[str], None] = lambda reason: None,
        command: Sequence[str] | None = None,
    ) -> None:
        self._options, self._patience = options, patience or Patience()
        self._on_failed, self._command = on_failed, tuple(command or COMMAND)
        self.state: State = "stopped"
        self.restarts = 0
        self.progress: Report | None = None
        self.failure: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exit_status: int | None = None
        self._stopping = self._was_ready = False
        self._losses: deque[float] = deque()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the first process; see :meth:`wait_ready`.

        Raises:
            ValueError: the folder of the sockets is not ours alone, or the name is none.
            RuntimeError: it has been started before.
        """
        if self._task is not None:
            raise RuntimeError("the supervisor has been started before")
        addresses(self._options.folder, self._options.name)
        check_private(self._options.folder)
        self._set("starting")
        self._task = asyncio.create_task(self._run())

    async def wait_ready(self) -> None:
        """Wait until a process serves.

        Raises:
            RuntimeError: there will be none.
        """
        while self.state != "ready":
            if self.state in ("failed", "stopped"):
                raise RuntimeError(self.failure or "the engine has been stopped")
            changed = self._changed
            await changed.wait()

    async def stop(self, drain_seconds: float | None = None) -> int:
        """Let the requests under way end and the process with them; kill it when it does not.

        Args:
            drain_seconds: how long requests may go on; None for the time in the options.

        Returns:
            The exit status of the process: 0 when every request had its end. Negative for the
            signal that killed it.
        """
        self._stopping = True
        if self._task is None:
            return EXIT_CLEAN
        drain = self._options.drain_seconds if drain_seconds is None else drain_seconds
        process = self._process
        if process is None:
            self._task.cancel()
        else:
            _order(process, Drain(drain))
            try:
                await asyncio.wait_for(process.wait(), drain + _GRACE)
            except TimeoutError:
                log.warning("the engine process does not stop: killing it")
                _kill(process)
        await asyncio.gather(self._task, return_exceptions=True)
        self._set("stopped")
        self._sweep()
        return EXIT_CLEAN if self._exit_status is None else self._exit_status

    async def _run(self) -> None:
        while True:
            try:
                reason, is_final = await self._live()
            except OSError as error:
                reason, is_final = f"the engine process cannot be started: {error}", True
            if self._stopping:
                return
            self.failure = reason
            delay = self._delay()
            if is_final or delay is None:
                log.error("there is no engine any more: %s", reason)
                self._set("failed")
                self._on_failed(reason)
                return
            log.warning("%s; starting another one in %.1f s", reason, delay)
            self._set("restarting" if self._was_ready else "starting")
            await asyncio.sleep(delay)
            self.restarts += 1

    def _delay(self) -> float | None:
        """Seconds to wait before the next process; None when there have been too many."""
        now, patience = time.monotonic(), self._patience
        while self._losses and self._losses[0] <= now - patience.window:
            self._losses.popleft()
        self._losses.append(now)
        if len(self._losses) > patience.restarts:
            return None
        return min(patience.first_delay * 2 ** (len(self._losses) - 1), patience.longest_delay)

    async def _live(self) -> tuple[str, bool]:
        """The life of one process; why it ended, and whether the next one's would be the same.

        Raises:
            OSError: it cannot be started.
        """
        self.progress = None
        process = self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is the server's to handle
            limit=_MAX_REPORT,
        )
        assert process.stdin is not None
        ready = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(process.wait())
        reader = asyncio.create_task(self._read(process, ready))
        try:
            process.stdin.write(msgspec.json.encode(self._options) + b"\n")
            await asyncio.wait(
                (ready, ended), timeout=self._patience.ready, return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done():
                self._was_ready = True
                self._set("ready")
                reason = await self._watch(ended)
            elif ended.done():
                reason = ""
            else:
                reason = f"the engine process was not ready after {self._patience.ready:g} s"
        finally:
            _kill(process)
            status = self._exit_status = await ended
            await asyncio.gather(reader, return_exceptions=True)
            process.stdin.close()
            self._process = None
        last = self.progress
        if not reason:
            reason = f"the engine process has ended with status {status}"
            if last is not None and last.phase == "failed":
                reason = last.text
        return reason, status == EXIT_REFUSED

    async def _read(self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> None:
        """Follow the reports of a process to their end."""
        assert process.stdout is not None
        while line := await process.stdout.readline():
            try:
                report = self.progress = _decode_report(line)
            except msgspec.MsgspecError:
                log.warning("the engine process wrote something that is no report")
                continue
            if report.phase == "ready" and not ready.done():
                ready.set_result(None)
            log.info("engine process: %s %s", report.phase, report.text)

    async def _watch(self, ended: asyncio.Task[int]) -> str:
        """Wait until a process that serves has ended, or hangs: the reason, or nothing."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        pulse = Pulse(
            context,
            addresses(self._options.folder, self._options.name).heartbeat,
            hang_after=self._patience.hang,
            silent_after=self._patience.silent,
        )
        pulse.reset()
        try:
            while not ended.done():
                if (trouble := pulse.trouble) is not None:
                    return trouble
                await asyncio.wait((ended,), timeout=_TICK)
            return ""
        finally:
            pulse.close()
            context.term()

    def _set(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _sweep(self) -> None:
        """Remove the sockets, which a process that was killed leaves behind."""
        where = addresses(self._options.folder, self._options.name)
        for address in (where.requests, where.heartbeat):
            with contextlib.suppress(OSError):
                Path(address.removeprefix("ipc://")).unlink()


def _order(process: asyncio.subprocess.Process, order: Drain) -> None:
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(order) + b"\n")


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and what it started, if it runs."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
