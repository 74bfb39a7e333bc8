"""What attackers send to a server that runs (faults F24, F63 and F64)."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dsv2.service.load.client import Ask, Client
from dsv2.service.load.run import Run, open_loop, run_fast
from tests.service.running import Running, running, until, usage
from tests.service.test_server import check_books

STREAMS, TOKENS = 1000, 4

# Writes down every address that Python connects to or asks a name server for.
HOOK = """
import os, sys

def note(event, arguments):
    if event == "socket.getaddrinfo":
        address = repr(arguments[0])
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        address = repr(arguments[1])
    else:
        return
    with open(os.environ["DSV2_TEST_CALLS"], "a") as calls:
        calls.write(f"{event} {address}\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The addresses that the server's processes ask for, a line each."""
    return tmp_path_factory.mktemp("calls") / "calls"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, calls: Path) -> Iterator[Running]:
    hook = calls.parent / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(hook))
        patch.setenv("DSV2_TEST_CALLS", str(calls))
        folder = tmp_path_factory.mktemp("hostile") / "data"
        small = ("--cache-tokens", "4096", "--max-waiting", "300")
        with running(folder, *small, "--alias", "gpt-4=pocket") as one:
            subprocess.run(
                [sys.executable, "-c", "import socket; socket.getaddrinfo('localhost', 1)"],
                check=True,
            )
            assert "getaddrinfo 'localhost'" in calls.read_text(), "the hook does not hear"
            calls.write_text("")
            yield one


def storm(address: str) -> Run:
    """Streams that all begin at once."""

    async def main() -> Run:
        client = Client(address, timeout=300)
        bodies = ({"prompt": [1000 + n, *range(40)]} for n in range(STREAMS))
        ask = Ask("pocket", max_tokens=TOKENS)
        try:
            return await open_loop(client, ask, bodies, rate=float("inf"), requests=STREAMS)
        finally:
            client.close()

    return run_fast(main, STREAMS)


@pytest.mark.slow
def test_a_thousand_streams_at_once(server: Running) -> None:
    """Fault F24: whole answers or plain refusals, in bounded memory, and nothing stays.

    Another tenant has its answers meanwhile, though there was a long line before it came.
    """
    before = server.canary()
    storm(server.address)  # what is reserved once is reserved then
    server.check_idle()
    pids = (server.process.pid, server.engine_pid)
    used = [usage(pid) for pid in pids]
    key = {"Authorization": f"Bearer {server.key}"}
    body = {"model": "pocket", "prompt": "x", "max_tokens": TOKENS}
    others: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        flood = threads.submit(storm, server.address)
        # Full it is for moments that a busy server may not show.
        until(lambda: server.gauge("engine_waiting") >= 200, 60.0)
        while not flood.done() and server.gauge("engine_waiting") >= 100:
            answer = server.client.post("/v1/completions", json=body, headers=key)
            others.append(answer.status_code)
        records = flood.result().records
    assert len(others) >= 3 and set(others) == {200}
    assert len(records) == STREAMS
    refused = [one for one in records if one.status in (429, 503)]
    answered = [one for one in records if one.failure is None]
    assert len(refused) + len(answered) == STREAMS, [one.message for one in records][:9]
    assert all(one.completion_tokens == TOKENS for one in answered)
    assert len(answered) >= 300, "the line was full before it was long"
    assert refused, "the line had no end"
    server.check_idle()
    for pid, (files, memory) in zip(pids, used, strict=True):
        files_now, memory_now = usage(pid)
        assert files_now <= files + 5
        assert memory_now < memory + 100
    assert server.canary() == before
    check_books(server.data)


REMOTE = "http://attacker.example/x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": REMOTE}}]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [
            {"type": "file", "file": {"file_url": REMOTE}}]}]}),
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"$ref": REMOTE}}}}),
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"$schema": REMOTE, "$id": REMOTE, "type": "object"}}}}),
        ("chat/completions", {"model": REMOTE}),
        ("chat/completions", {"model": "attacker.example/model"}),
        ("chat/completions", {"base_url": REMOTE, "webhook": REMOTE, "callback_url": REMOTE}),
        ("completions", {"prompt": "x", "model": REMOTE}),
        ("responses", {"input": [{"role": "user", "content": [
            {"type": "input_image", "image_url": REMOTE}]}]}),
        ("messages", {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": REMOTE}}]}]}),
    ],
)  # fmt: skip
def test_no_request_makes_the_server_ask_another_one(
    server: Running, calls: Path, path: str, fields: dict[str, object]
) -> None:
    """Fault F63: neither process looks up or connects to anything."""
    usual: dict[str, object] = {"model": "pocket", "max_tokens": 2}
    if path == "chat/completions":
        usual["messages"] = [{"role": "user", "content": "Hi"}]
    if path == "responses":
        usual.pop("max_tokens")
    answer = server.client.post(f"/v1/{path}", json=usual | fields)
    assert answer.status_code in (200, 400, 404, 422), answer.text
    assert calls.read_text() == ""


def files_of(folder: Path) -> set[str]:
    """Its files, without the journals that come and go."""
    return {str(one) for one in folder.rglob("*") if "sqlite-" not in one.name}


SECRETS = ("root:", "sqlite", "dsv2.db")


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd",
     "/static/../../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd",
     "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v1/models/....//....//etc/passwd",
     "/v1/models/%00", "/v1/models/pocket%00.txt", "//etc/passwd", "/%5c..%5c..%5cetc%5cpasswd"],
)  # fmt: skip
def test_no_address_leaves_the_service(server: Running, path: str) -> None:
    """Fault F64."""
    # httpx would tidy the path up.
    host = server.address.removeprefix("http://")

    connection = http.client.HTTPConnection(host, timeout=20)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    assert answer.status in (400, 401, 404, 405), text
    assert not any(secret in text for secret in SECRETS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "~/.ssh", "file:///etc/passwd"]
)
def test_no_name_is_a_path(server: Running, name: str) -> None:
    """Fault F64."""
    before = files_of(server.data)
    for field in ("model", "user", "suffix"):
        body = {"model": "pocket", "prompt": "x", "max_tokens": 1} | {field: name}
        answer = server.client.post(
            "/v1/completions", json=body, headers={"Idempotency-Key": f"{name} {field}"}
        )
        assert answer.status_code in (200, 400, 404), answer.text
        assert not any(secret in json.dumps(answer.json()) for secret in SECRETS)
    assert files_of(server.data) == before
