"""The chat of ``dsv2 serve`` as a process: answers outlive pages, and what there is outlives it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.running import Running, running, until
from tests.service.test_server import check_books

PARAMS = {"temperature": 2.0, "max_tokens": 1500, "seed": 1}


def begin(server: Running, **params: Any) -> tuple[str, str]:
    """Ids of a conversation and of the answer that has begun in it, as a guest."""
    server.client.headers["Origin"] = server.address
    made = server.client.post("/api/chat/conversations", json={"params": PARAMS | params})
    assert made.status_code == 201, (made.text, server.words)
    path = f"/api/chat/conversations/{made.json()['id']}"
    sent = server.client.post(f"{path}/messages", json={"parent_id": None, "content": "Tell me"})
    assert sent.status_code == 201, sent.text
    return path, sent.json()["answer"]["id"]


def follow(server: Running, message: str, start: int = 0) -> Iterator[tuple[str, Any]]:
    path = f"/api/chat/messages/{message}/events?from={start}"
    with server.client.stream("GET", path) as answer:
        assert answer.status_code == 200
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def found(server: Running, path: str) -> Any:
    return server.client.get(path).json()["messages"][1]


@pytest.mark.slow
def test_an_answer_outlives_its_pages_and_its_server(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as server:
        site = server.client.get("/api/site").json()
        assert site["guest"] and site["user"] is None
        path, message = begin(server, max_tokens=40)
        events = follow(server, message)
        first = next(events)[1]["text"]
        events.close()  # the page is closed
        until(lambda: found(server, path)["status"] == "complete", 30.0)
        whole = found(server, path)
        assert whole["content"].startswith(first)
        [*_, (name, done)] = follow(server, message, len(first))
        assert name == "done" and done == whole
        path, message = begin(server)
        events = follow(server, message)
        next(events)
        engine = server.engine_pid
        os.kill(engine, signal.SIGSTOP)  # or it might have ended before the server does
        until(lambda: found(server, path)["content"], 5.0)
        server.process.kill()
        server.process.wait()
        os.kill(engine, signal.SIGCONT)
        with pytest.raises(httpx.TransportError):
            list(events)
    with running(data) as server:
        left = found(server, path)
        assert left["status"] == "failed" and left["failure"]["code"] == "interrupted"
        assert left["content"]
        server.client.headers["Origin"] = server.address
        again = server.client.post(f"/api/chat/messages/{message}/continue")
        assert again.status_code == 200, again.text
        stopped = server.client.post(f"/api/chat/messages/{message}/stop").json()["answer"]
        assert stopped["status"] in ("stopped", "complete")
        assert stopped["content"].startswith(left["content"])
        assert server.stop() == 0


@pytest.mark.slow
def test_sigterm_interrupts_what_does_not_end_in_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data, "--drain-seconds", "0.3") as server:
        path, message = begin(server)
        events = follow(server, message)
        next(events)
        engine = server.engine_pid
        os.kill(engine, signal.SIGSTOP)  # or the answer might end in time
        try:
            server.process.terminate()
            *_, (name, done) = events
        finally:
            os.kill(engine, signal.SIGCONT)
        assert name == "done" and done["failure"]["code"] == "interrupted" and done["content"]
        server.process.wait(30)
    with running(data) as server:
        assert found(server, path) == done
        assert server.stop() == 0
    check_books(data)
