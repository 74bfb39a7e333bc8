"""A server as an operator runs it: ``dsv2 serve`` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
PROMPT = [{"role": "user", "content": "What is 17 + 25?"}]


class Running:
    """One server.

    Args:
        data: its folder.
        arguments: more of the command line.
        models: what it serves.
        by_make: whether ``make serve`` starts it, as the README says, in the environment at hand.
    """

    def __init__(
        self,
        data: Path,
        *arguments: str,
        models: tuple[str, ...] = ("pocket",),
        by_make: bool = False,
    ) -> None:
        self.data = data
        self.errors = data.parent / f"{data.name}.err"
        self._by_make = by_make
        options = [
            *models, "--port", "0", "--data", str(data), "--threads", "1",
            "--operations-port", "0", *arguments,
        ]  # fmt: skip
        command = (
            _by_make(options) if by_make else [sys.executable, "-m", "dsv2", "serve", *options]
        )
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.said: list[str] = []

    def wait(self) -> Running:
        """Until it serves."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if line.startswith("  curl"):
                break
        assert self.said and self.said[-1].startswith("  curl"), self.words
        self.address = self._found(r"serving .* at (http://\S+)")
        self.operations = self._found(r"metrics at (http://\S+)/metrics")
        self.client = httpx.Client(base_url=self.address, timeout=60)
        return self

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, "\n".join(self.said))
        assert found, self.words
        return found[1]

    @property
    def words(self) -> str:
        """All that it has said, for a failing test."""
        return "\n".join([*self.said, self.errors.read_text()])

    @property
    def key(self) -> str:
        """The first administrator's."""
        return self._found(r"shown this once: (sk-\w+)")

    @property
    def curl(self) -> str:
        """The line that it tells to try."""
        return self.said[-1]

    @property
    def pid(self) -> int:
        """Of the server itself."""
        if not self._by_make:
            return self.process.pid
        [server] = _children(self.process.pid)
        return server

    @property
    def engine_pid(self) -> int:
        """Of the engine process."""
        for child in _children(self.pid):
            if b"dsv2.service.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        raise AssertionError("there is no engine process")

    def chat(self, **fields: Any) -> httpx.Response:
        """A chat that is answered whole."""
        body = {"model": "pocket", "messages": PROMPT, "temperature": 0} | fields
        return self.client.post("/v1/chat/completions", json=body)

    @contextmanager
    def streaming(self, **fields: Any) -> Iterator[Iterator[Any]]:
        """The events of a chat, decoded; ``[DONE]`` as it is."""
        body = {"model": "pocket", "messages": PROMPT, "temperature": 0, "stream": True} | fields
        with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            yield events(answer)

    def crowd(self) -> None:
        """Ask many at a time, so that what is opened once and kept is open, as of the database."""
        with ThreadPoolExecutor(12) as threads:
            answers = threads.map(lambda _: self.chat(max_tokens=1), range(36))
            assert all(answer.status_code == 200 for answer in answers)

    def canary(self) -> str:
        """An answer that must never change."""
        answer = self.chat(max_tokens=24)
        assert answer.status_code == 200, (answer.text, self.words)
        return str(answer.json()["choices"][0]["message"]["content"])

    def gauge(self, name: str) -> float:
        """A metric of the engine."""
        text = httpx.get(self.operations + "/metrics", timeout=10).text
        found = re.search(rf"^dsv2_{name}{{model=\"pocket\"}} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def check_idle(self) -> None:
        """Soon nothing is under way, and every block of the cache is free."""
        until(
            lambda: (
                self.gauge("engine_running") == self.gauge("engine_waiting") == 0
                and self.gauge("engine_free_blocks") == self.gauge("engine_total_blocks")
            ),
            5.0,
        )

    def stop(self, seconds: float = 60.0) -> int:
        """End it as a service manager does; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self) -> None:
        """Whatever happened, leave nothing behind."""
        if self._by_make:
            for server in _children(self.process.pid):
                os.kill(server, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if hasattr(self, "client"):
            self.client.close()


def _by_make(options: Sequence[str]) -> list[str]:
    """The README's first command, where all is installed: who runs the tests has seen to that."""
    done = [f"--assume-old={sys.prefix}/{stamp}" for stamp in (".installed", ".site")]
    choice = [f"VENV={sys.prefix}", f"SERVE={' '.join(options)}"]
    return ["make", "--no-print-directory", f"--directory={ROOT}", *done, "serve", *choice]


def _children(pid: int) -> list[int]:
    """Processes that a process has begun; none once it has ended."""
    try:
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except FileNotFoundError:
        return []


def usage(pid: int) -> tuple[int, float]:
    """Open files and resident MiB of a process."""
    files = len(os.listdir(f"/proc/{pid}/fd"))
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return files, pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def usage_beside_cache(pid: int) -> tuple[int, float]:
    """The same without the engine's cache, whose blocks take memory at their first use."""
    files, resident = usage(pid)
    is_nameless = is_large = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping begins: addresses, rights, offset, device, inode
            is_nameless = len(words) == 5
        elif words[0] == "Size:":
            is_large = int(words[1]) >= 100 * 1024
        elif words[0] == "Rss:" and is_nameless and is_large:
            resident -= int(words[1]) / 1024
    return files, resident


@contextmanager
def running(data: Path, *arguments: str, **more: Any) -> Iterator[Running]:
    """A server that serves, and ends with the block."""
    server = Running(data, *arguments, **more)
    try:
        yield server.wait()
    finally:
        server.end()


def events(answer: httpx.Response) -> Iterator[Any]:
    """The data of server-sent events."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
