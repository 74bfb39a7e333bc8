"""The load generator against servers whose every delay, piece and fault is scripted."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv2.service.load.arrivals import arrivals
from dsv2.service.load.client import Ask, Client, ServerError
from dsv2.service.load.connection import Address, AddressError
from dsv2.service.load.events import MAX_LINE_BYTES, EventReader, MalformedError, error_message
from dsv2.service.load.prompts import PromptError, Shape, file_prompts, random_prompts
from dsv2.service.load.record import Record
from dsv2.service.load.report import make_report, percentile, save, spread
from dsv2.service.load.run import Run, closed_loop, open_loop, run_fast
from tests.service.fake_openai import (
    DONE,
    FakeServer,
    Script,
    Seen,
    event,
    piece,
    refusal,
    said,
    usage,
    whole,
)

DELAY = 0.03
SLACK = 0.25
"""How much later than it should a busy machine may do something."""


def prompts() -> Iterator[dict[str, Any]]:
    return itertools.repeat({"prompt": [300, 301]})


def closed(server: FakeServer, count: int = 1, users: int = 1, **more: Any) -> Run:
    client_options = {name: more.pop(name) for name in ("key", "timeout") if name in more}
    ask = Ask("fake", more.pop("endpoint", "completions"), 8)

    async def main() -> Run:
        client = Client(server.url, **client_options)
        try:
            return await closed_loop(
                client, ask, prompts(), concurrency=users, requests=count, **more
            )
        finally:
            client.close()

    return run_fast(main, users)


def opened(server: FakeServer, **more: Any) -> Run:
    async def main() -> Run:
        client = Client(server.url)
        try:
            return await open_loop(client, Ask("fake"), prompts(), **more)
        finally:
            client.close()

    return run_fast(main, more.get("requests") or 0)


def answering(script: Script, count: int = 1, **more: Any) -> list[Record]:
    with FakeServer(lambda number, seen: script) as server:
        return closed(server, count, **more).records


# --- one stream ---


def test_times_and_counts_of_a_stream() -> None:
    script = whole(
        0.05, piece("a"), DELAY, piece("b"), DELAY, piece("c"), DELAY, piece("d"), DELAY,
        prompt=7, completion=4, cached=3,
    )  # fmt: skip
    with FakeServer(lambda number, seen: script) as server:
        run = closed(server)
        (seen,) = server.seen
    (record,) = run.records
    assert record.failure is None
    assert (record.status, record.finish_reason) == (200, "length")
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (7, 3, 4)
    assert record.is_counted
    assert len(record.times) == 4
    assert record.headers is not None and record.ttft is not None and record.tpot is not None
    assert record.started <= record.headers < record.times[0] == record.first
    assert 0.05 <= record.ttft < 0.05 + SLACK
    assert record.tpot == pytest.approx((record.times[3] - record.times[0]) / 3)
    # A piece that comes late shortens the next gap, but never all three together by much.
    assert 0.8 * DELAY <= record.tpot < DELAY + SLACK / 3
    assert sum(record.gaps) == pytest.approx(3 * record.tpot)
    assert 0.05 + 4 * DELAY <= record.latency < 0.05 + 4 * DELAY + SLACK
    assert (seen.method, seen.path) == ("POST", "/v1/completions")
    assert seen.body == {
        "model": "fake", "prompt": [300, 301], "max_tokens": 8, "temperature": 0.0,
        "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip
    assert "authorization" not in seen.headers


@pytest.mark.parametrize("how", ["token ids", "usage", "not at all"])
def test_tokens_of_coalesced_chunks(how: str) -> None:
    """Where the chunk itself says how many it holds, else by the whole's count alone."""
    counts, steps = (1, 4, 3), []
    for place, count in enumerate(counts):
        said_so: dict[str, Any] = {}
        if how == "token ids":
            said_so = {"token_ids": list(range(count))}
        elif how == "usage":
            said_so = {"usage": {"completion_tokens": sum(counts[: place + 1])}}
        steps.append(piece("x" * count, **said_so))
    (record,) = answering(whole(*steps, completion=8))
    assert list(record.tokens) == (list(counts) if how != "not at all" else [0, 0, 0])
    assert record.completion_tokens == 8
    report = make_report(Run([record], 0.0, 0.0))
    assert (report.chunks, report.output_tokens) == (3, 8)
    assert report.tokens_per_chunk == pytest.approx(8 / 3)


