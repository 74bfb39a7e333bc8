from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv2.engine.request import OverloadedError, Request, RequestError
from dsv2.service.serving import Engine, EngineGoneError
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.process import MAX_TO_ENGINE, WorkerOptions
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.supervisor import Patience, Supervisor
from dsv2.service.worker.wire import Stats
from tests.service.workers import (
    ENDLESS,
    FAULTY,
    GREEDY,
    IDLE,
    Worker,
    collect,
    environment,
    launch,
    launched,
    make_options,
    request,
    settled,
    slow_request,
    socket_folder,
    tokens_of,
    until,
)


@pytest.fixture(scope="module")
def faulty(tiny_folder: Path) -> Iterator[Worker]:
    with socket_folder() as folder, launched(make_options(tiny_folder, folder), FAULTY) as worker:
        yield worker


def run(worker: Worker, test: Any, **more: Any) -> None:
    async def act() -> None:
        async with worker.client(**more) as client:
            await test(client)
            await settled(client)
            assert client.is_healthy

    asyncio.run(act())
    assert worker.process.poll() is None


def test_it_is_an_engine_that_describes_itself(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        engine: Engine = client
        assert engine.description.startswith("model on cpu")
        assert (engine.limits.vocab_size, engine.limits.max_context) == (512, 512)

    run(faulty, test)


def test_without_an_engine_it_says_so() -> None:
    async def act(folder: str) -> None:
        client = EngineClient(folder)
        assert not client.is_healthy and client.stats.total_blocks == 0
        with pytest.raises(EngineGoneError):
            await collect(outputs_of(client, request("early")))
        await client.start()
        with pytest.raises(EngineGoneError, match="not up after"):
            await client.wait_ready(0.3)
        with pytest.raises(EngineGoneError):
            _ = client.limits
        with pytest.raises(EngineGoneError):
            await collect(outputs_of(client, request("early")))
        assert not client.is_healthy
        await client.close()

    with socket_folder() as folder:
        asyncio.run(act(folder))


def test_a_request_that_cannot_be_added_fails_alone(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        good = asyncio.create_task(collect(outputs_of(client, request("good"))))
        (bad,) = await collect(outputs_of(client, request("bad", tenant="fails when added")))
        assert (bad.finish_reason, bad.tokens) == ("error", [])
        assert bad.error == "the engine could not take the request (KeyError)"
        assert len(tokens_of(await good)) == GREEDY.max_tokens

    run(faulty, test)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_step_that_fails_ends_what_was_in_it(faulty: Worker, at: int) -> None:
    async def test(client: EngineClient) -> None:
        expected = tokens_of(await collect(outputs_of(client, request("alone"))))
        streams = [outputs_of(client, slow_request(f"with it {n}")) for n in range(7)]
        for stream in streams:
            await anext(stream)
        bad = asyncio.create_task(
            collect(outputs_of(client, request("bad", tenant=f"fails at {at}")))
        )
        later = [
            asyncio.create_task(collect(outputs_of(client, request(f"in line {n}"))))
            for n in range(3)
        ]
        items = await bad
        assert tokens_of(items) == expected[:at]
        assert items[-1].error == "the engine failed in a step (MemoryError)"
        for stream in streams:
            assert (await collect(stream))[-1].finish_reason == "error"
        for one in later:
            assert tokens_of(await one) == expected

    run(faulty, test)


def test_a_long_step_is_no_hang_until_it_is_one(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        # Two clients who are not equally patient look at the same step of 1.5 seconds.
        async with faulty.client(hang_after=0.5, silent_after=2.0) as hasty:
            slow = request("slow", tenant="dawdles at 1", params=replace(GREEDY, max_tokens=3))
            patient = asyncio.create_task(collect(outputs_of(client, slow)))
            start = time.monotonic()
            with pytest.raises(EngineGoneError, match="in one step"):
                await collect(outputs_of(hasty, request("fast", params=ENDLESS)))
            assert 0.4 < time.monotonic() - start < 1.5
            assert not hasty.is_healthy and client.is_healthy
            with pytest.raises(EngineGoneError, match="in one step"):
                await collect(outputs_of(hasty, request("again")))
            assert len(tokens_of(await patient)) == 3
            await until(lambda: hasty.is_healthy, 2.0)
            await settled(hasty)  # what it had given up does not go on
            assert len(tokens_of(await collect(outputs_of(hasty, request("again"))))) == 20

    run(faulty, test)


def test_a_slow_reader_holds_one_item_and_misses_nothing(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        expected = tokens_of(await collect(outputs_of(client, request("fast", params=ENDLESS))))
        stream = outputs_of(client, request("slow", params=ENDLESS))
        items = [await anext(stream)]
        while items[-1].finish_reason is None:
            await asyncio.sleep(0.05)
            items.append(await anext(stream))
        assert tokens_of(items) == expected
        assert len(items) < 240
        assert [item async for item in stream] == []

    run(faulty, test)


def test_only_streams_that_are_left_early_are_cancelled(
    faulty: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    real = EngineClient._cancel

    def cancel(self: EngineClient, ids: list[str]) -> None:
        cancelled.extend(ids)
        real(self, ids)

    monkeypatch.setattr(EngineClient, "_cancel", cancel)

    async def test(client: EngineClient) -> None:
        await collect(outputs_of(client, request("whole")))
        unread = outputs_of(client, request("ended but not read"))
        await anext(unread)
        await until(lambda: not client._sinks)
        await unread.aclose()
        with pytest.raises(RequestError):
            await collect(outputs_of(client, request("refused", params=replace(GREEDY, top_p=2.0))))
        await outputs_of(client, request("never begun")).aclose()
        assert cancelled == []
        left = outputs_of(client, slow_request("left"))
        await anext(left)
        await left.aclose()
        task = asyncio.create_task(collect(outputs_of(client, slow_request("task"))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(cancelled) == 2

    run(faulty, test)


def test_requests_of_one_id_do_not_meet(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        first = outputs_of(client, slow_request("one"))
        await anext(first)
        second = await collect(outputs_of(client, request("one", 30)))
        assert {item.id for item in second} == {"one"} and len(tokens_of(second)) == 20
        await anext(first)
        await first.aclose()
        assert tokens_of(await collect(outputs_of(client, request("one", 30)))) == tokens_of(second)

    run(faulty, test)


def test_what_cannot_be_sent_is_refused_here(faulty: Worker) -> None:
    async def test(client: EngineClient) -> None:
        for bad in (
            Request("bad", (2**70,), GREEDY),
            Request("bad", (3,), replace(GREEDY, seed=2**70)),
            Request("bad", (3,), replace(GREEDY, stop=(object(),))),  # type: ignore[arg-type]
            Request("bad", (3,), GREEDY, salt="\ud800"),
            Request("bad", (3,) * (MAX_TO_ENGINE + 1), GREEDY),
        ):
            with pytest.raises(RequestError):
                await collect(outputs_of(client, bad))

    run(faulty, test)


def test_closing_the_client_ends_its_streams(faulty: Worker) -> None:
    async def act() -> None:
        async with faulty.client() as client:
            stream = outputs_of(client, slow_request("open"))
            await anext(stream)
        with pytest.raises(EngineGoneError, match="stopping"):
            await collect(stream)

    asyncio.run(act())


@pytest.mark.parametrize("cause", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_the_process_is_known_at_once(cause: signal.Signals) -> None:
    # The end of a process is noticed by itself, long before its silence would be.
    silent = 1.0 if cause == signal.SIGSTOP else 60.0

    async def act(folder: str) -> None:
        supervisor = Supervisor(
            WorkerOptions(model="serves", folder=folder),
            patience=Patience(silent=silent, first_delay=0.05),
            command=IDLE,
        )
        client = EngineClient(folder, silent_after=silent)
        await client.start()
        await supervisor.start()
        for restarts in (0, 1):
            await supervisor.wait_ready()
            await client.wait_ready(5)
            assert supervisor.restarts == restarts and client.is_healthy
            streams = [outputs_of(client, request(str(n))) for n in range(10)]
            for stream in streams:
                assert (await anext(stream)).tokens == [5]
            waiting = asyncio.gather(*(collect(one) for one in streams), return_exceptions=True)
            await asyncio.sleep(0.05)
            assert supervisor.pid is not None
            os.kill(supervisor.pid, cause)
            start = time.monotonic()
            found = await waiting
            assert time.monotonic() - start < 5.0
            assert all(isinstance(error, EngineGoneError) for error in found)
            assert not client.is_healthy
            with pytest.raises(EngineGoneError):
                await collect(outputs_of(client, request("late")))
            await until(lambda: supervisor.state != "ready", 2.0)
        await supervisor.stop()
        await client.close()

    with socket_folder() as folder:
        asyncio.run(act(folder))


def test_the_last_words_of_a_process_are_heard() -> None:
    async def act(folder: str) -> None:
        supervisor = Supervisor(WorkerOptions(model="goodbye", folder=folder), command=IDLE)
        client = EngineClient(folder)
        await client.start()
        await supervisor.start()
        await client.wait_ready(10)
        stream = outputs_of(client, request("last"))
        items = [await anext(stream)]
        time.sleep(0.5)  # the answer and the end of the process are found at one time
        items += await collect(stream)
        assert tokens_of(items) == [5] * 101 + [6]
        await supervisor.stop()
        await client.close()

    with socket_folder() as folder:
        asyncio.run(act(folder))


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["SIGKILL", "SIGSTOP", "exits at 3", "breaks all", "hangs at 3"])
def test_streams_end_and_the_next_process_serves(tiny_folder: Path, cause: str) -> None:
    patience = Patience(hang=1.5, silent=1.5, first_delay=0.05)

    async def act(folder: str) -> None:
        supervisor = Supervisor(
            make_options(tiny_folder, folder),
            patience=patience,
            command=(sys.executable, "-m", FAULTY),
        )
        client = EngineClient(folder, hang_after=1.5, silent_after=1.5)
        await supervisor.start()
        await client.start()
        await supervisor.wait_ready()
        await client.wait_ready(5)
        expected = tokens_of(await collect(outputs_of(client, request("before"))))
        first = supervisor.pid
        assert first is not None
        streams = [outputs_of(client, slow_request(str(n))) for n in range(4)]
        for stream in streams:
            await anext(stream)
        start = time.monotonic()
        if cause.startswith("SIG"):
            os.kill(first, signal.Signals[cause])
        else:
            streams.append(outputs_of(client, request("cause", tenant=cause)))
        ends = await asyncio.gather(*(collect(one) for one in streams), return_exceptions=True)
        assert time.monotonic() - start < 3.0
        if cause == "breaks all":
            assert all(isinstance(one, list) and one[-1].finish_reason == "error" for one in ends)
        else:
            assert all(isinstance(one, EngineGoneError) for one in ends)
        await until(lambda: not client.is_healthy, 2.0)
        await until(lambda: supervisor.state == "restarting", 3.0)
        await supervisor.wait_ready()
        await client.wait_ready(5)
        assert (supervisor.restarts, supervisor.pid != first) == (1, True)
        assert tokens_of(await collect(outputs_of(client, request("before")))) == expected
        assert client.is_healthy
        await settled(client)
        assert await supervisor.stop(1.0) == 0
        await client.close()

    with socket_folder() as folder:
        asyncio.run(act(folder))


def there(stats: Stats) -> int:
    return stats.running + stats.waiting


@pytest.mark.slow
def test_a_long_drain_ends_every_answer(tiny_folder: Path) -> None:
    async def act(worker: Worker) -> None:
        async with worker.client() as client:
            tasks = [
                asyncio.create_task(collect(outputs_of(client, request(str(n), params=ENDLESS))))
                for n in range(50)
            ]
            await until(lambda: there(client.stats) + sum(one.done() for one in tasks) >= 50)
            worker.process.terminate()
            await asyncio.sleep(0.3)
            with pytest.raises((OverloadedError, EngineGoneError)):
                await collect(outputs_of(client, request("late")))
            for items in await asyncio.gather(*tasks):
                assert items[-1].finish_reason == "length"
                assert len(tokens_of(items)) == ENDLESS.max_tokens
            await until(lambda: not client.is_healthy, 2.0)

    with socket_folder() as folder, launched(make_options(tiny_folder, folder)) as worker:
        asyncio.run(act(worker))
        assert worker.wait() == 0


@pytest.mark.slow
def test_a_short_drain_cuts_answers_off(tiny_folder: Path) -> None:
    async def act(worker: Worker) -> None:
        async with worker.client() as client:
            slow = request("slow", params=ENDLESS, tenant="dawdles at 3")
            tasks = [
                asyncio.create_task(collect(outputs_of(client, one)))
                for one in (slow, *(request(str(n), params=ENDLESS) for n in range(20)))
            ]
            await until(lambda: client.stats.running > 0)
            worker.process.terminate()
            told = []
            for task in tasks:
                try:
                    items = await task
                    assert items[-1].finish_reason == "error"
                    told.append(items[-1].error)
                except OverloadedError as error:  # read only after the signal, and refused
                    told.append(str(error))
            assert tasks[0].exception() is None, "it was under way"
            assert told == ["the engine is stopping; try again later"] * 21

    options = {"drain_seconds": 0.2}
    with (
        socket_folder() as folder,
        launched(make_options(tiny_folder, folder, **options), FAULTY) as worker,
    ):
        asyncio.run(act(worker))
        assert worker.wait() == 3


PARENT = """
import os, sys, time
from tests.service.workers import launch, make_options
worker = launch(make_options(sys.argv[1], sys.argv[2]), "tests.service.faulty_worker")
print(worker.process.pid, flush=True)
if sys.argv[3] == "kill":
    os.kill(os.getpid(), 9)
worker.process.stdin.close()
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "close the pipe"])
@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_with_its_parent(tiny_folder: Path, how: str, busy: bool) -> None:
    async def act(folder: str, parent: subprocess.Popen[bytes], pid: int) -> None:
        if busy:
            client = EngineClient(folder)
            await client.start()
            await client.wait_ready(5)
            hung = asyncio.create_task(
                collect(outputs_of(client, request("hung", tenant="hangs at 1")))
            )
            await asyncio.sleep(0.3)
        assert parent.stdin is not None
        parent.stdin.close()  # now it may
        await until(lambda: _has_ended(pid), 3.0)
        if busy:
            with pytest.raises(EngineGoneError):
                await hung
            await client.close()

    with socket_folder() as folder:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.replace("if sys", "sys.stdin.read()\nif sys", 1),
             str(tiny_folder), folder, how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert parent.stdout is not None
        try:
            pid = int(parent.stdout.readline())
            asyncio.run(act(folder, parent, pid))
        finally:
            parent.kill()
            parent.wait()
            parent.stdout.close()


def _has_ended(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text.rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"model": "/no/such/folder"}, 2, "/no/such/folder"),
        ({"dtype": "float7"}, 2, "dtype is 'float7'"),
        ({"max_step_tokens": 0, "max_sequences": 0}, 2, ""),
        ({"cache_tokens": 10**12}, 1, "cache"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_line(
    tiny_folder: Path, fields: dict[str, Any], status: int, reason: str
) -> None:
    with socket_folder() as folder:
        options = make_options(**({"model": tiny_folder, "folder": folder, "pull": False} | fields))
        worker = launch(options)
        assert worker.wait() == status
        assert worker.reports[-1]["phase"] == "failed"
        assert reason in worker.reports[-1]["text"] and "\n" not in worker.reports[-1]["text"]
        for pipe in (worker.process.stdin, worker.process.stdout):
            assert pipe is not None
            pipe.close()
