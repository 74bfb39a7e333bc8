from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from dsv2 import LLM
from dsv2.engine.request import OverloadedError, Request, RequestError, SamplingParams, Structure
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.process import EXIT_BROKEN, MAX_TO_ENGINE, addresses
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.wire import (
    Batch,
    Logprobs,
    Submit,
    Tokens,
    decode_from_engine,
    encode,
)
from tests.service.workers import (
    ENDLESS,
    FAULTY,
    GREEDY,
    SLOW,
    Worker,
    collect,
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
def worker(tiny_folder: Path) -> Iterator[Worker]:
    with (
        socket_folder() as folder,
        launched(make_options(tiny_folder, folder, max_waiting=16), FAULTY) as worker,
    ):
        yield worker


def run(worker: Worker, test: Any) -> None:
    async def act() -> None:
        async with worker.client() as client:
            await test(client)
            await settled(client)
            assert client.is_healthy

    asyncio.run(act())
    assert worker.process.poll() is None


def test_it_reports_how_it_gets_ready(worker: Worker) -> None:
    phases = [report["phase"] for report in worker.reports]
    assert phases[0] == "importing" and phases[-2:] == ["loading", "ready"]
    seconds = [report["seconds"] for report in worker.reports]
    assert seconds == sorted(seconds)
    assert worker.reports[-1]["text"].startswith("model on cpu")


def test_answers_are_those_of_the_model_in_this_process(worker: Worker, tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, device="cpu", dtype="float32", threads=1)
    params = [
        GREEDY,
        replace(GREEDY, logprobs=3),
        replace(GREEDY, prompt_logprobs=2),
        SamplingParams(max_tokens=30, seed=7, temperature=1.3, top_k=50, top_p=0.9),
        SamplingParams(max_tokens=30, seed=2**63 - 1, presence_penalty=1.0, logit_bias={5: 3.0}),
        SamplingParams(max_tokens=40, seed=3, structure=Structure("regex", "[ab]{3,9}")),
        SamplingParams(max_tokens=40, seed=3, structure=Structure("json_object")),
        replace(GREEDY, stop_token_ids=(4, 5), ignore_eos=False, min_tokens=2),
    ]
    requests = [request(str(n), 5 + 17 * n, one) for n, one in enumerate(params)]
    expected = llm.generate([one.prompt_ids for one in requests], params)

    async def test(client: EngineClient) -> None:
        answers = await asyncio.gather(*(collect(outputs_of(client, one)) for one in requests))
        for items, wanted in zip(answers, expected, strict=True):
            assert tokens_of(items) == list(wanted.token_ids)
            assert items[-1].finish_reason == wanted.finish_reason
            assert all(item.finish_reason is None for item in items[:-1])
            found = [one for item in items for one in item.logprobs or []]
            assert found == [_wired(one) for one in wanted.logprobs or ()]
            scored = items[0].prompt_logprobs
            if wanted.prompt_logprobs is None:
                assert scored is None
            else:
                assert scored == [one and _wired(one) for one in wanted.prompt_logprobs]

    run(worker, test)


def _wired(found: Any) -> Logprobs:
    return Logprobs(found.chosen, list(found.top))


def test_a_cached_prompt_is_told(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        one = request("first", 200, salt="mine")
        assert (await collect(outputs_of(client, one)))[0].cached_tokens == 0
        again = await collect(outputs_of(client, replace(one, id="second")))
        assert again[0].cached_tokens == 192
        other = await collect(outputs_of(client, replace(one, id="third", salt="yours")))
        assert other[0].cached_tokens == 0

    run(worker, test)


def test_stats_count_what_was_done(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        before = client.stats
        await until(lambda: client.stats is not before)
        before = client.stats
        await collect(outputs_of(client, request("counted", 100, salt="counted")))
        await until(lambda: client.stats.steps > before.steps)
        await settled(client)
        after = client.stats
        assert after.generated_tokens - before.generated_tokens == GREEDY.max_tokens
        assert after.prompt_tokens - before.prompt_tokens == 100
        # Two chunks of the prompt, the second of which yields a token, and a step for each other.
        assert after.steps - before.steps == GREEDY.max_tokens + 1
        assert 0 < after.step_seconds - before.step_seconds < 10

    run(worker, test)


@pytest.mark.parametrize("when", ["queued", "prefill", "answering"])
def test_a_cancelled_request_leaves_nothing(worker: Worker, when: str) -> None:
    async def test(client: EngineClient) -> None:
        others = [
            asyncio.create_task(collect(outputs_of(client, slow_request(f"other {n}"))))
            for n in range(8 if when == "queued" else 0)
        ]
        if others:
            await until(lambda: client.stats.running == 8)
        length = 400 if when == "prefill" else 9
        params = replace(ENDLESS, max_tokens=100)
        stream = outputs_of(client, request("gone", length, params, priority=-1))
        if when == "answering":
            for _ in range(3):
                await anext(stream)
            await stream.aclose()
        else:
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.002 if when == "prefill" else 0.05)
            if when == "queued":
                await until(lambda: client.stats.waiting == 1)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            if when == "queued":
                await until(lambda: client.stats.waiting == 0)
                assert client.stats.running == 8
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run(worker, test)


def test_the_gate_names_the_field(worker: Worker) -> None:
    cases = [
        ("temperature", {"temperature": -1.0}),
        ("logprobs", {"logprobs": 100}),
        ("stop_token_ids[0]", {"stop_token_ids": [10**6]}),
        ("logit_bias", {"logit_bias": {-1: 1.0}}),
        ("seed", {"seed": 2**63}),
        ("max_tokens", {"max_tokens": 10**6}),
        ("structure", {"structure": Structure("no such", "")}),
    ]

    async def test(client: EngineClient) -> None:
        good = asyncio.create_task(collect(outputs_of(client, request("good"))))
        for field, params in cases:
            one = request("bad", params=replace(GREEDY, **params))  # type: ignore[arg-type]
            with pytest.raises(RequestError) as caught:
                await collect(outputs_of(client, one))
            assert caught.value.field == field
            assert str(caught.value).count(field) == 1
        for prompt in ((), (-1,), (10**6,), (2**63,)):
            with pytest.raises(RequestError, match="prompt"):
                await collect(outputs_of(client, Request("bad", prompt, GREEDY)))
        assert len(tokens_of(await good)) == GREEDY.max_tokens

    run(worker, test)


def test_a_full_line_is_no_fault_of_the_request(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        streams = [outputs_of(client, request(str(n), params=ENDLESS)) for n in range(8 + 16 + 4)]
        tasks = [asyncio.ensure_future(collect(stream)) for stream in streams]
        await until(lambda: sum(task.done() for task in tasks) >= 4)
        for task in tasks:
            if not task.done():
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        full = [error for error in found if isinstance(error, OverloadedError)]
        assert 4 <= len(full) <= 12 and "16 requests are waiting" in str(full[0])

    run(worker, test)


def test_a_line_full_of_one_tenants_requests_lets_another_in(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        def ask(one: Request) -> asyncio.Task[list[Tokens]]:
            return asyncio.ensure_future(collect(outputs_of(client, one)))

        running = [ask(slow_request(f"running {n}")) for n in range(8)]
        await until(lambda: client.stats.running == 8)
        flood = [ask(slow_request(f"waiting {n}")) for n in range(16)]
        await until(lambda: client.stats.waiting == 16)
        others = [ask(request(f"other {n}", tenant="other")) for n in range(8)]
        await until(lambda: sum(task.done() for task in flood) == 8)
        assert [task.done() for task in flood] == [False] * 8 + [True] * 8  # the newest
        for task in flood[8:]:
            with pytest.raises(OverloadedError, match="others have less in it"):
                await task
        for task in (*running, *flood[:8]):
            task.cancel()
        await asyncio.gather(*running, *flood, return_exceptions=True)
        answers = await asyncio.gather(*others)
        assert [len(tokens_of(one)) for one in answers] == [GREEDY.max_tokens] * 8

    run(worker, test)


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, worker: Worker) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(addresses(worker.options.folder, worker.options.name).requests)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.context.term()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def outputs(self, seconds: float = 5.0) -> list[Tokens]:
        """Those of the next message that has any."""
        while self.socket.poll(int(seconds * 1000)):
            message = decode_from_engine(self.socket.recv())
            if isinstance(message, Batch) and message.outputs:
                return message.outputs
        raise AssertionError("nothing came")

    def last(self) -> Tokens:
        """The first output that ends a request."""
        while True:
            for output in self.outputs():
                if output.finish_reason is not None:
                    return output


def _submit(name: str, tenant: str = "", **params: Any) -> bytes:
    return encode(Submit(name, [3, 4, 5], params, tenant=tenant))


def test_bad_frames_end_their_own_requests_alone(worker: Worker) -> None:
    chance = random.Random(0)
    good = _submit("x", max_tokens=4)
    frames = [b"", b"\xc1", b"\xff" * 100, *(good[:size] for size in range(1, len(good)))]
    frames += [chance.randbytes(chance.randint(1, 300)) for _ in range(200)]
    frames += [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", encode(Batch([])), good * 2]

    async def test(client: EngineClient) -> None:
        async with aclosing(outputs_of(client, slow_request("other"))) as stream:
            await anext(stream)
            with Raw(worker) as raw:
                for frame in frames:
                    raw.send(frame)
                raw.send(b"two", b"frames")
                raw.send(_submit("after", max_tokens=3, temperature=0.0))
                after = await asyncio.to_thread(raw.last)
                assert (after.id, after.finish_reason) == ("after", "length")
                raw.send(_submit("open", SLOW, max_tokens=480, ignore_eos=True))
                await asyncio.to_thread(raw.outputs)
                raw.send(b"\xc1")
                ended = await asyncio.to_thread(raw.last)
                assert (ended.id, ended.finish_reason) == ("open", "error")
            await anext(stream)

    run(worker, test)


def test_a_request_that_cannot_be_read_is_answered(worker: Worker) -> None:
    with Raw(worker) as raw:
        for fields, params, field in (
            ([3, "4", 5], {}, "request"),
            ([3, 2**64 - 1], {"max_tokens": 3}, "prompt[1]"),
            ([3], {"no_such": 1}, "no_such"),
            ([3], {"structure": 5}, "structure"),
            ([3], {"structure": ["regex", "a", "b"]}, "structure"),
            ([3], {"max_tokens": "many"}, "max_tokens"),
            ([3], {"temperature": float("nan")}, "temperature"),
            ([3], {"logit_bias": [1, 2]}, "logit_bias"),
            ([3], {"stop": [["a"]]}, "stop[0]"),
            ([3], {"stop_token_ids": 5}, "stop_token_ids"),
        ):
            raw.send(msgspec.msgpack.encode(["submit", "bad", fields, params]))
            answer = raw.last()
            assert (answer.id, answer.finish_reason, answer.field) == ("bad", "rejected", field)
            assert answer.error
        raw.send(_submit("good", max_tokens=2, ignore_eos=True))
        assert raw.last().finish_reason == "length"


def test_an_id_that_is_in_use_does_not_disturb_its_owner(worker: Worker) -> None:
    with Raw(worker) as raw:
        for _ in range(3):
            raw.send(_submit("same", max_tokens=30, temperature=0.0, ignore_eos=True))
        tokens: list[int] = []
        while True:
            (output,) = raw.outputs()
            tokens += output.tokens
            if output.finish_reason is not None:
                break
        assert output.finish_reason == "length" and len(tokens) == 30


def test_a_huge_frame_is_not_taken(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        with Raw(worker) as raw:
            raw.send(bytes(MAX_TO_ENGINE + 1))
            raw.send(_submit("after", max_tokens=2, ignore_eos=True))
            # Its connection is closed; the others go on.
            assert len(tokens_of(await collect(outputs_of(client, request("other"))))) == 20

    run(worker, test)


def test_the_requests_of_a_peer_that_goes_are_cancelled(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        with Raw(worker) as raw:
            for n in range(12):  # four of them wait in line
                raw.send(_submit(str(n), SLOW, max_tokens=480, ignore_eos=True))
            await until(lambda: client.stats.running == 8)

    run(worker, test)


def test_a_peer_that_reads_late_finds_its_tokens_joined(worker: Worker) -> None:
    async def test(client: EngineClient) -> None:
        stream = outputs_of(client, request("late", params=replace(ENDLESS, logprobs=1)))
        items = [await anext(stream)]
        before = client.stats.steps
        await until(lambda: client.stats.steps > before and client.stats.running == 0)
        items += await collect(stream)
        assert len(items) <= 3
        assert len(tokens_of(items)) == ENDLESS.max_tokens
        assert sum(len(item.logprobs or ()) for item in items) == ENDLESS.max_tokens
        assert items[-1].finish_reason == "length"

    run(worker, test)


@pytest.mark.slow
def test_a_lost_device_ends_the_process_at_once(tiny_folder: Path) -> None:
    """Fault F30: no other step could succeed, and the status says that it did not end well."""

    async def act(worker: Worker) -> list[str | None]:
        async with worker.client() as client:
            streams = [
                collect(outputs_of(client, slow_request("neighbour"))),
                collect(outputs_of(client, request("bad", tenant="loses its device at 3"))),
            ]
            return [items[-1].error for items in await asyncio.gather(*streams)]

    with socket_folder() as folder, launched(make_options(tiny_folder, folder), FAULTY) as worker:
        told = asyncio.run(act(worker))
        assert told == ["the engine failed in a step (AcceleratorError)"] * 2
        assert worker.wait() == EXIT_BROKEN
