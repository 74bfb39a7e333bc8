"""A server in a process of its own: its address, its CPU time and its memory, as Linux counts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
STEP = "DSV2_BENCH_STEP"
"""Environment variable: seconds of a step of :mod:`benchmarks.peers.no_engine`."""
_PATIENCE = 40.0
"""Seconds for a server to end by itself."""


class ServerFailedError(RuntimeError):
    """The server did not start, or does not answer as it should."""


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        url: where it is.
        pid: of the process that speaks HTTP; engines are its children.
        model: to be asked for.
    """

    url: str
    pid: int
    model: str


@contextmanager
def serving(command: Sequence[str | Path], model: str, seconds: float) -> Iterator[Served]:
    """Run a server that prints its address on standard output, and end it afterwards.

    Args:
        command: the program and its arguments.
        model: that it serves.
        seconds: for it to print its address.

    Raises:
        ServerFailedError: it ended, or printed none.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=errors,
            stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        found: list[str] = []
        known = threading.Event()

        def read() -> None:
            # To the end: a pipe that nobody reads stops the one who writes.
            assert process.stdout is not None
            for line in process.stdout:
                if (match := _ADDRESS.search(line)) is not None:
                    found.append(match[0])
                    known.set()
            known.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            is_told = known.wait(seconds)
            if not found:
                why = "ended" if is_told else f"is silent after {seconds:g} s"
                errors.seek(0)
                raise ServerFailedError(f"{command[0]} {why}: {errors.read()[-2000:].strip()}")
            yield Served(found[0], process.pid, model)
        finally:
            _end(process)
            reader.join(5)
            assert process.stdout is not None
            process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        # The session is its own: nobody else's process is in it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far; children do not count.

    From the process's own clock, whose number is made as by clock_getcpuclockid(3): /proc counts in
    hundredths.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime(~pid << 3 | 2)


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 once it has ended."""
    try:
        text = Path(f"/proc/{pid}/statm").read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """A process's children and theirs."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text("utf-8").split():
                found += [int(child), *children(int(child))]
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


class MemoryWatch:
    """Looks twenty times a second, within ``with``, at what a server's processes hold.

    Attributes:
        own: most bytes of the process itself.
        grown: most bytes by which its children, the engines, exceeded what they held before.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._engines()
        self.own, self.grown = resident_bytes(pid), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _engines(self) -> int:
        return sum(resident_bytes(child) for child in children(self._pid))

    def _look(self) -> None:
        while True:
            self.own = max(self.own, resident_bytes(self._pid))
            self.grown = max(self.grown, self._engines() - self._before)
            if self._stop.wait(0.05):
                return


def settle(seconds: float = 0.2) -> None:
    """Let the processes that just worked come to rest before another one is timed."""
    time.sleep(seconds)
