from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.engine.async_engine import AsyncEngine, EngineDeadError
from dsv2.engine.engine import TokenOutput
from dsv2.engine.request import Request, RequestError

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


@pytest.fixture
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, device="cpu", dtype="float32", max_sequences=4)


@pytest.fixture
def engine(llm: LLM) -> Iterator[AsyncEngine]:
    with AsyncEngine(llm.engine) as running:
        yield running


def request(name: str, length: int = 9, params: SamplingParams = GREEDY) -> Request:
    return Request(name, tuple(range(3, 3 + length)), params)


async def collect(stream: AsyncGenerator[TokenOutput, None]) -> list[int | None]:
    return [output.token async for output in stream]


def settled(engine: AsyncEngine) -> None:
    for _ in range(500):
        stats = engine.stats
        if stats.running == stats.waiting == 0 and stats.free_blocks == stats.total_blocks:
            return
        time.sleep(0.01)
    raise AssertionError(engine.stats)


def test_many_streams_get_what_they_would_alone(llm: LLM, tiny_folder: Path) -> None:
    reference = LLM(tiny_folder, device="cpu", dtype="float32")
    requests = [request(str(n), length=5 + 13 * n) for n in range(10)]
    expected = [list(reference.generate([one.prompt_ids], GREEDY)[0].token_ids) for one in requests]

    async def run() -> list[list[int | None]]:
        with AsyncEngine(llm.engine) as engine:
            return await asyncio.gather(*(collect(engine.stream(one)) for one in requests))

    assert asyncio.run(run()) == expected


def test_leaving_a_stream_cancels_the_request(engine: AsyncEngine) -> None:
    async def run() -> None:
        long = replace(GREEDY, max_tokens=400)
        async with aclosing(engine.stream(request("left", params=long))) as stream:
            async for _ in stream:
                break
        tasks = [
            asyncio.create_task(collect(engine.stream(request(str(n), params=long))))
            for n in range(8)
        ]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await collect(engine.stream(request("after"))) != []

    asyncio.run(run())
    settled(engine)


@pytest.mark.parametrize(("field", "value"), [("temperature", -1.0), ("stop_token_ids", None)])
def test_a_malformed_request_fails_alone(engine: AsyncEngine, field: str, value: Any) -> None:
    async def run() -> None:
        good = asyncio.create_task(collect(engine.stream(request("good"))))
        bad = replace(GREEDY, **{field: value})
        with pytest.raises(RequestError, match=field):
            await collect(engine.stream(request("bad", params=bad)))
        assert len(await good) == GREEDY.max_tokens

    asyncio.run(run())
    assert engine.is_alive


def test_somebody_else_may_cancel_but_only_its_own_reader_ends(engine: AsyncEngine) -> None:
    long = replace(GREEDY, max_tokens=400)

    async def run() -> None:
        task = asyncio.create_task(collect(engine.stream(request("a", params=long))))
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="in use"):
            await collect(engine.stream(request("a")))
        await asyncio.sleep(0.05)
        assert not task.done()  # the reader that was refused has cancelled nothing
        engine.cancel("a")
        tokens = await asyncio.wait_for(task, 10)
        assert 1 < len(tokens) < 400
        assert tokens[-1] is None

    asyncio.run(run())
    settled(engine)


def test_what_nobody_thought_of_fails_alone(
    engine: AsyncEngine, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = llm.engine.add

    def broken(one: Request) -> None:
        if one.id == "bad":
            raise KeyError("nobody thought of this")
        add(one)

    monkeypatch.setattr(llm.engine, "add", broken)

    async def run() -> None:
        good = asyncio.create_task(collect(engine.stream(request("good"))))
        with pytest.raises(KeyError, match="nobody thought"):
            await collect(engine.stream(request("bad")))
        assert len(await good) == GREEDY.max_tokens

    asyncio.run(run())


def test_who_has_to_give_way_may_have_left(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Displaced from a full line and cancelled before the next step."""
    llm = LLM(tiny_folder, device="cpu", dtype="float32", max_sequences=1, max_waiting=2)
    step, free = llm.engine.step, threading.Event()
    monkeypatch.setattr(llm.engine, "step", lambda: (free.wait(10), step())[1])

    async def run(engine: AsyncEngine) -> None:
        def submit(name: str, tenant: str) -> asyncio.Task[list[int | None]]:
            one = replace(request(name), tenant=tenant)
            return asyncio.create_task(collect(engine.stream(one)))

        runs = submit("runs", "a")
        await asyncio.sleep(0.1)  # its step has begun, and hangs
        stays, leaves = submit("stays", "a"), submit("leaves", "a")
        await asyncio.sleep(0)
        other = submit("other", "b")  # the line is full, and tenant a has more in it
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        free.set()
        done = await asyncio.gather(runs, stays, other)
        assert [len(tokens) for tokens in done] == [GREEDY.max_tokens] * 3

    with AsyncEngine(llm.engine) as engine:
        asyncio.run(run(engine))
        assert engine.is_alive


def test_the_heartbeat_goes_on_when_idle_and_stops_with_a_hang(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, free = llm.engine.step, threading.Event()

    def hang() -> list[TokenOutput]:
        free.wait(10)
        return step()

    monkeypatch.setattr(llm.engine, "step", hang)
    with AsyncEngine(llm.engine) as engine:
        time.sleep(1.3)
        assert engine.seconds_since_heartbeat < 1.2

        async def run() -> None:
            task = asyncio.create_task(collect(engine.stream(request("slow"))))
            await asyncio.sleep(1.5)
            assert engine.seconds_since_heartbeat > 1.2
            free.set()
            await task

        asyncio.run(run())
        assert engine.seconds_since_heartbeat < 1.2


def test_a_dead_engine_tells_everybody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> list[TokenOutput]:
        raise MemoryError("no more")

    monkeypatch.setattr(llm.engine, "step", die)
    engine = AsyncEngine(llm.engine)

    async def run() -> None:
        found = await asyncio.gather(
            *(collect(engine.stream(request(str(n)))) for n in range(3)), return_exceptions=True
        )
        assert all(isinstance(error, EngineDeadError) for error in found)
        with pytest.raises(EngineDeadError) as caught:
            await collect(engine.stream(request("late")))
        assert isinstance(caught.value.__cause__, MemoryError)

    asyncio.run(run())
    assert not engine.is_alive
    engine.cancel("0")
    engine.close()


def test_closing_ends_open_streams(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    real = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda: (time.sleep(0.01), real())[1])
    engine = AsyncEngine(llm.engine)

    async def run() -> None:
        long = replace(GREEDY, max_tokens=400)
        task = asyncio.create_task(collect(engine.stream(request("open", params=long))))
        await asyncio.sleep(0.05)  # slowed to 4 s, it cannot have come to its end
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineDeadError):
            await task

    asyncio.run(run())
