"""Engine processes for tests, and what the tests do with them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dsv2.engine.request import Request, SamplingParams
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.process import WorkerOptions
from dsv2.service.worker.wire import Stats, Tokens

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
ENDLESS = SamplingParams(max_tokens=480, temperature=0.0, ignore_eos=True)
WORKER = "dsv2.service.worker"
FAULTY = "tests.service.faulty_worker"
SLOW = "slow"
IDLE = (sys.executable, "-m", "tests.service.idle_worker")
_ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Of an engine process: one thread, or the tests on two cores fight."""
    paths = [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(one for one in paths if one),
    }


@contextmanager
def socket_folder() -> Iterator[str]:
    """A folder for sockets; pytest's own have paths that are too long for them."""
    with tempfile.TemporaryDirectory(prefix="dsv2-") as folder:
        yield folder


def make_options(model: Path | str, folder: str, **more: Any) -> WorkerOptions:
    """Options for a tiny model."""
    fields: dict[str, Any] = {"dtype": "float32", "device": "cpu", "threads": 1}
    fields |= {"max_sequences": 8, "max_step_tokens": 64, "cache_tokens": 6400}
    return WorkerOptions(model=str(model), folder=folder, **{**fields, **more})


@dataclass
class Worker:
    """A running engine process."""

    process: subprocess.Popen[bytes]
    options: WorkerOptions
    reports: list[dict[str, Any]]

    @asynccontextmanager
    async def client(self, **more: Any) -> AsyncIterator[EngineClient]:
        client = EngineClient(self.options.folder, self.options.name, **more)
        await client.start()
        try:
            await client.wait_ready(10)
            yield client
        finally:
            await client.close()

    def wait(self, seconds: float = 10) -> int:
        return self.process.wait(seconds)


def launch(options: WorkerOptions, module: str = WORKER) -> Worker:
    """Start a process and wait until it serves, or has failed."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(options) + b"\n")
    process.stdin.flush()
    worker = Worker(process, options, [])
    for line in process.stdout:
        worker.reports.append(json.loads(line))
        if worker.reports[-1]["phase"] in ("ready", "failed"):
            break
    return worker


@contextmanager
def launched(options: WorkerOptions, module: str = WORKER) -> Iterator[Worker]:
    """A process for the time of a test or of a module."""
    worker = launch(options, module)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe is not None
            pipe.close()


def request(name: str, length: int = 9, params: SamplingParams = GREEDY, **more: Any) -> Request:
    return Request(name, tuple(range(3, 3 + length)), params, **more)


def slow_request(name: str) -> Request:
    """One that ten seconds are not enough for, of a worker that is `FAULTY`."""
    return request(name, params=ENDLESS, tenant=SLOW)


async def collect(stream: AsyncGenerator[Tokens, None]) -> list[Tokens]:
    return [item async for item in stream]


def tokens_of(items: list[Tokens]) -> list[int]:
    return [token for item in items for token in item.tokens]


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for something to hold; how long it took."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, "it does not come to hold"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


def is_idle(stats: Stats) -> bool:
    """Whether nothing is under way and every block is free."""
    return (
        stats.total_blocks > 0
        and stats.running == stats.waiting == 0
        and stats.free_blocks == stats.total_blocks
    )


async def settled(client: EngineClient) -> None:
    """Wait until the engine has nothing under way, by heartbeats from now on."""
    steps = client.stats
    await until(lambda: client.stats is not steps)
    await until(lambda: is_idle(client.stats))
