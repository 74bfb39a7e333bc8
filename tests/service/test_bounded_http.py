"""Hostile bytes before a body, over real sockets (fault F21)."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from dsv2.service.web import bounded_http
from dsv2.service.web.bounded_http import MAX_HEAD, BoundedProtocol
from dsv2.service.web.http import CHUNK

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/chunks":
        return await chunks(scope, receive, send)
    if scope["path"] == "/slow":
        return await slow(scope, receive, send)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """An answer that has begun, and does not end while its client is there."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        continue


async def chunks(scope: Scope, receive: Receive, send: Send) -> None:
    """Writes past ``send``; the last part tells what became of the others."""
    write = scope["extensions"][CHUNK]["write"]
    found = [write(b"too early")]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    found.append(write(b""))
    found += [write(b"%d;" % number) for number in range(100)]
    large = b"x" * (1 << 20)
    while write(large):  # until the client reads too slowly
        found.append(True)
    found.append(write(b"more"))
    await send({"type": "http.response.body", "body": b"|" + repr(found).encode()})
    found.append(write(b"too late"))
    assert found[-1] is False


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.3)


def ask(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes, of bytes that are sent part by part."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        # The server may have had enough before all is sent.
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        return until_closed(connection)


def error_of(answer: bytes) -> dict[str, object]:
    """The error of an answer in OpenAI's shape, whose head says what it is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    names = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
    assert names["content-type"] == "application/json"
    assert names["connection"] == "close"
    assert int(names["content-length"]) == len(body)
    (error,) = json.loads(body).values()
    assert error.keys() == {"message", "type", "param", "code"}
    return dict(error)


def until_closed(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65536):
            found += data
    return found


def test_ordinary_requests_share_a_connection(port: int) -> None:
    filler = b"x-filler: " + b"a" * (MAX_HEAD // 2) + b"\r\n\r\n"
    last = REQUEST + b"Connection: close\r\n" + filler
    answer = ask(port, REQUEST + filler, last, pause=0.05)
    assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "head",
    [b"x-filler: " + b"a" * (10 << 20) + b"\r\n", b"a: b\r\n" * 100_000, b"a" * (2 * MAX_HEAD),
     b"x: " + b"a" * MAX_HEAD + b"\r\n"],
    ids=["large", "many", "without a colon", "just too large"],
)  # fmt: skip
def test_headers_are_bounded(port: int, head: bytes) -> None:
    answer = ask(port, REQUEST + head + b"\r\n")
    assert not answer or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert b"200" not in answer


def test_a_header_without_an_end_is_not_kept(port: int) -> None:
    answer = ask(port, REQUEST, *[b"a" * 16_384] * 64)
    if answer:  # it may be lost where the server closes with bytes unread
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert str(MAX_HEAD) in str(error_of(answer)["message"])


@pytest.mark.usefixtures("impatient")
def test_headers_that_trickle_end_the_connection(port: int) -> None:
    begun = time.monotonic()
    answer = ask(port, *[bytes([byte]) for byte in REQUEST], pause=0.02)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert error_of(answer)["type"] == "timeout_error"
    assert "0.3 s" in str(error_of(answer)["message"])
    assert time.monotonic() - begun < 5


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    assert ask(port) == b""


@pytest.mark.usefixtures("impatient")
def test_the_time_runs_for_each_request(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(REQUEST + b"\r\n")
        answer = b""
        while not answer.endswith(b"ok"):  # head and body may come one by one
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # between requests, it is the keep-alive that counts
        connection.sendall(REQUEST)
        assert until_closed(connection).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
     b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    ids=["TLS", "no address", "version", "chunk", "two lengths", "length and chunks"],
)  # fmt: skip
def test_what_is_no_http_is_refused(port: int, sent: bytes) -> None:
    answer = ask(port, sent)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert error_of(answer)["type"] == "invalid_request_error"


def test_anthropics_addresses_have_their_own_shape(port: int) -> None:
    sent = b"POST /v1/messages?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: y\r\n\r\n"
    answer = ask(port, sent)
    assert answer.startswith(b"HTTP/1.1 400 ")
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("more", [b"", REQUEST + b"\r\n"], ids=["alone", "before another"])
def test_another_answer_is_not_broken_into(port: int, more: bytes) -> None:
    """What is no HTTP behind a request ends the connection, and adds nothing to that one's body."""
    head = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        answer = b""
        while b"begun" not in answer:
            answer += connection.recv(65536)
        connection.sendall(more + b"\x16\x03\x01\r\n\r\n")
        answer += until_closed(connection)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.endswith(b"begun\r\n")  # and no end, which would say that this is all


def test_parts_of_a_body_go_past_send(port: int) -> None:
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    ) as connection:
        connection.request("GET", "/chunks")
        time.sleep(0.3)
        body = connection.getresponse().read()
    text, _, told = body.partition(b"|")
    numbers, _, large = text.rpartition(b";")
    assert numbers.split(b";") == [b"%d" % number for number in range(100)]
    found = ast.literal_eval(told.decode())
    assert found[:2] == [False, False]
    assert found[2:-1] == [True] * (len(found) - 3)
    assert found[-1] is False
    assert large == b"x" * ((len(found) - 103) << 20)
