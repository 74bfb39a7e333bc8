"""Two replicas of a tiny model on this machine, one of them killed under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from dsv2 import LLM
from dsv2.engine.request import RequestError, SamplingParams
from dsv2.service.replicas.cluster import Scaling, connected
from dsv2.service.replicas.engine import RayEngine
from dsv2.service.serving import EngineGoneError
from dsv2.service.worker.streams import outputs_of
from tests.service.workers import GREEDY, collect, make_options, request, tokens_of, until

pytest.importorskip("ray", reason="Ray is not installed: pip install 'dsv2[ray]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning",
                               "ignore::FutureWarning", "ignore::UserWarning"),
]  # fmt: skip

LOAD = 80
LONG = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)


def test_replicas_are_one_engine_that_outlives_one_of_them(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(tiny_folder, device="cpu", dtype="float32", threads=1)
    requests = [request(str(n), 5 + 11 * n) for n in range(6)]
    expected = [list(one.token_ids)
                for one in llm.generate([one.prompt_ids for one in requests], GREEDY)]  # fmt: skip

    async def act() -> None:
        options = make_options(tiny_folder, "", max_waiting=2 * LOAD)
        async with (
            connected("local", num_cpus=2, object_store_memory=80 * 2**20) as cluster,
            cluster.deployed("dsv2-test", options, Scaling(2, 2)) as engine,
        ):
            await until(lambda: len(engine.replicas) == 2, 60)
            assert engine.is_healthy and engine.tokenizer_files.keys() >= {"tokenizer.json"}
            answers = await asyncio.gather(*(collect(outputs_of(engine, one)) for one in requests))
            assert [tokens_of(items) for items in answers] == expected
            await _gate(engine)
            await _cancel(engine)
            await _kill_under_load(engine, lambda pid: os.kill(pid, signal.SIGKILL))
            # Those in its line had got nothing, and went on at the other one.
            assert "a request goes to another replica" in caplog.text
            again = await asyncio.gather(*(collect(outputs_of(engine, one)) for one in requests))
            assert [tokens_of(items) for items in again] == expected

    asyncio.run(act())


async def _gate(engine: RayEngine) -> None:
    bad = request("bad", params=replace(GREEDY, temperature=-1.0))
    with pytest.raises(RequestError) as caught:
        await collect(outputs_of(engine, bad))
    assert caught.value.field == "temperature"


async def _cancel(engine: RayEngine) -> None:
    async with aclosing(outputs_of(engine, request("gone", params=LONG))) as stream:
        await anext(stream)
    await until(lambda: engine.stats.running == 0, 10)
    before = engine.stats
    await until(lambda: engine.stats is not before)


async def _kill_under_load(engine: RayEngine, kill: Callable[[int], None]) -> None:
    before = {beat.replica: beat.pid for beat in engine.replicas}
    counts = [0] * LOAD

    async def follow(number: int) -> str:
        async with aclosing(outputs_of(engine, request(f"load {number}", params=LONG))) as stream:
            async for item in stream:
                counts[number] += len(item.tokens)
        return item.finish_reason or ""

    # A replica runs eight sequences at once, and as many wait in its line. Its heartbeat is old
    # when it is read; that some wait in Ray's line says that those of the replicas are full.
    tasks = [asyncio.create_task(follow(number)) for number in range(LOAD)]
    await until(lambda: any(beat.stats.waiting for beat in engine.replicas), 60)
    at_kill = list(counts)
    assert at_kill.count(0) > 2 * 16, "the load is too small for this machine"
    victim = next(beat.replica for beat in engine.replicas if beat.stats.waiting)
    kill(before[victim])
    ends = await _all(tasks)
    for begun, count, end in zip(at_kill, counts, ends, strict=True):
        if isinstance(end, BaseException):
            # Cut off in the middle; nothing that had not begun is lost.
            assert isinstance(end, EngineGoneError), end
            assert count > 0
        else:
            assert (end, count) == ("length", 400)
        if begun == 0:
            assert not isinstance(end, BaseException) or count > 0
    lost = sum(isinstance(end, EngineGoneError) for end in ends)
    assert 1 <= lost < LOAD
    await until(lambda: len(engine.replicas) == 2 and victim not in
                {beat.replica for beat in engine.replicas}, 90)  # fmt: skip
    assert engine.is_healthy


async def _all(tasks: list[asyncio.Task[str]]) -> list[str | BaseException]:
    waits: Awaitable[list[str | BaseException]] = asyncio.gather(*tasks, return_exceptions=True)
    start = time.monotonic()
    found = await asyncio.wait_for(waits, 120)
    assert time.monotonic() - start < 120
    return found
