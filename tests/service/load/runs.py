"""Runs of the load generator against a scripted server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from dsv2.service.load.client import Ask, Client
from dsv2.service.load.record import Record
from dsv2.service.load.run import Run, closed_loop, open_loop, run_fast
from tests.service.fake_openai import (
    FakeServer,
    Script,
)

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


def listed(server: FakeServer, key: str | None = None) -> list[str]:
    async def main() -> list[str]:
        client = Client(server.url, key=key)
        try:
            return await client.models()
        finally:
            client.close()

    return run_fast(main)