def test_events_that_come_in_pieces_or_together() -> None:
    whole_answer = piece("a") + b": keep-alive\n\n" + piece("b") + piece("", "stop") + DONE
    cuts = [whole_answer[place : place + 7] for place in range(0, len(whole_answer), 7)]
    for steps in ((whole_answer,), cuts):
        (record,) = answering(Script(tuple(steps)))
        assert record.failure is None
        assert len(record.times) == 2
        # Nobody counted: two chunks stand for two tokens.
        assert (record.completion_tokens, record.is_counted) == (2, False)


def test_a_role_and_a_comment_are_no_first_token() -> None:
    script = Script((
        said("", role="assistant"), b": keep-alive\n\n", 0.1, said("hi"), said(None, "stop"),
        usage(5, 2), DONE,
    ))  # fmt: skip
    with FakeServer(lambda number, seen: script) as server:
        (record,) = closed(server, endpoint="chat").records
        assert server.seen[0].path == "/v1/chat/completions"
    assert record.failure is None
    assert record.ttft is not None and record.ttft >= 0.1
    assert len(record.times) == 1


@pytest.mark.parametrize(
    "delta", [{"reasoning_content": "hm"}, {"tool_calls": [{"index": 0, "function": {}}]}]
)
def test_thoughts_and_calls_are_tokens(delta: dict[str, Any]) -> None:
    script = Script((said(None, **delta), said(None, "tool_calls"), usage(5, 2), DONE))
    (record,) = answering(script, endpoint="chat")
    assert (record.failure, len(record.times)) == (None, 1)


def test_an_answer_without_text_has_a_first_token_if_it_has_tokens() -> None:
    (silent,) = answering(whole(0.05, completion=3))
    assert silent.failure is None
    assert silent.ttft is not None and silent.ttft >= 0.05
    assert silent.tpot is None
    (empty,) = answering(whole(completion=0))
    assert (empty.failure, empty.ttft) == (None, None)


# --- what goes wrong ---

_BROKEN = {
    "HTTP 401": refusal(401, "no such key"),
    "HTTP 429": refusal(429, "Rate limit reached"),
    "error in stream": Script((piece("a"), event({"error": {"message": "engine gone"}}), DONE)),
    "cut off": Script((piece("a"), piece("b"), None)),
    "no answer": Script((None,), status=None),
    "timeout": Script((piece("a"), 30.0)),
    "malformed": Script((piece("a"), b"data: {nonsense\n\n")),
    "finished by 'abort'": Script((piece("a"), piece("", "abort"), DONE)),
}


@pytest.mark.parametrize("kind", _BROKEN)
def test_failures_are_counted_by_kind_and_in_no_latency(kind: str) -> None:
    good = whole(piece("a"), piece("b"), prompt=5, completion=2)
    with FakeServer(lambda number, seen: _BROKEN[kind] if number % 2 else good) as server:
        run = closed(server, 4, timeout=0.4 if kind == "timeout" else 20.0)
    report = make_report(run)
    assert (report.requests, report.successful, report.failures) == (4, 2, {kind: 2})
    assert report.messages[kind]
    assert (report.input_tokens, report.output_tokens, report.chunks) == (10, 4, 4)
    assert report.finish_reasons == {"length": 2}
    for measured in (report.ttft_ms, report.tpot_ms, report.itl_ms, report.e2e_ms):
        assert measured is not None and measured.count == 2
    assert (report.e2e_ms is not None and report.e2e_ms.max < 400) or kind != "timeout"


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        (Script((b"{}",), kind="application/json", is_chunked=False), "malformed", "not a stream"),
        (Script((b"SSH-2.0-OpenSSH\r\n", None), None, is_chunked=False), "malformed", "not HTTP"),
        (Script((piece("a"), DONE)), "cut off", "without a finish_reason"),
        (Script((piece("a"), event([1]))), "malformed", "no piece of an answer"),
        (refusal(500, "\x1b[31mred\nline"), "HTTP 500", " [31mred line"[1:]),
        (Script((b"<html>",), 502, "text/html", is_chunked=False), "HTTP 502", "<html>"),
    ],
)
def test_other_failures_say_what_is_wrong(script: Script, kind: str, message: str) -> None:
    (record,) = answering(script)
    assert record.failure == kind
    assert record.message is not None and message in record.message


