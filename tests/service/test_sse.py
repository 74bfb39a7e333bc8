"""Answers on their way: errors, waiting, clients that leave or read slowly."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from dsv2.engine.request import OverloadedError, Request, RequestError
from dsv2.service.inference.sse import Patience
from dsv2.service.serving import EngineGoneError
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.wire import Tokens
from tests.service.asgi import Reply, ask, call, folded
from tests.service.fakes import FakeTicket, Script, Site, Step, make_site, pocket_tokenizer, words

URL = "/v1/chat/completions"
TOKENIZER = pocket_tokenizer()
TOKEN = TOKENIZER.encode("word")[0]


def body(**given: Any) -> dict[str, Any]:
    return {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], **given}


def steps(*given: Step | str) -> Script:
    """A script; a text is one token, ``.`` one that ends the answer."""

    def script(request: Request) -> Iterable[Step]:
        for one in given:
            if isinstance(one, str):
                finish = "stop" if one == "." else None
                yield Tokens(request.id, TOKENIZER.encode(one)[:1], None, finish)
            else:
                yield one

    return script


def endless(request: Request) -> Iterable[Step]:
    while True:
        yield 0.001
        yield Tokens(request.id, [TOKEN])


def is_idle(site: Site) -> bool:
    """Whether nothing is under way and every ticket was closed once."""
    return site.engine.open == 0 and all(len(one.closed) == 1 for one in site.admission.tickets)


# Errors before the first token have their own status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (OverloadedError("9 requests are waiting"), 503, "overloaded"),
        (EngineGoneError("gone"), 503, "engine_unavailable"),
        (RequestError("temperature", "is wrong"), 400, "invalid_request_error"),
        (ValueError("secret"), 500, "server_error"),
        (Tokens("x", finish_reason="rejected", error="no room"), 503, "overloaded"),
        (Tokens("x", finish_reason="rejected", error="logprobs is 99", field="logprobs"), 400,
         "invalid_request_error"),
        (Tokens("x", finish_reason="error", error="numbers are not finite"), 500,
         "numerical_error"),
    ],
)  # fmt: skip
def test_failures_before_the_first_token(
    failure: Step, status: int, code: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site(steps(failure), TOKENIZER)
    reply = ask(site.app, URL, body(stream=stream))
    assert (reply.status, reply.error["code"]) == (status, code)
    assert "secret" not in reply.body.decode()
    assert ("retry-after" in reply.headers) == (status == 503)
    assert reply.is_whole
    ticket = site.admission.tickets[0]
    assert (ticket.noted, ticket.closed) == (None, ["error"])
    assert is_idle(site)


def test_a_structure_that_cannot_be_compiled_is_the_clients_fault() -> None:
    failure = Tokens("x", finish_reason="error", error="regex is not valid: a(")
    reply = ask(make_site(steps(failure), TOKENIZER).app, URL, body(regex="a("))
    assert (reply.status, reply.error["param"]) == (400, "regex")


def test_who_is_not_admitted_gets_nothing() -> None:
    site = make_site(steps("a", "."), TOKENIZER)
    site.admission.refusal = ApiError(429, "Rate limit reached", headers={"Retry-After": "7"})
    for stream in (False, True):
        reply = ask(site.app, URL, body(stream=stream))
        assert (reply.status, reply.headers["retry-after"]) == (429, "7")
        assert reply.error["type"] == "rate_limit_error"
    assert site.engine.requests == []


# Errors later on


def test_an_engine_lost_in_the_middle() -> None:
    """Fault F27: a stream ends with an error and without the mark of a good end."""
    site = make_site(steps("one", "two", EngineGoneError("gone")), TOKENIZER)
    reply = ask(site.app, URL, body(stream=True))
    *chunks, error = reply.events
    assert reply.status == 200
    assert error["error"]["code"] == "engine_unavailable"
    assert folded(chunks)[0]["finish"] == "insufficient_system_resource"
    assert folded(chunks)[0]["content"] == "onetwo"
    noted = site.admission.tickets[0].noted
    assert noted is not None
    assert noted[2] == 2  # what was produced is paid for
    assert site.admission.tickets[0].closed == ["error"]

    reply = ask(site.app, URL, body())
    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")


def test_one_failed_choice_fails_the_request_and_cancels_the_others() -> None:
    def script(request: Request) -> Iterable[Step]:
        if request.id.endswith("-1"):
            return steps("a", Tokens("x", finish_reason="error", error="not finite"))(request)
        return endless(request)

    site = make_site(script, TOKENIZER)
    reply = ask(site.app, URL, body(n=3, max_tokens=100))
    assert reply.status == 500
    assert is_idle(site)
    assert len(site.engine.cancelled) == 2


# Clients that go away


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_ends_the_request(stream: bool, n: int) -> None:
    """Fault F25, before the first byte, in line and in the middle."""

    async def run(script: Script, after: int) -> Site:
        site = make_site(script, TOKENIZER)

        async def leave(reply: Reply) -> bool:
            return len(reply.parts) >= after

        given = body(stream=stream, n=n)
        await asyncio.wait_for(call(site.app, URL, given, leave=leave), 5)
        await asyncio.sleep(0.01)
        return site

    site = asyncio.run(run(steps(60.0), 0))
    assert is_idle(site)
    assert site.admission.tickets[0].noted is None
    assert site.admission.tickets[0].closed == ["cancelled"]
    if stream:
        site = asyncio.run(run(endless, 5))
        assert is_idle(site)
        assert len(site.engine.cancelled) == n
        noted = site.admission.tickets[0].noted
        assert noted is not None
        assert 1 <= noted[2] < 1000


def test_a_server_that_shuts_down_closes_the_ticket() -> None:
    async def run() -> Site:
        site = make_site(steps("a", 60.0), TOKENIZER)
        task = asyncio.create_task(call(site.app, URL, body(stream=True)))
        while not site.engine.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return site

    site = asyncio.run(run())
    assert is_idle(site)
    assert site.admission.tickets[0].closed == ["cancelled"]


# Waiting

QUICK = Patience(keep_alive=0.04, in_line=5.0, slow_reader=5.0)


def test_a_sign_of_life_while_in_line() -> None:
    site = make_site(steps(0.2, "word", "."), TOKENIZER, patience=QUICK)
    reply = ask(site.app, URL, body(stream=True))
    assert reply.body.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert folded(reply.events)[0]["content"] == "word."
    reply = ask(site.app, URL, body())
    assert reply.body.startswith(b"\n\n")
    assert reply.json["choices"][0]["message"]["content"] == "word."
    site = make_site(steps("word", "."), TOKENIZER, patience=QUICK)
    assert b"keep-alive" not in ask(site.app, URL, body(stream=True)).body


def test_an_error_after_a_sign_of_life_stands_in_the_body() -> None:
    site = make_site(steps(0.1, EngineGoneError("gone")), TOKENIZER, patience=QUICK)
    reply = ask(site.app, URL, body())
    assert (reply.status, reply.error["code"]) == (200, "engine_unavailable")
    reply = ask(site.app, URL, body(stream=True))
    assert reply.events[-1]["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_too_long_is_sent_away(stream: bool) -> None:
    site = make_site(steps(60.0), TOKENIZER, patience=Patience(5.0, 0.05, 5.0))
    reply = ask(site.app, URL, body(stream=stream))
    assert (reply.status, reply.error["code"]) == (503, "queue_timeout")
    assert is_idle(site)
    assert len(site.engine.cancelled) == 1


# Slow readers


def test_tokens_that_are_there_already_go_out_together() -> None:
    async def run() -> Reply:
        site = make_site(words(TOKENIZER, "word " * 200), TOKENIZER)

        async def slow(reply: Reply) -> bool:
            await asyncio.sleep(0.01)
            return False

        return await call(site.app, URL, body(stream=True), leave=slow)

    reply = asyncio.run(run())
    assert folded(reply.events)[0]["content"] == "word " * 200
    assert len(reply.events) < 20


def test_a_reader_that_stalls_is_dropped() -> None:
    """Fault F26."""

    def script(request: Request) -> Iterable[Step]:
        while True:
            yield Tokens(request.id, [TOKEN])

    async def run() -> Site:
        site = make_site(script, TOKENIZER, patience=Patience(5.0, 5.0, 0.2))

        async def stall(reply: Reply) -> bool:
            if len(reply.parts) == 3:
                await asyncio.sleep(60)
            return False

        await asyncio.wait_for(call(site.app, URL, body(stream=True), leave=stall), 5)
        return site

    site = asyncio.run(run())
    assert is_idle(site)
    assert site.admission.tickets[0].closed == ["dropped"]


def test_nothing_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = make_site(words(TOKENIZER, "canary-answer"), TOKENIZER)
    ask(site.app, URL, body(messages=[{"role": "user", "content": "canary-prompt"}]))
    assert "canary" not in caplog.text
    assert "sk-test" not in caplog.text


# What is told is paid


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_settled_before_its_last_word(stream: bool) -> None:
    """Fault F49: whoever is told what they have used, has paid for it by then."""
    site = make_site(steps("one", "."), TOKENIZER)
    closed: list[list[str]] = []

    async def look(reply: Reply) -> bool:
        if reply.is_whole:
            closed.append(list(site.admission.tickets[0].closed))
        return False

    reply = ask(site.app, URL, body(stream=stream, stream_options=None), leave=look)
    assert reply.status == 200 and closed == [["stop"]]
    assert is_idle(site)


def test_an_answer_does_not_wait_for_ever_for_its_settlement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dsv2.service.inference.sse._SETTLING", 0.05)
    site = make_site(steps("one", "."), TOKENIZER)

    async def work() -> None:
        told, free = asyncio.Event(), asyncio.Event()

        async def close(self: FakeTicket, finish: str) -> None:
            await free.wait()
            self.closed.append(finish)

        async def look(reply: Reply) -> bool:
            if reply.is_whole:
                told.set()
            return False

        monkeypatch.setattr(FakeTicket, "close", close)
        asking = asyncio.create_task(call(site.app, URL, body(), leave=look))
        await asyncio.wait_for(told.wait(), 10)
        assert site.admission.tickets[0].closed == [] and not asking.done()
        free.set()
        assert (await asking).status == 200

    asyncio.run(work())
    assert is_idle(site)
