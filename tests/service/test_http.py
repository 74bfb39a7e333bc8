"""What surrounds every request."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from starlette.types import Message

from dsv2.service.platform.rates import Limiter
from dsv2.service.serving import Rates
from dsv2.service.web.http import BodyLimit
from tests.service.asgi import ask
from tests.service.fakes import Site, make_site, pocket_tokenizer, words

URL = "/v1/chat/completions"
BODY = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}]}
TOKENIZER = pocket_tokenizer()
KEY = {"authorization": "Bearer sk-test"}


def site(**options: Any) -> Site:
    return make_site(words(TOKENIZER, "Hello"), TOKENIZER, **options)


def test_ids_are_the_servers_own() -> None:
    """Fault F37."""
    made = site()
    sent = {**KEY, "x-request-id": "mine\n" * 3}
    first, second = (ask(made.app, URL, BODY, headers=sent) for _ in range(2))
    ids = {first.headers["x-request-id"], second.headers["x-request-id"]}
    assert len(ids) == 2
    assert all(len(one) == 32 and one.isalnum() for one in ids)
    assert [ticket.request_id for ticket in made.admission.tickets] == [
        first.headers["x-request-id"], second.headers["x-request-id"],
    ]  # fmt: skip
    assert int(first.headers["openai-processing-ms"]) >= 0
    assert "x-request-id" in ask(made.app, "/nope").headers


def test_every_error_has_the_one_shape() -> None:
    made = site()
    found = {
        404: ask(made.app, "/nope"),
        405: ask(made.app, URL, method="GET"),
        400: ask(made.app, URL, b"{"),
        401: ask(made.app, URL, BODY, headers={}),
        415: ask(made.app, URL, BODY, headers={**KEY, "content-type": "text/plain"}),
        413: ask(made.app, URL, BODY, headers={**KEY, "content-length": "9999999"}),
    }
    for status, reply in found.items():
        assert reply.status == status
        assert reply.error["message"]


def test_the_unforeseen_is_500_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = site()

    async def fail(*args: object) -> None:
        raise RuntimeError("secret")

    made.app.state.identify = fail
    reply = ask(made.app, URL, BODY)
    assert reply.status == 500
    assert "secret" not in reply.body.decode()
    assert reply.headers["x-request-id"] in caplog.text


def test_large_and_compressed_bodies_are_refused() -> None:
    """Fault F21."""
    made = site(max_body_bytes=100)
    assert ask(made.app, URL, b"{" + b" " * 100).status == 413
    zipped = {**KEY, "content-encoding": "gzip"}
    assert ask(made.app, URL, BODY, headers=zipped).status == 415
    for length in ("-1", "x", "1" * 30, "²"):
        reply = ask(
            made.app, URL, BODY, headers={**KEY, "content-length": length.encode().decode()}
        )
        assert reply.status in (400, 413)


def test_a_body_of_unknown_length_is_counted() -> None:
    read = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        while (message := await receive())["more_body"]:
            read += len(message["body"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 10, "more_body": True}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": []}
    asyncio.run(BodyLimit(app, limit=55)(scope, receive, send))
    assert (read, sent[0]["status"]) == (50, 413)


def test_a_body_that_trickles_is_given_up() -> None:
    """Fault F21."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def app(scope: object, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "headers": []}
    begun = time.monotonic()
    asyncio.run(BodyLimit(app, seconds=0.1)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert time.monotonic() - begun < 2


def test_waiting_for_the_client_to_leave_has_no_end() -> None:
    async def receive() -> Message:
        if not seen:
            return {"type": "http.request", "body": b"x", "more_body": False}
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    seen: list[Message] = []

    async def app(scope: object, receive: Any, send: Any) -> None:
        seen.append(await receive())
        seen.append(await receive())

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(BodyLimit(app, seconds=0.05)({"type": "http", "headers": []}, receive, send))
    assert [one["type"] for one in seen] == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:80", 200), ("evil.example", 421),
     ("localhost.evil.example", 421), ("", 421), ("[::2]", 421)],
)  # fmt: skip
def test_other_hosts_are_refused(host: str, status: int) -> None:
    """Fault F56."""
    made = site(hosts=("localhost", "[::1]"))
    assert ask(made.app, URL, BODY, headers={**KEY, "host": host}).status == status


def test_other_sites_may_read_nothing_unless_listed() -> None:
    """Fault F62."""
    asked = {**KEY, "origin": "https://evil.example", "access-control-request-method": "POST"}
    for options in ({}, {"origins": ["https://good.example"]}):
        made = site(**options)
        for method in ("OPTIONS", "POST"):
            reply = ask(made.app, URL, BODY, headers=asked, method=method)
            assert "access-control-allow-origin" not in reply.headers
    good = ask(made.app, URL, BODY, headers={**KEY, "origin": "https://good.example"})
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in good.headers
    preflight = {
        "origin": "https://good.example", "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-lang,anthropic-version",
    }  # fmt: skip
    allowed = ask(made.app, URL, headers=preflight, method="OPTIONS").headers
    assert "x-stainless-lang" in allowed["access-control-allow-headers"]


def test_pages_that_may_read_answers_may_read_their_limits() -> None:
    limits = Limiter().enter({"key": Rates(requests_per_minute=9, tokens_per_minute=99)}, 5).headers
    made = site(origins=["https://good.example"])
    reply = ask(made.app, URL, BODY, headers={**KEY, "origin": "https://good.example"})
    read = reply.headers["access-control-expose-headers"].split(", ")
    sent = {name for name in reply.headers if name.startswith(("x-", "openai-"))}
    assert len(limits) == 6
    assert {"x-request-id", "x-ratelimit-limit-requests"} <= sent
    assert {*sent, *limits, "retry-after", "idempotent-replayed"} == set(read)


def test_a_line_of_log_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dsv2.service.access")
    made = site()
    reply = ask(made.app, URL, BODY)
    ask(made.app, "/v1/models/secret name", method="GET")
    ask(made.app, "/nope?key=secret", method="GET")
    lines = [record.__dict__["fields"] for record in caplog.records]
    assert [(line["route"], line["status"]) for line in lines] == [
        (URL, 200), ("/v1/models/{model:path}", 404), (None, 404),
    ]  # fmt: skip
    assert lines[0]["request_id"] == reply.headers["x-request-id"]
    assert lines[0]["account_id"] == "a1"
    assert lines[0]["method"] == "POST"
    assert lines[0]["ms"] >= 0
    assert "secret" not in caplog.text + str(lines)


@pytest.mark.parametrize("came", [b"", b'{"model":'])
def test_a_client_that_leaves_with_its_body_is_no_failure(
    came: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault F25: nobody is there to be answered, and nothing has failed."""
    made, sent = site(), []

    async def work() -> None:
        coming = [{"type": "http.request", "body": came, "more_body": True}] if came else []
        coming.append({"type": "http.disconnect"})

        async def receive() -> Message:
            return coming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": URL, "root_path": "",
            "query_string": b"", "headers": [(b"authorization", b"Bearer sk-test")],
            "server": ("t", 80), "client": ("c", 1), "scheme": "http",
        }  # fmt: skip
        await made.app(scope, receive, send)

    with caplog.at_level(logging.INFO):
        asyncio.run(work())
    assert sent == []
    assert [one.levelname for one in caplog.records if one.levelno > logging.INFO] == []
    assert made.admission.tickets == []