def test_a_server_that_is_not_there() -> None:
    with FakeServer(lambda number, seen: whole()) as server:
        pass
    run = closed(server, 2)
    assert [record.failure for record in run.records] == ["no connection"] * 2
    assert make_report(run).e2e_ms is None
    client = Client(server.url)
    with pytest.raises(ServerError, match=r"/v1/models cannot be reached: .*Errno 111"):
        asyncio.run(client.models())


def test_an_answer_that_the_connection_ends() -> None:
    """Good when it said that it has ended, also without chunks and length."""
    steps = (piece("a"), piece("", "stop"), DONE, None)
    for is_chunked in (True, False):
        (record,) = answering(Script(steps, is_chunked=is_chunked))
        assert record.failure is None
    (record,) = answering(Script((*steps[:1], None), is_chunked=False))
    assert record.failure == "cut off"


def test_the_key_is_sent_and_never_shown() -> None:
    key = "sk-very-secret"

    def script(number: int, seen: Seen) -> Script:
        assert seen.headers["authorization"] == f"Bearer {key}"
        return refusal(401, f"the key {key} is unknown")

    with FakeServer(script, refusal(401, f"no: {key}")) as server:
        (record,) = closed(server, key=key).records
        assert record.message == "the key *** is unknown"
        client = Client(server.url, key=key)
        with pytest.raises(ServerError, match=r"HTTP 401: no: \*\*\*") as caught:
            asyncio.run(client.models())
        assert caught.value.status == 401
        assert key not in repr(vars(record.__class__)) + str(record)
    with pytest.raises(ValueError, match="characters that no key has") as refused:
        Client("http://localhost", key="a\r\nHost: b")
    assert "Host" not in str(refused.value)


# --- arrivals ---


def test_a_closed_loop_asks_when_an_answer_has_ended() -> None:
    with FakeServer(lambda number, seen: whole(0.02, piece("a"), completion=1)) as server:
        report = make_report(closed(server, 20, users=4))
        assert server.connections == 4  # each used for five requests
    assert (report.successful, report.peak_concurrency) == (20, 4)
    assert 5 * 0.02 <= report.duration_s < 5 * 0.02 + 2 * SLACK
    assert report.request_throughput == pytest.approx(20 / report.duration_s)


def test_no_connection_is_used_that_the_server_means_to_close() -> None:
    script = Script((piece("a", "stop"), DONE), headers={"Connection": "close"})
    with FakeServer(lambda number, seen: script) as server:
        assert make_report(closed(server, 3)).successful == 3
        assert server.connections == 3


def test_a_time_ends_a_closed_loop_after_the_answers_under_way() -> None:
    with FakeServer(lambda number, seen: whole(0.05, piece("a"), completion=1)) as server:
        run = closed(server, None, users=2, seconds=0.12)  # type: ignore[arg-type]
    assert all(record.failure is None for record in run.records)
    assert 4 <= len(run.records) <= 6
    assert max(record.started for record in run.records) - run.start < 0.12 + 0.02


def test_an_open_loop_waits_for_no_answer() -> None:
    answer = 0.6
    with FakeServer(lambda number, seen: whole(answer, piece("a"), completion=1)) as server:
        run = opened(server, rate=200.0, seed=3, requests=20)
        came = [seen.time for seen in server.seen]
    due = list(itertools.islice(arrivals(200.0, 3), 20))
    assert [record.due - run.start for record in run.records] == pytest.approx(due)
    assert came[-1] - came[0] < answer  # all had come before the first was answered
    report = make_report(run)
    assert (report.successful, report.peak_concurrency) == (20, 20)
    assert report.latest_start_ms == pytest.approx(
        1e3 * max(record.started - record.due for record in run.records)
    )
    # The fast event loop's timers count in whole milliseconds.
    assert all(record.started > record.due - 0.002 for record in run.records)


def test_all_at_once_and_none_lost() -> None:
    with FakeServer(lambda number, seen: whole(0.5, piece("a"), completion=1)) as server:
        report = make_report(opened(server, rate=float("inf"), requests=200))
    assert (report.successful, report.failures) == (200, {})
    assert report.peak_concurrency == 200


def test_an_open_loop_ends_after_a_time() -> None:
    with FakeServer(lambda number, seen: whole(completion=1)) as server:
        run = opened(server, rate=100.0, seconds=0.2)
        expected = len(list(itertools.takewhile(lambda due: due < 0.2, arrivals(100.0, 0))))
        assert len(run.records) == expected > 5
        with pytest.raises(ValueError, match="needs a number of requests"):
            opened(server, rate=float("inf"), seconds=1.0)


