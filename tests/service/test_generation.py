"""Choices of a request: what is gathered, who goes first, and what waits for how long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import pytest

from dsv2.engine.request import Limits, OverloadedError, Request, SamplingParams
from dsv2.service.inference.generation import AnswerError, Choice, Generation, Piece
from dsv2.service.inference.pace import Pace
from dsv2.service.inference.tool_stream import AnswerReader
from dsv2.service.serving import Canceller, EngineGoneError, Sink
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.wire import Stats, Tokens
from dsv2.tokenizer import special
from tests.service.fakes import FakeTicket, pocket_tokenizer
from tests.service.test_tool_stream import answer_ids

TOKENIZER = pocket_tokenizer()
TOKEN = TOKENIZER.encode("word")[0]
PARAMS = SamplingParams(max_tokens=2000)


class ByHand:
    """An engine whose outputs the test hands over."""

    def __init__(self) -> None:
        self.limits = Limits(vocab_size=8192, max_context=4096)
        self.description, self.is_healthy, self.stats = "by hand", True, Stats()
        self.sinks: dict[str, Sink] = {}
        self.cancelled: list[str] = []
        self.refuses: Exception | None = None

    def submit(self, request: Request, sink: Sink) -> Canceller:
        if self.refuses is not None:
            raise self.refuses
        self.sinks[request.id] = sink
        return lambda: self.cancelled.append(request.id)


def choices(count: int) -> list[Choice]:
    """Answers to one prompt."""
    found: list[Choice] = []
    for index in range(count):
        request = Request(f"r-{index}", (1, 2, 3), PARAMS)
        leader = found[0] if found else None
        found.append(Choice(index, request, AnswerReader(TOKENIZER, PARAMS), leader))
    return found


def run(work: Callable[[ByHand, Generation], Awaitable[None]], count: int = 1) -> ByHand:
    async def main() -> ByHand:
        engine = ByHand()
        generation = Generation(engine, choices(count), FakeTicket("r"))
        await asyncio.wait_for(work(engine, generation), 5)
        generation.close()
        return engine

    return asyncio.run(main())


def output(*, index: int = 0, tokens: int = 1, finish: str | None = None) -> Tokens:
    return Tokens(f"r-{index}", [TOKEN] * tokens, None, finish)


def test_what_nobody_reads_is_one_piece() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        for _ in range(1000):
            engine.sinks["r-0"].put(output())
        assert len(generation.choices[0].waiting.tokens) == 1000  # type: ignore[union-attr]
        (piece,) = await generation.next()
        assert piece.tokens == [TOKEN] * 1000
        assert generation.choices[0].waiting is None
        assert generation.usage.completion_tokens == 1000

    run(work)


def test_others_of_a_prompt_start_when_the_first_has_answered() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        assert list(engine.sinks) == ["r-0"]
        engine.sinks["r-0"].put(output())
        assert list(engine.sinks) == ["r-0", "r-1", "r-2"]
        for index in (1, 2):
            engine.sinks[f"r-{index}"].put(output(index=index, finish="stop"))
        pieces = await generation.next()
        assert [(piece.choice.index, piece.finish) for piece in pieces] == [
            (0, None), (1, "stop"), (2, "stop"),
        ]  # fmt: skip
        assert generation.usage.prompt_tokens == 3
        assert not generation.is_over

    run(work, count=3)


def test_others_start_too_when_the_first_has_failed() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        engine.sinks["r-0"].fail(EngineGoneError("gone"))
        assert list(engine.sinks) == ["r-0", "r-1"]
        with pytest.raises(EngineGoneError):
            await generation.next()

    run(work, count=2)


def test_closing_cancels_all_and_starts_nobody() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        generation.close()
        engine.sinks["r-0"].put(output())
        assert list(engine.sinks) == ["r-0"]

    assert "r-0" in run(work, count=2).cancelled


def test_what_the_engine_does_not_take_is_raised_by_next() -> None:
    async def main() -> None:
        engine = ByHand()
        engine.refuses = OverloadedError("full")
        generation = Generation(engine, choices(2), FakeTicket("r"))
        with pytest.raises(OverloadedError):
            await generation.next()

    asyncio.run(main())


def test_tokens_before_an_error_come_first() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        engine.sinks["r-0"].put(output(tokens=3))
        engine.sinks["r-0"].put(Tokens("r-0", [], finish_reason="error", error="broken"))
        (piece,) = await generation.next()
        assert (len(piece.tokens), piece.finish) == (3, None)
        with pytest.raises(AnswerError, match="broken"):
            await generation.next()

    run(work)


def test_words_behind_a_call_stay_behind_it_however_much_comes_at_once() -> None:
    begin, end = (TOKENIZER.special_ids[name] for name in special.CALLS[:2])
    ids = answer_ids("Before.", ("add", '{"a": 1}')) + TOKENIZER.encode(" Behind.")
    ids += [begin, end]

    async def main(split: int) -> tuple[str, str, int]:
        engine = ByHand()
        reader = AnswerReader(TOKENIZER, PARAMS, tools=True)
        choice = Choice(0, Request("r-0", (1,), PARAMS), reader)
        generation = Generation(engine, [choice], FakeTicket("r"))
        pieces: list[Piece] = []
        for start in range(0, len(ids), split):
            finish = "stop" if start + split >= len(ids) else None
            engine.sinks["r-0"].put(Tokens("r-0", ids[start : start + split], None, finish))
            pieces += await generation.next()
        before = behind = ""
        calls = 0
        for piece in pieces:
            before, behind = (
                (before, behind + piece.text) if calls else (before + piece.text, behind)
            )
            calls += len(piece.calls)
            behind += piece.late
        return before, behind, calls

    told = {asyncio.run(main(split))[:2] for split in (1, 3, 7, len(ids))}
    assert told == {("Before.", " Behind.")}


async def _seconds(waits: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await waits
    return time.perf_counter() - begun


def test_held_pieces_gather_but_for_the_first_and_the_last() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        sink = engine.sinks["r-0"]
        generation.hold(generation.now + 0.2)
        sink.put(output())
        assert await _seconds(generation.next()) < 0.1, "the first waits for nothing"
        generation.hold(generation.now + 0.2)
        sink.put(output())
        waiting = asyncio.ensure_future(generation.next())
        await asyncio.sleep(0.02)
        sink.put(output())
        assert not waiting.done()
        (piece,) = await waiting
        assert len(piece.tokens) == 2
        generation.hold(generation.now + 60)
        sink.put(output())
        waiting = asyncio.ensure_future(generation.next())
        await asyncio.sleep(0)
        sink.put(output(finish="stop"))
        (piece,) = await waiting
        assert (len(piece.tokens), piece.finish) == (2, "stop")

    run(work)


def test_a_relay_gets_what_is_in_the_middle_and_nobody_wakes() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        sink = engine.sinks["r-0"]
        relayed: list[list[Piece]] = []
        generation.relay = relayed.append
        sink.put(output())
        assert not relayed, "nobody waits yet"
        (first,) = await generation.next()
        assert first.is_first
        waiting = asyncio.ensure_future(generation.next())
        await asyncio.sleep(0)
        sink.put(output())
        sink.put(output(tokens=2))
        await asyncio.sleep(0)
        assert [len(one.tokens) for pieces in relayed for one in pieces] == [1, 2]
        assert not waiting.done()
        generation.hold(generation.now + 0.05)
        sink.put(output())
        sink.put(output())
        assert len(relayed) == 2
        await asyncio.sleep(0.1)
        assert [len(one.tokens) for one in relayed[2]] == [2]
        sink.put(output(finish="stop"))
        (last,) = await waiting
        assert last.finish == "stop" and len(relayed) == 3

    run(work)


def test_what_a_relay_raises_ends_its_own_request_alone() -> None:
    async def work(engine: ByHand, generation: Generation) -> None:
        def fail(pieces: list[Piece]) -> None:
            raise RuntimeError("broken")

        engine.sinks["r-0"].put(output())
        await generation.next()
        generation.relay = fail
        waiting = asyncio.ensure_future(generation.next())
        await asyncio.sleep(0)
        engine.sinks["r-0"].put(output())  # the engine's side hears nothing of it
        with pytest.raises(RuntimeError, match="broken"):
            await waiting

    run(work)


def test_a_stop_string_that_a_relay_gets_ends_the_answer() -> None:
    params = SamplingParams(max_tokens=2000, stop=("wordword",))

    async def main() -> None:
        engine = ByHand()
        choice = Choice(0, Request("r-0", (1,), params), AnswerReader(TOKENIZER, params))
        generation = Generation(engine, [choice], FakeTicket("r"))
        relayed: list[Piece] = []
        generation.relay = relayed.extend
        engine.sinks["r-0"].put(Tokens("r-0", TOKENIZER.encode("a")))
        await generation.next()
        generation.hold(generation.now + 60)  # not where a stop string may come
        waiting = asyncio.ensure_future(generation.next())
        await asyncio.sleep(0)
        engine.sinks["r-0"].put(output(tokens=2))
        assert await asyncio.wait_for(waiting, 1) == []
        assert generation.is_over
        assert relayed[-1].finish == "stop"
        assert engine.cancelled == ["r-0"]

    asyncio.run(main())


def test_the_pace_slows_with_the_streams_up_to_a_bound() -> None:
    pace = Pace()

    def longest() -> float:
        moments = [5 + t / 7919 for t in range(4000)]
        waits = [pace.next(now, is_stream=True) - now for now in moments]
        assert min(waits) >= 0.74 * max(waits)
        return max(waits)

    with pace.stream():
        alone = longest()
        assert alone <= 0.005 + 1e-9
        with pace.stream():
            assert longest() == pytest.approx(2 * alone, rel=0.05)
        assert longest() == pytest.approx(alone, rel=0.05)
    assert longest() == pytest.approx(alone, rel=0.05), "as if it were the first"
    crowd = [pace.stream() for _ in range(10_000)]
    for one in crowd:
        one.__enter__()
    assert 0.29 <= longest() <= 0.3 + 1e-9


def test_those_that_wait_go_out_at_the_same_moments() -> None:
    pace = Pace()
    with contextlib.ExitStack() as streams:
        for _ in range(50):
            streams.enter_context(pace.stream())
        moments = {round(pace.next(t / 1000, is_stream=True), 6) for t in range(1000, 1200)}
        assert len(moments) <= 5


def test_outputs_of_an_engine_as_a_generator() -> None:
    async def main() -> None:
        engine = ByHand()
        request = Request("mine", (1,), PARAMS)
        outputs = outputs_of(engine, request)
        first = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        engine.sinks["mine"].put(Tokens("7", [5]))
        assert await first == Tokens("mine", [5])
        engine.sinks["mine"].put(Tokens("7", [6]))
        engine.sinks["mine"].put(Tokens("7", [7], finish_reason="stop"))
        assert [one.tokens for one in [item async for item in outputs]] == [[6, 7]]
        lost = outputs_of(engine, request)
        waiting = asyncio.ensure_future(anext(lost))
        await asyncio.sleep(0)
        engine.sinks["mine"].fail(EngineGoneError("gone"))
        with pytest.raises(EngineGoneError):
            await waiting

    asyncio.run(main())
