"""One stream: its times and counts, and every way in which it can fail."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dsv2.service.load.client import Client, ServerError
from dsv2.service.load.report import make_report
from dsv2.service.load.run import Run
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
from tests.service.load.runs import SLACK, answering, closed, listed

DELAY = 0.03


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
    assert 0.5 * DELAY <= record.tpot < DELAY + SLACK / 3
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
        run = closed(server, 4, users=4, timeout=0.8 if kind == "timeout" else 20.0)
    report = make_report(run)
    assert (report.requests, report.successful, report.failures) == (4, 2, {kind: 2})
    assert report.messages[kind]
    assert (report.input_tokens, report.output_tokens, report.chunks) == (10, 4, 4)
    assert report.finish_reasons == {"length": 2}
    for measured in (report.ttft_ms, report.tpot_ms, report.itl_ms):
        assert measured is not None and measured.count == 2
    assert report.e2e_ms is not None and report.e2e_ms.count == 2
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
    with pytest.raises(ServerError, match=r"/v1/models cannot be reached: .*Errno 111"):
        listed(server)


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
        with pytest.raises(ServerError, match=r"HTTP 401: no: \*\*\*") as caught:
            listed(server, key)
        assert caught.value.status == 401
        assert key not in repr(vars(record.__class__)) + str(record)
    with pytest.raises(ValueError, match="characters that no key has") as refused:
        Client("http://localhost", key="a\r\nHost: b")
    assert "Host" not in str(refused.value)


def test_the_clock_is_the_one_of_the_records() -> None:
    before = time.perf_counter()
    (one,) = answering(whole(piece("a"), completion=1))
    assert before < one.due <= one.started < one.ended < time.perf_counter()
