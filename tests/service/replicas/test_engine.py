from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from dsv2.engine.request import OverloadedError, RequestError
from dsv2.service.replicas.engine import RayEngine
from dsv2.service.replicas.messages import Beat, Description, Lost, Taken
from dsv2.service.serving import EngineGoneError
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.wire import Batch, Stats, Tokens, Welcome, encode
from tests.service.workers import collect, request, tokens_of, until

exceptions = pytest.importorskip(
    "ray.exceptions", reason="Ray is not installed: pip install 'dsv2[ray]'"
)

# Ray's own, while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TAKEN = Taken("a", 1)
FIRST, LAST = Tokens("r", [7]), Tokens("r", [8], finish_reason="length")
DIED = exceptions.RayActorError()


class Response:
    """A stream that a replica sends, message by message; an exception ends it."""

    def __init__(self, script: list[Any]) -> None:
        self.script, self.was_cancelled = list(script), False
        self.failure: Exception | None = None

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        if not self.script:
            await asyncio.sleep(60)
        message = self.script.pop(0)
        if isinstance(message, Exception):
            self.failure = message
            raise message
        return encode(Batch([message]) if isinstance(message, Tokens) else message)

    def cancel(self) -> None:
        self.was_cancelled = True
        if self.failure is not None:
            raise self.failure  # as Ray does for a request that never reached a replica


class Handle:
    """A deployment whose replicas send what a test says, a script for each call."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.responses = [Response(script) for script in scripts]
        self.calls: list[Response] = []
        self.beats: list[Beat] = []
        self.describe = self.read = self
        self._is_stream = False

    def options(self, **given: Any) -> Any:
        assert given == {"stream": True, "method_name": "generate"}
        handle = self

        class Stream:
            def remote(self, frame: bytes) -> Response:
                handle.calls.append(handle.responses[len(handle.calls)])
                return handle.calls[-1]

        return Stream()

    async def remote(self) -> Any:
        if self._is_stream:
            return [encode(beat) for beat in self.beats]
        self._is_stream = True
        return encode(Description(Welcome("tiny", 10, 20, 3, 1), {}))


def answer(*scripts: list[Any]) -> tuple[list[int], Handle]:
    handle = Handle(*scripts)
    return tokens_of(
        asyncio.run(collect(outputs_of(RayEngine(handle, None), request("r"))))
    ), handle


@pytest.mark.parametrize("loss", [DIED, Lost("killed"), exceptions.ActorDiedError()])
def test_a_replica_lost_before_the_first_token_is_replaced(loss: Any) -> None:
    tokens, handle = answer([TAKEN, loss], [TAKEN, FIRST, LAST])
    assert tokens == [7, 8] and len(handle.calls) == 2
    assert not any(call.was_cancelled for call in handle.calls)


def test_a_request_that_kills_replicas_kills_two() -> None:
    with pytest.raises(EngineGoneError, match="RayActorError"):
        answer([TAKEN, DIED], [TAKEN, DIED])


def test_a_replica_that_was_gone_before_does_not_count() -> None:
    tokens, handle = answer([DIED], [TAKEN, DIED], [DIED], [TAKEN, LAST])
    assert tokens == [8] and len(handle.calls) == 4


def test_a_stream_cut_in_the_middle_is_not_begun_again() -> None:
    for loss in (DIED, Lost("killed"), StopAsyncIteration()):
        handle = Handle([TAKEN, FIRST, loss])
        engine = RayEngine(handle, None)
        found: list[Tokens] = []

        async def act(engine: RayEngine = engine, found: list[Tokens] = found) -> None:
            async for item in outputs_of(engine, request("r")):
                found.append(item)

        with pytest.raises(EngineGoneError):
            asyncio.run(act())
        assert tokens_of(found) == [7] and len(handle.calls) == 1


def test_refusals_are_the_engines_own() -> None:
    from ray.serve.exceptions import BackPressureError

    rejected = Tokens("r", finish_reason="rejected", error="is bad", field="seed")
    with pytest.raises(RequestError, match="seed is bad"):
        answer([TAKEN, rejected])
    full = Tokens("r", finish_reason="rejected", error="full")
    with pytest.raises(OverloadedError, match="full"):
        answer([TAKEN, full])
    with pytest.raises(OverloadedError):
        answer([BackPressureError(3, 3)])


def test_leaving_early_cancels_and_closing_ends_what_is_open() -> None:
    async def act() -> None:
        handle = Handle([TAKEN, FIRST], [TAKEN, FIRST])
        engine = RayEngine(handle, None)
        async with aclosing(outputs_of(engine, request("r"))) as stream:
            await anext(stream)
        await until(lambda: handle.calls[0].was_cancelled)
        waiting = asyncio.create_task(collect(outputs_of(engine, request("s"))))
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(EngineGoneError, match="stopping"):
            await waiting
        assert handle.calls[1].was_cancelled

    asyncio.run(act())


def test_totals_hold_those_of_replicas_that_are_gone() -> None:
    async def act() -> None:
        handle = Handle()
        handle.beats = [
            Beat("a", 1, True, Stats(running=2, generated_tokens=40)),
            Beat("b", 2, False, Stats(running=1, generated_tokens=2)),
        ]
        engine = RayEngine(handle, handle)
        assert not engine.is_healthy
        await engine.start()
        await until(lambda: engine.is_healthy)
        assert (engine.stats.running, engine.stats.generated_tokens) == (3, 42)
        handle.beats = handle.beats[1:]
        await until(lambda: not engine.is_healthy)
        assert (engine.stats.running, engine.stats.generated_tokens) == (1, 42)
        await engine.close()

    asyncio.run(act())
