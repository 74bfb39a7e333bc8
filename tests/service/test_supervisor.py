from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dsv2.service.worker.process import WorkerOptions
from dsv2.service.worker.supervisor import Patience, Supervisor
from tests.service.workers import IDLE, socket_folder, until

QUICK = Patience(ready=20.0, silent=1.0, restarts=2, first_delay=0.05, longest_delay=0.1)


@pytest.fixture
def folder() -> Iterator[str]:
    with socket_folder() as folder:
        yield folder


@asynccontextmanager
async def supervised(folder: str, act: str, **more: Any) -> AsyncIterator[Supervisor]:
    more = {"patience": QUICK, "command": IDLE} | more
    supervisor = Supervisor(WorkerOptions(model=act, folder=folder), **more)
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop(0.0)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("act", ["serves", "chatters"])
def test_it_starts_and_stops_a_process(folder: str, act: str) -> None:
    async def run() -> None:
        async with supervised(folder, act) as supervisor:
            assert (supervisor.state, supervisor.progress) == ("starting", None)
            await supervisor.wait_ready()
            assert supervisor.state == "ready" and supervisor.restarts == 0
            assert supervisor.progress is not None and supervisor.progress.phase == "ready"
            pid = supervisor.pid
            assert pid is not None and os.getpgid(pid) == pid != os.getpgid(0)
            assert os.listdir(folder) != []
            assert await supervisor.stop() == 0
            assert is_gone(pid)
            assert (supervisor.state, supervisor.pid, os.listdir(folder)) == ("stopped", None, [])

    asyncio.run(run())


@pytest.mark.parametrize("cause", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_is_replaced(
    folder: str, cause: signal.Signals
) -> None:
    async def run() -> None:
        async with supervised(folder, "serves") as supervisor:
            await supervisor.wait_ready()
            first = supervisor.pid
            assert first is not None
            os.kill(first, cause)
            await until(lambda: supervisor.state == "restarting", 3.0)
            await supervisor.wait_ready()
            assert is_gone(first)
            assert supervisor.pid != first and supervisor.restarts == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("act", "restarts", "reason"),
    [
        ("ends 1", 2, "the engine process has ended with status 1"),
        ("ends 0", 2, "the engine process has ended with status 0"),
        ("fails 1", 2, "it was told to"),
        ("fails 2", 0, "it was told to"),
    ],
)
def test_a_process_that_always_fails_is_given_up(
    folder: str, act: str, restarts: int, reason: str
) -> None:
    heard: list[str] = []

    async def run() -> None:
        async with supervised(folder, act, on_failed=heard.append) as supervisor:
            await until(lambda: supervisor.state == "failed")
            assert supervisor.restarts == restarts
            assert supervisor.failure == reason and heard == [reason]
            with pytest.raises(RuntimeError, match=reason):
                await supervisor.wait_ready()

    asyncio.run(run())


def test_failures_long_ago_are_forgotten(folder: str) -> None:
    async def run() -> None:
        patience = Patience(restarts=1, window=0.2, first_delay=0.01)
        async with supervised(folder, "ends 1", patience=patience) as supervisor:
            await until(lambda: supervisor.restarts > 2)

    asyncio.run(run())


def test_delays_grow_and_are_bounded(folder: str) -> None:
    patience = Patience(restarts=4, first_delay=1.0, longest_delay=3.0)
    supervisor = Supervisor(WorkerOptions(model="", folder=folder), patience=patience)
    assert [supervisor._delay() for _ in range(5)] == [1.0, 2.0, 3.0, 3.0, None]


def test_a_process_that_is_never_ready_is_killed(folder: str) -> None:
    async def run() -> None:
        patience = Patience(ready=0.5, restarts=0)
        async with supervised(folder, "never", patience=patience) as supervisor:
            await until(lambda: supervisor.pid is not None)
            pid = supervisor.pid
            assert pid is not None
            await until(lambda: supervisor.state == "failed")
            assert supervisor.failure == "the engine process was not ready after 0.5 s"
            assert is_gone(pid)

    asyncio.run(run())


def test_a_process_that_does_not_stop_is_killed(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv2.service.worker.supervisor._GRACE", 0.3)

    async def run() -> None:
        async with supervised(folder, "stubborn") as supervisor:
            await supervisor.wait_ready()
            start = time.monotonic()
            assert await supervisor.stop(0.1) == -signal.SIGKILL
            assert time.monotonic() - start < 2

    asyncio.run(run())


def test_it_can_be_stopped_at_any_time(folder: str) -> None:
    async def run() -> None:
        for seconds in (0.0, 0.02, 0.1):
            async with supervised(folder, "never") as supervisor:
                await asyncio.sleep(seconds)
                pid = supervisor.pid
                await supervisor.stop(0.0)
                assert supervisor.state == "stopped" and supervisor.pid is None
                assert pid is None or is_gone(pid)
        patience = Patience(first_delay=60.0, longest_delay=60.0)
        async with supervised(folder, "ends 1", patience=patience) as supervisor:
            await until(lambda: supervisor.state == "restarting")
            await supervisor.stop()
            assert supervisor.state == "stopped"

    monkeyed = pytest.MonkeyPatch()
    with monkeyed.context() as patch:
        patch.setattr("dsv2.service.worker.supervisor._GRACE", 0.1)
        asyncio.run(run())


def test_what_cannot_be_started_says_so(folder: str) -> None:
    async def run() -> None:
        missing = (str(Path(folder) / "no such program"),)
        async with supervised(folder, "serves", command=missing) as supervisor:
            await until(lambda: supervisor.state == "failed")
            assert "no such program" in str(supervisor.failure)
        os.chmod(folder, 0o755)
        with pytest.raises(ValueError, match="mode 755"):
            await Supervisor(WorkerOptions(model="", folder=folder)).start()
        with pytest.raises(ValueError, match="folder"):
            await Supervisor(WorkerOptions(model="", folder=folder + "/none")).start()
        with pytest.raises(ValueError, match="name"):
            await Supervisor(WorkerOptions(model="", folder=folder, name="../up")).start()
        with pytest.raises(ValueError, match="bytes long"):
            await Supervisor(WorkerOptions(model="", folder=folder, name="n" * 99)).start()

    asyncio.run(run())
