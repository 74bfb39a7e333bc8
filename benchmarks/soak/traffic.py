"""Clients that ask without an end, each by dice of its own, and write down what they are told."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.soak.books import Account, Heard
from benchmarks.soak.life import MODEL
from dsv2.service.platform.identify import SessionCookie
from dsv2.service.store.prices import Usage

WORDS = ("What is", "17 + 25", "the sun", "and then", "a long way", "home", "who said", "never")
BEGINNING = "Once more, from the very beginning, slowly and as clearly as anybody can. " * 3
"""Long enough to be found in the prefix cache."""
CANARY = {"model": MODEL, "prompt": "One, two, three", "max_tokens": 12, "temperature": 0}
_PAUSE = 0.02
"""Seconds before somebody tries again."""


class CutError(Exception):
    """The answer has broken off, or there was none that counts; it may be asked for again."""


@dataclass
class Answer:
    """One that came to its end."""

    status: int
    body: dict[str, Any]
    content: bytes
    is_replayed: bool

    @property
    def request_id(self) -> str:
        """The request that has computed it, which for one that was sent again is the first."""
        return str(self.body["id"]).partition("-")[2]

    @property
    def usage(self) -> Usage:
        """As the client is told."""
        found = self.body["usage"]
        cached = found["prompt_tokens_details"]["cached_tokens"]
        return Usage(found["prompt_tokens"], cached, found["completion_tokens"])


class Traffic:
    """Everybody who asks one platform.

    Args:
        url: of the platform.
        seed: of all dice.
        heard: takes down what they are told.
        stop: set when nobody shall begin anything new.

    Attributes:
        is_up: whether to ask makes sense; whoever was cut off waits for it.
    """

    def __init__(self, url: str, seed: int, heard: Heard, stop: asyncio.Event) -> None:
        self.url, self.seed, self.heard, self.stop = url, seed, heard, stop
        self.is_up = asyncio.Event()
        self.is_up.set()

    def client(self, account: Account) -> httpx.AsyncClient:
        """Somebody's connections."""
        keyed = {"Authorization": f"Bearer {account.secret}"}
        return httpx.AsyncClient(base_url=self.url, headers=keyed, timeout=60)

    async def plain(self, account: Account, name: str) -> None:
        """Ask for whole answers and streams, and leave some of them."""
        dice = random.Random(f"{self.seed}:{name}")
        async with self.client(account) as http:
            while not self.stop.is_set():
                path, body = _question(dice)
                act = dice.choices(["whole", "stream", "leave", "leave early"], [4, 5, 3, 1])[0]
                try:
                    if act == "whole":
                        answer = await self._whole(http, path, body)
                        self._tell(answer)
                    elif act == "stream":
                        answer = await self._stream(http, path, body)
                        self._tell(answer)
                    elif act == "leave":
                        await self._leave(http, path, body, dice.randint(1, 6))
                    else:
                        await self._leave_early(http, path, body, dice.uniform(0, 0.05))
                    self.heard.counts[act] += 1
                except CutError as cut:
                    self.heard.counts[str(cut)] += 1
                    await self._pause()
                await asyncio.sleep(dice.uniform(0, 0.03))

    async def careful(self, account: Account, name: str) -> None:
        """Name each request by a key and send it until it is answered, and then once more."""
        dice = random.Random(f"{self.seed}:{name}")
        number = 0
        async with self.client(account) as http:
            while not self.stop.is_set():
                number += 1
                key = f"{name}-{number}"
                path, body = _question(dice)
                if is_streamed := dice.random() < 0.3:
                    body |= {"stream": True, "stream_options": {"include_usage": True}}
                times = dice.choice([1, 1, 2])
                again = dice.random() < 0.5

                async def ask(key: str = key, path: str = path, body: Any = body) -> Answer | None:
                    return await self._insist(http, path, body, key)

                found = await asyncio.gather(*(ask() for _ in range(times)))
                if again:
                    found.append(await ask())
                self._compare(key, found, is_streamed=is_streamed)

    def _compare(self, key: str, found: list[Answer | None], *, is_streamed: bool) -> None:
        answers = [one for one in found if one is not None]
        self.heard.counts["keys"] += 1
        self.heard.keys[key] = answers[0].request_id if answers else ""
        for answer in answers:
            self._tell(answer)
        if is_streamed:
            if len(answers) > 1:
                self.heard.problems.append(f"key {key}: a stream was given {len(answers)} times")
        elif len({one.content for one in answers}) != 1 or len(answers) != len(found):
            self.heard.problems.append(f"key {key}: answers differ: {answers}")
        elif sum(not one.is_replayed for one in answers) > 1:
            self.heard.problems.append(f"key {key}: it ran more than once")

    async def banker(self, admin: Account, poor: Account) -> None:
        """Put little money into one account and refund requests, each until it is confirmed."""
        dice = random.Random(f"{self.seed}:banker")
        number = 0
        cookies = {SessionCookie().name: admin.secret}
        async with httpx.AsyncClient(
            base_url=self.url, cookies=cookies, headers={"Origin": self.url}, timeout=60
        ) as http:
            while not self.stop.is_set():
                number += 1
                cause, amount = f"receipt {number}", dice.randint(1, 400)
                body = {"amount": amount, "cause": cause}
                path = f"/api/admin/users/{poor.user_id}/deposit"
                for _ in range(dice.choice([1, 2])):
                    await self._confirm(http, path, body)
                self.heard.deposits[poor.account_id, f"admin:{cause}"] = amount
                self.heard.counts["deposits"] += 1
                if self.heard.latest and dice.random() < 0.2:
                    chosen = dice.choice(self.heard.latest)
                    if await self._confirm(http, f"/api/admin/requests/{chosen}/refund", None):
                        self.heard.refunds.add(chosen)
                await asyncio.sleep(dice.uniform(0.02, 0.1))

    async def canary(self, account: Account, seconds: float) -> None:
        """Ask the same again and again: the answer must never change."""
        first: str | None = None
        async with self.client(account) as http:
            while not self.stop.is_set():
                try:
                    answer = await self._whole(http, "/v1/completions", CANARY)
                except CutError:
                    await self._pause()
                    continue
                self._tell(answer)
                self.heard.counts["canary"] += 1
                text = answer.body["choices"][0]["text"]
                first = text if first is None else first
                if text != first:
                    self.heard.problems.append(f"the canary said {text!r} after {first!r}")
                await asyncio.sleep(seconds)

    def _tell(self, answer: Answer) -> None:
        self.heard.usage[answer.request_id] = answer.usage
        self.heard.latest.append(answer.request_id)

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE)
        await self.is_up.wait()

    async def _insist(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], key: str
    ) -> Answer | None:
        """Ask until there is an answer; None where it was streamed before."""
        send = self._stream if body.get("stream") else self._whole
        while True:
            try:
                return await send(http, path, body, headers={"Idempotency-Key": key})
            except CutError as cut:
                self.heard.counts[str(cut)] += 1
                if str(cut) == "409 streamed_before":
                    return None
                await self._pause()

    async def _confirm(self, http: httpx.AsyncClient, path: str, body: Any) -> bool:
        """Ask until it is done; False where it cannot be, as the request is under way."""
        while True:
            try:
                await self._whole(http, path, body)
            except CutError as cut:
                if not str(cut).startswith(("lost", "503")):
                    return False
                await self._pause()
                continue
            return True

    async def _whole(
        self, http: httpx.AsyncClient, path: str, body: Any, headers: Any = None
    ) -> Answer:
        async with _sent(http, path, body, headers) as answer:
            content = await _or_cut(answer.aread)
            return self._read(answer, content)

    async def _stream(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], headers: Any = None
    ) -> Answer:
        """The last event before ``[DONE]``, which has the usage."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with _sent(http, path, streamed, headers) as answer:
            if answer.status_code != 200:
                return self._read(answer, await _or_cut(answer.aread))
            last: dict[str, Any] = {}
            async with aclosing(_events(answer)) as events:
                async for event in events:
                    if event == "[DONE]":
                        return Answer(200, last, b"", is_replayed=False)
                    last = json.loads(event)
                    if "error" in last:
                        raise CutError(f"error {last['error'].get('code')}")
                    if last.get("usage"):
                        # Told: it counts, whatever becomes of the connection now.
                        told = Answer(200, last, b"", is_replayed=False)
                        self._tell(told)
            raise CutError("no end")

    async def _leave(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], events: int
    ) -> None:
        async with _sent(http, path, body | {"stream": True}, None) as answer:
            if answer.status_code != 200:
                self._read(answer, await _or_cut(answer.aread))
            async with aclosing(_events(answer)) as coming:
                async for _ in coming:
                    events -= 1
                    if not events:
                        return

    async def _leave_early(
        self, http: httpx.AsyncClient, path: str, body: dict[str, Any], seconds: float
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                answer = await self._whole(http, path, body)
        except TimeoutError:
            return
        self._tell(answer)

    def _read(self, answer: httpx.Response, content: bytes) -> Answer:
        if answer.status_code == 200:
            replayed = "idempotent-replayed" in answer.headers
            return Answer(200, json.loads(content), content, replayed)
        code = ""
        if answer.headers.get("content-type", "").startswith("application/json"):
            code = str(json.loads(content)["error"].get("code"))
        if answer.status_code not in (402, 409, 429, 503):
            self.heard.problems.append(
                f"{answer.request.url.path} answers {answer.status_code}: {content!r:.300}"
            )
        raise CutError(f"{answer.status_code} {code}")


def _question(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    text = " ".join(dice.choices(WORDS, k=dice.randint(1, 6)))
    if dice.random() < 0.4:
        text = BEGINNING + text
    body: dict[str, Any] = {
        "model": MODEL, "max_tokens": dice.randint(1, 32), "temperature": dice.choice([0, 1]),
        "seed": dice.randint(0, 9), "ignore_eos": dice.random() < 0.5,
        "n": dice.choice([1, 1, 1, 2]),
    }  # fmt: skip
    if dice.random() < 0.5:
        return "/v1/completions", body | {"prompt": text}
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}


@asynccontextmanager
async def _sent(
    http: httpx.AsyncClient, path: str, body: Any, headers: Any
) -> AsyncIterator[httpx.Response]:
    """A request under way; whatever happens to it is a :class:`CutError`."""
    request = http.build_request("POST", path, json=body, headers=headers)
    answer: httpx.Response = await _or_cut(lambda: http.send(request, stream=True))
    try:
        yield answer
    finally:
        await answer.aclose()


async def _or_cut(work: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await work()
    except httpx.TimeoutException:
        raise
    except httpx.TransportError:
        raise CutError("lost") from None


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    try:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
    except httpx.TimeoutException:
        raise
    except httpx.TransportError:
        raise CutError("lost") from None