def test_arrivals_are_a_poisson_process_by_seed() -> None:
    due = np.array(list(itertools.islice(arrivals(50.0, 1), 4000)))
    gaps = np.diff(due, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.08)  # exponential: as long as the mean
    assert (gaps > 1 / 50).mean() == pytest.approx(np.exp(-1), abs=0.03)
    assert list(itertools.islice(arrivals(50.0, 1), 3)) == due[:3].tolist()
    assert next(arrivals(50.0, 2)) != due[0]
    assert list(itertools.islice(arrivals(float("inf"), 0), 3)) == [0.0, 0.0, 0.0]
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"rate is {rate}"):
            arrivals(rate, 0)


# --- prompts ---


def test_random_prompts_have_the_lengths_and_ids_asked_for() -> None:
    shape = Shape(tokens=20, spread=0.5, prefix=6, vocab_size=600, seed=4)
    drawn = [one["prompt"] for one in itertools.islice(random_prompts(shape, "completions"), 300)]
    lengths = {len(ids) - 6 for ids in drawn}
    assert (min(lengths), max(lengths)) == (10, 30)
    assert len({tuple(ids[:6]) for ids in drawn}) == 1
    assert len({tuple(ids[6:12]) for ids in drawn}) == 300
    assert all(256 <= token < 600 for ids in drawn for token in ids)
    assert next(random_prompts(shape, "completions"))["prompt"] == drawn[0]
    (message,) = next(random_prompts(Shape(tokens=9), "chat"))["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 9
    tiny = next(random_prompts(Shape(tokens=50, vocab_size=8), "completions"))["prompt"]
    assert set(tiny) <= set(range(4, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"spread": 1.0}, "spread is 1.0"),
        ({"spread": float("nan")}, "spread is nan"),
        ({"prefix": -1}, "prefix is -1"),
        ({"vocab_size": 1}, "vocab_size is 1"),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Shape(**fields)


def test_prompts_of_a_file_go_round(tmp_path: Path) -> None:
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("one\n\n{2}\n", "utf-8")
    found = file_prompts(text, "completions")
    assert [next(found)["prompt"] for _ in range(3)] == ["one", "{2}", "one"]
    chat = [{"role": "user", "content": "hi"}]
    lines.write_text(
        "\n".join(json.dumps(one) for one in (chat, {"messages": chat}, "text", {"prompt": "p"})),
        "utf-8",
    )
    found = file_prompts(lines, "chat")
    assert [next(found)["messages"][0]["content"] for _ in range(4)] == ["hi", "hi", "text", "p"]
    lines.write_text('{"prompt": [5, 6]}\n', "utf-8")
    assert next(file_prompts(lines, "completions")) == {"prompt": [5, 6]}


@pytest.mark.parametrize(
    ("content", "endpoint", "message"),
    [
        (b"\n\n", "chat", "has no prompts"),
        (b'"a"\n{', "chat", "line 2: "),
        (b"[7]", "chat", "line 1: allowed are text and messages"),
        (b'[{"role": "user"}]', "completions", "messages are for --endpoint chat"),
        (b"{}", "completions", "allowed are text and lists of token ids"),
        (b"\xff", "completions", "not UTF-8"),
    ],
)
def test_files_without_prompts(tmp_path: Path, content: bytes, endpoint: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        file_prompts(path, endpoint)


# --- report ---


def record(number: int, started: float, times: list[float], ended: float, **more: Any) -> Record:
    own = Record(number, started - 0.001 * number, started, times=array("d", times), ended=ended)
    own.first = times[0] if times else None
    own.is_counted = True
    own.finish_reason = "stop"
    for name, value in more.items():
        setattr(own, name, value)
    return own


def test_every_figure_of_a_report(tmp_path: Path) -> None:
    records = [
        record(0, 1.0, [1.2, 1.3, 1.5], 1.6, prompt_tokens=10, completion_tokens=4,
               cached_tokens=8),
        record(1, 1.1, [1.5], 2.0, prompt_tokens=20, completion_tokens=1, finish_reason="length",
               is_counted=False),
        record(2, 1.2, [1.25, 9.0], 3.0, prompt_tokens=99, completion_tokens=99, failure="x",
               message="first"),
        record(3, 2.0, [], 2.1, failure="x", message="second", is_counted=False),
    ]  # fmt: skip
    run = Run(records, 0.5, 0.5)
    report = make_report(run)
    assert (report.requests, report.successful, report.failures) == (4, 2, {"x": 2})
    assert report.messages == {"x": "first"}
    assert report.finish_reasons == {"stop": 1, "length": 1}
    assert report.duration_s == pytest.approx(2.0)  # 1.0 to 3.0
    assert (report.input_tokens, report.cached_tokens, report.output_tokens) == (30, 8, 5)
    assert (report.chunks, report.tokens_per_chunk, report.uncounted) == (4, 1.25, 1)
    assert report.request_throughput == pytest.approx(1.0)
    assert report.output_throughput == pytest.approx(2.5)
    assert report.total_throughput == pytest.approx(17.5)
    assert report.peak_concurrency == 3  # the fourth is sent when the second has just ended
    assert report.latest_start_ms == pytest.approx(3.0)
    assert report.client_cpu == pytest.approx(0.25)
    assert report.ttft_ms is not None and report.e2e_ms is not None
    assert (report.ttft_ms.count, report.ttft_ms.mean) == (2, pytest.approx(300))
    assert (report.ttft_ms.median, report.ttft_ms.max) == pytest.approx((300, 400))
    assert (report.ttft_ms.p90, report.ttft_ms.p99) == pytest.approx((380, 398))
    assert report.tpot_ms is not None and report.itl_ms is not None
    assert (report.tpot_ms.count, report.tpot_ms.mean) == (1, pytest.approx(100))
    assert (report.itl_ms.count, report.itl_ms.mean) == (2, pytest.approx(150))
    assert report.e2e_ms.mean == pytest.approx(750)
    target = tmp_path / "run.json"
    save(target, run, {"model": "m", **report.to_dict()})
    content = json.loads(target.read_text("utf-8"))
    assert (content["model"], content["ttft_ms"]["count"]) == ("m", 2)
    first, _, _, last = content["records"]
    assert (first["started"], first["first"], first["ended"]) == (0.5, 0.7, 1.1)
    assert first["chunks"] == [0.7, 0.8, 1.0]
    assert (last["failure"], last["message"], last["first"]) == ("x", "second", None)


def test_nothing_measured_is_no_figure() -> None:
    report = make_report(Run([], 0.0, 0.0))
    assert (report.requests, report.output_throughput, report.ttft_ms) == (0, 0.0, None)
    assert json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count).tolist()
    for share in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0):
        assert percentile(sorted(values), share) == pytest.approx(np.quantile(values, share))
    found = spread([*values, None])
    assert found is not None
    assert found.count == count
    assert found.mean == pytest.approx(1e3 * np.mean(values))
    assert (found.p95, found.max) == pytest.approx(
        (1e3 * np.quantile(values, 0.95), 1e3 * max(values))
    )


