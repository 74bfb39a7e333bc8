"""A server that answers as a script says: delays, pieces, errors, disconnects, silence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Until:
    """Wait until so many streams have been asked for in all."""

    streams: int


Step = float | bytes | Until | None
"""Seconds to wait, bytes to send, streams to wait for, or None to hang up."""


@dataclass(frozen=True)
class Script:
    """An answer: its head, then steps. A head of None sends nothing at all."""

    steps: Sequence[Step]
    status: int | None = 200
    kind: str = "text/event-stream; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    is_chunked: bool = True


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def piece(text: str, finish: str | None = None, **more: Any) -> bytes:
    """A chunk of a completion; ``usage`` goes beside the choice, the rest into it."""
    usage = {"usage": more.pop("usage")} if "usage" in more else {}
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish} | more]} | usage)


def said(text: str | None, finish: str | None = None, **delta: Any) -> bytes:
    """A chunk of a chat."""
    return event({"choices": [{"delta": {"content": text} | delta, "finish_reason": finish}]})


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    """The last chunk, which has no choice."""
    details = {"cached_tokens": cached}
    numbers = {"prompt_tokens": prompt, "completion_tokens": completion,
               "total_tokens": prompt + completion, "prompt_tokens_details": details}  # fmt: skip
    return event({"choices": [], "usage": numbers})


DONE = b"data: [DONE]\n\n"


def whole(*steps: Step, prompt: int = 10, completion: int = 0, cached: int = 0) -> Script:
    """``steps``, then an end, the usage and ``[DONE]``."""
    return Script((*steps, piece("", "length"), usage(prompt, completion, cached), DONE))


def refusal(status: int, message: str, **headers: str) -> Script:
    body = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": "c"}})
    return Script((body.encode(),), status, "application/json", dict(headers), is_chunked=False)


class FakeServer:
    """Runs in a thread of its own within ``with``.

    Args:
        script: what to answer to the n-th stream that is asked for.
        models: names that are listed; a script to answer otherwise.
    """

    def __init__(
        self,
        script: Callable[[int, Seen], Script],
        models: Sequence[str] | Script = ("fake",),
    ) -> None:
        self._script, self._models = script, models
        self.seen: list[Seen] = []
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._streams = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=2048)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the connections to be closed

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that leaves early is no fault of the server's.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while await self._exchange(reader, writer):
                    pass
            finally:
                writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(time.perf_counter(), method, path, headers, json.loads(body or b"{}"))
        self.seen.append(seen)
        if path.endswith("/models"):
            script = self._models if isinstance(self._models, Script) else _listing(self._models)
        else:
            script = self._script(self._streams, seen)
            self._streams += 1
        return await self._play(script, writer)

    async def _play(self, script: Script, writer: asyncio.StreamWriter) -> bool:
        if script.status is not None:
            head = f"HTTP/1.1 {script.status} Whatever\r\nContent-Type: {script.kind}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in script.headers.items())
            if script.is_chunked:
                head += "Transfer-Encoding: chunked\r\n"
            elif not any(step is None for step in script.steps):
                size = sum(len(step) for step in script.steps if isinstance(step, bytes))
                head += f"Content-Length: {size}\r\n"
            writer.write(head.encode() + b"\r\n")
        for step in script.steps:
            if step is None:
                await writer.drain()
                return False
            if isinstance(step, Until):
                while self._streams < step.streams:
                    await asyncio.sleep(0.002)
            elif isinstance(step, bytes):
                writer.write(b"%x\r\n%b\r\n" % (len(step), step) if script.is_chunked else step)
                await writer.drain()
            else:
                await asyncio.sleep(step)
        if script.is_chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _listing(names: Sequence[str]) -> Script:
    body = json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()
    return Script((body,), 200, "application/json", is_chunked=False)
