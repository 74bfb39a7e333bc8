"""Replicas of a tiny model on this machine: a second under load, and one killed under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsv2 import LLM
from dsv2.engine.request import RequestError, SamplingParams
from dsv2.service.replicas.cluster import Scaling, connected
from dsv2.service.replicas.engine import RayEngine, _Call
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
AT_ONCE = 8
"""Sequences that a replica computes at once; as many more wait in its line."""
LONG = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)


def test_replicas_are_one_engine_that_outlives_one_of_them(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny_folder, device="cpu", dtype="float32", threads=1)
    requests = [request(str(n), 5 + 11 * n) for n in range(6)]
    expected = [list(one.token_ids)
                for one in llm.generate([one.prompt_ids for one in requests], GREEDY)]  # fmt: skip

    calls: list[_Call] = []

    class Watched(_Call):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            calls.append(self)

    monkeypatch.setattr("dsv2.service.replicas.engine._Call", Watched)

    async def act() -> None:
        options = make_options(tiny_folder, "", max_sequences=AT_ONCE, max_waiting=2 * LOAD)
        async with (
            connected("local", num_cpus=2, object_store_memory=80 * 2**20) as cluster,
            # Once there are two, there are two for as long as this lasts: Ray waits ten minutes
            # before it ends one.
            cluster.deployed(
                "dsv2-test", options, Scaling(1, 2, target=2, grow_seconds=1.0)
            ) as engine,
        ):
            await _grow(engine)
            assert engine.is_healthy and engine.tokenizer_files.keys() >= {"tokenizer.json"}
            answers = await asyncio.gather(*(collect(outputs_of(engine, one)) for one in requests))
            assert [tokens_of(items) for items in answers] == expected
            await _gate(engine)
            await _cancel(engine)
            calls.clear()
            await _kill_under_load(engine, calls)
            # Those in its line had got nothing, and went on at the other one.
            assert caplog.text.count("a request goes to another replica") >= AT_ONCE
            again = await asyncio.gather(*(collect(outputs_of(engine, one)) for one in requests))
            assert [tokens_of(items) for items in again] == expected

    asyncio.run(act())


async def _grow(engine: RayEngine) -> None:
    """Under load a second replica begins, and meanwhile everything is answered."""
    await until(lambda: len(engine.replicas) == 1, 60)
    answers: list[int] = []

    async def ask(number: int) -> None:
        while len(engine.replicas) < 2:
            one = request(f"grow {number}", params=LONG)
            answers.append(len(tokens_of(await collect(outputs_of(engine, one)))))

    await asyncio.wait_for(asyncio.gather(*map(ask, range(2 * AT_ONCE))), 90)
    assert len(answers) >= 2 * AT_ONCE and set(answers) == {LONG.max_tokens}


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


async def _kill_under_load(engine: RayEngine, calls: list[_Call]) -> None:
    victim, other = engine.replicas
    counts = [0] * LOAD

    async def follow(number: int) -> str:
        async with aclosing(outputs_of(engine, request(f"load {number}", params=LONG))) as stream:
            async for item in stream:
                counts[number] += len(item.tokens)
        return item.finish_reason or ""

    # While the engines stand still the lines of both replicas fill up, however fast the machine
    # is; then the victim begins as many as it can compute at once, and dies over their first steps.
    # An engine that is silent for five seconds would count as hung.
    deadline = time.monotonic() + 4.0
    with _stopped(other.pid):
        with _stopped(victim.pid):
            tasks = [asyncio.create_task(follow(number)) for number in range(LOAD)]
            await until(lambda: sum(call.was_taken for call in calls) >= 4 * AT_ONCE, 3.0)
        await until(lambda: any(counts), max(0.5, deadline - time.monotonic()))
        at_kill = list(counts)
        os.kill(victim.pid, signal.SIGKILL)
    assert 1 <= LOAD - at_kill.count(0) <= AT_ONCE
    ends = await _all(tasks)
    for count, end in zip(counts, ends, strict=True):
        if isinstance(end, BaseException):
            # Cut off in the middle; nothing that had not begun is lost.
            assert isinstance(end, EngineGoneError), end
            assert count > 0
        else:
            assert (end, count) == ("length", LONG.max_tokens)
    lost = sum(isinstance(end, EngineGoneError) for end in ends)
    assert 1 <= lost <= AT_ONCE
    await until(lambda: len(engine.replicas) == 2 and victim.replica not in
                {beat.replica for beat in engine.replicas}, 90)  # fmt: skip
    assert engine.is_healthy


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """The engine of a replica stands still; both may be gone at the end."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            children += [int(one) for one in path.read_text().split()]
    assert children, f"the replica {pid} has no engine"
    try:
        for child in children:
            os.kill(child, signal.SIGSTOP)
        yield
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)


async def _all(tasks: list[asyncio.Task[str]]) -> list[str | BaseException]:
    waits: Awaitable[list[str | BaseException]] = asyncio.gather(*tasks, return_exceptions=True)
    start = time.monotonic()
    found = await asyncio.wait_for(waits, 120)
    assert time.monotonic() - start < 120
    return found