# --- the wire ---


def test_events_are_cut_anywhere() -> None:
    text = b': hi\r\n\r\nevent: x\r\ndata: {"a":\r\ndata:1}\r\n\r\nid: 7\n\ndata: [DONE]\n\nda'
    expected = [b'{"a":\n1}', b"[DONE]"]
    for size in range(1, len(text)):
        reader, found = EventReader(), []
        for place in range(0, len(text), size):
            found += reader.feed(text[place : place + size])
        assert found == expected
    reader = EventReader()
    assert reader.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(MalformedError, match="a line is longer"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "m", "code": 1}}', "m"),
        (b'{"error": "Unauthorized"}', "Unauthorized"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"object": "error", "code": 4}', '{"object": "error", "code": 4}'),
        (b"\xff plain", "\ufffd plain"),
    ],
)
def test_errors_in_the_shapes_of_several_servers(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_addresses() -> None:
    address = Address.parse("http://localhost:8000")
    assert (address.host, address.port, address.base) == ("localhost", 8000, "/v1")
    address = Address.parse("https://[::1]/some/v1/")
    assert (address.host, address.port, address.base) == ("::1", 443, "/some/v1")
    assert (address.authority, address.is_secure) == ("[::1]", True)
    for url in ("localhost:8000", "ftp://a", "http://", "http://a:port", "http://u:p@a",
                "http://a?b=c", "http://a b"):  # fmt: skip
        with pytest.raises(AddressError, match="url"):
            Address.parse(url)


def test_the_clock_is_the_one_of_the_records() -> None:
    before = time.perf_counter()
    (one,) = answering(whole(piece("a"), completion=1))
    assert before < one.due <= one.started < one.ended < time.perf_counter()
