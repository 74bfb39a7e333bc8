"""A client without sockets: whole answers, events, and one that goes away or reads slowly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from tests.service.fakes import HEADERS


@dataclass
class Reply:
    """What came back."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    is_whole: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events' values; ``[DONE]`` as text. Everything sent must be events or comments."""
        found: list[Any] = []
        *blocks, end = self.body.decode().split("\n\n")
        assert end == ""
        for block in blocks:
            if block.startswith(": "):
                continue
            assert block.startswith("data: ")
            data = block.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.json) == {"error"}
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def named(self) -> list[tuple[str, Any]]:
        """The events of a stream whose events have names; comments are left out."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if block and not block.startswith(": "):
                name, data = block.split("\n")
                assert name.startswith("event: ") and data.startswith("data: ")
                found.append((name.removeprefix("event: "), json.loads(data[6:])))
        return found


OnPart = Callable[[Reply], Awaitable[bool]]


async def call(
    app: FastAPI, path: str, body: Any = None, *, headers: dict[str, str] | None = None,
    method: str = "POST", leave: OnPart | None = None,
) -> Reply:  # fmt: skip
    """One request.

    Args:
        leave: awaited after each part of the body; True means that the client goes away.
    """
    raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent = {"content-type": "application/json", **(HEADERS if headers is None else headers)}
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "root_path": "", "scheme": "http", "server": ("t", 80), "client": ("c", 1),
        "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
    }  # fmt: skip
    reply, gone, first = Reply(), asyncio.Event(), True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": raw, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if gone.is_set():
            return
        if message["type"] == "http.response.start":
            assert reply.status == 0
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        assert reply.status
        reply.parts.append(message.get("body", b""))
        reply.is_whole = not message.get("more_body", False)
        if leave is not None and await leave(reply):
            gone.set()

    if leave is not None and await leave(reply):
        gone.set()
    await app(scope, receive, send)
    return reply


def ask(app: FastAPI, path: str, body: Any = None, **options: Any) -> Reply:
    """:func:`call` in a loop of its own."""
    return asyncio.run(call(app, path, body, **options))


def folded(events: list[Any]) -> dict[int, dict[str, Any]]:
    """What a chat's events make when they are put together, by choice."""
    out: dict[int, dict[str, Any]] = {}
    for event in events:
        if event == "[DONE]":
            continue
        for choice in event["choices"]:
            answer = out.setdefault(
                choice["index"], {"content": "", "calls": [], "finish": None, "logprobs": []}
            )
            assert answer["finish"] is None
            delta = choice["delta"]
            answer["content"] += delta.get("content", "")
            for piece in delta.get("tool_calls", ()):
                if "id" in piece:
                    assert piece["index"] == len(answer["calls"])
                    answer["calls"].append([piece["function"]["name"], ""])
                answer["calls"][piece["index"]][1] += piece["function"].get("arguments", "")
            if choice["logprobs"]:
                answer["logprobs"] += choice["logprobs"]["content"]
            answer["finish"] = choice["finish_reason"]
    return out
