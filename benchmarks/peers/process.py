"""Running a program to its end, with its time, its memory and what it said."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 2.0**30
_MOST = re.compile(r"^VmHWM:\s*(\d+) kB", re.M)


class PeerError(RuntimeError):
    """A program failed; the message has its name, exit code and last line."""


@dataclass(frozen=True)
class Ran:
    """A program that ended well.

    Attributes:
        output: what it wrote to its standard output.
        errors: what it wrote to its standard error.
        seconds: from its start to its end.
        first: seconds to the first byte of its output.
        resident: most bytes of memory it held, mapped files included, looked up 50 times a second.
    """

    output: str
    errors: str
    seconds: float
    first: float
    resident: int


def run(
    command: Sequence[str | Path],
    *,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ran:
    """Run ``command`` with ``text`` as its standard input.

    Raises:
        PeerError: there is no such program, or it failed.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors:
        source.write(text.encode())
        source.seek(0)
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                words, stdin=source, stdout=subprocess.PIPE, stderr=errors, cwd=folder,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip
        except OSError as error:
            raise PeerError(f"{words[0]}: {error.strerror}") from error
        memory = _Memory(process.pid)
        memory.start()
        assert process.stdout is not None
        with process.stdout as stream:
            head = stream.read(1)
            first = time.perf_counter() - start
            output = (head + stream.read()).decode(errors="replace")
        code = process.wait()
        seconds = time.perf_counter() - start
        memory.join()
        errors.seek(0)
        log = errors.read().decode(errors="replace")
        if code:
            said = log.strip().splitlines() or ["no message"]
            raise PeerError(f"{Path(words[0]).name} ended with {code}: {said[-1][:200]}")
    return Ran(output, log, seconds, first, memory.most)


class _Memory(threading.Thread):
    """Follows the most memory that a process has held.

    What the system tells its parent at the end will not do: that counts the parent's own memory,
    of which the process is a copy until it starts its program.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._path = Path(f"/proc/{pid}/status")
        self.most = 0

    def run(self) -> None:
        while True:
            try:
                found = _MOST.search(self._path.read_text("ascii", "replace"))
            except OSError:
                return
            if found is None:  # it has ended
                return
            self.most = max(self.most, int(found[1]) * 1024)
            time.sleep(0.02)


def read_through(*paths: Path) -> None:
    """Read files once, so that who reads them next finds them in the page cache."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
