"""A chat site to talk with: a person, an engine that goes as far as a test lets it, and pages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from dsv2.engine.request import Request
from dsv2.service.chats.runs import Runs
from dsv2.service.platform.office import Office
from dsv2.service.serving import Models, ServedModel
from dsv2.service.settings import ServeSettings
from dsv2.service.site import make_app
from dsv2.service.web.metrics import Metrics
from dsv2.service.worker.wire import Logprobs, Tokens
from dsv2.tokenizer import chat_format
from tests.service.asgi import Reply, call
from tests.service.fakes import FakeEngine, Step, pocket_tokenizer
from tests.service.platform.site import Person, Site, add_person

TEXT = "Because the sky 😀 scatters blue light."
FAR = 10**9
tokenizer_once = cache(pocket_tokenizer)


class Talk:
    """One person and what they are answered.

    Args:
        office: of the platform.
        person: who talks; somebody new with money by default.
        max_context: of the model.

    Attributes:
        text: that the engine says.
        allowed: how many tokens of it, before it waits.
        finish: how it ends.
        error: what it raises where it would go beyond ``allowed``.
    """

    def __init__(
        self, office: Office, person: Person | None = None, *, max_context: int = 2048,
        **options: Any,
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer_once()
        self.engine = FakeEngine(self._script, max_context=max_context)
        self.text, self.allowed, self.finish = TEXT, FAR, "stop"
        self.error: Exception | None = None
        form = chat_format("v2.5", self.tokenizer)
        models = Models([ServedModel("tiny", self.engine, self.tokenizer, form, ("small",))])
        settings = ServeSettings(allowed_hosts=("*",))
        app = make_app(
            settings, office, models, Metrics(lambda: models.all), lambda: True, **options
        )
        app.state.runs = Runs(office, app.state.runs.inference, save_seconds=0.02)
        self.site, self.app = Site(office, app), app
        self.person = person or add_person(office.store, paid=10_000_000)
        self.browser = self.site.logged_in(self.person)
        self.cookie = f"dsv2-session={self.browser.http.cookies['dsv2-session']}"

    @property
    def runs(self) -> Runs:
        runs: Runs = self.app.state.runs
        return runs

    def _script(self, request: Request) -> Iterable[Step]:
        ids = self.tokenizer.encode(self.text)
        for place, token in enumerate(ids):
            while place >= self.allowed:
                if self.error is not None:
                    yield self.error
                yield 0.002
            logprobs = None
            if request.params.logprobs is not None:
                logprobs = [Logprobs(-0.5, [(token, -0.5), (ids[0], -2.0)])]
            last = place == len(ids) - 1
            finish = self.finish if last else None
            yield Tokens(request.id, [token], logprobs, finish, cached_tokens=64)

    def begin(self, content: str = "Why?", **fields: Any) -> tuple[str, str]:
        """Ids of a new conversation and of the answer that has begun in it."""
        made = self.browser.post("/api/chat/conversations", fields)
        assert made.status_code == 201, made.text
        conversation: str = made.json()["id"]
        return conversation, self.say(conversation, content)["answer"]["id"]

    def say(
        self, conversation: str, content: str = "Why?", parent: str | None = None, **fields: Any
    ) -> Any:
        body = {"parent_id": parent, "content": content, **fields}
        sent = self.browser.post(f"/api/chat/conversations/{conversation}/messages", body)
        assert sent.status_code == 201, sent.text
        return sent.json()

    def ended(self, message: str) -> Any:
        """The message once it is no longer running."""
        return self.events(message).named[-1][1]

    def events(self, message: str, start: int = 0, **options: Any) -> Reply:
        return self.run(self.reading(message, start, **options))

    async def reading(self, message: str, start: int = 0, **options: Any) -> Reply:
        path = f"/api/chat/messages/{message}/events?from={start}"
        return await call(self.app, path, method="GET", headers={"cookie": self.cookie}, **options)

    def act(self, message: str, verb: str) -> Any:
        done = self.browser.post(f"/api/chat/messages/{message}/{verb}")
        assert done.status_code == 200, done.text
        return done.json()["answer"]

    def whole(self, conversation: str) -> Any:
        return self.browser.get(f"/api/chat/conversations/{conversation}").json()

    def message(self, conversation: str, message: str) -> Any:
        [found] = [one for one in self.whole(conversation)["messages"] if one["id"] == message]
        return found

    def prompt(self, place: int = -1) -> str:
        """What the model was shown."""
        return self.tokenizer.decode(self.engine.requests[place].prompt_ids)

    def run(self, work: Awaitable[Any]) -> Any:
        return self.site.run(work)

    def until(self, holds: Callable[[], object], seconds: float = 5.0) -> None:
        async def wait() -> None:
            async with asyncio.timeout(seconds):
                while not holds():
                    await asyncio.sleep(0.002)

        self.run(wait())

    def until_saved(self, conversation: str, message: str, text: str) -> None:
        for _ in range(500):
            if self.message(conversation, message)["content"] == text:
                return
            self.run(asyncio.sleep(0.005))
        raise AssertionError(f"{text!r} is not written down")

    def close(self) -> None:
        self.allowed = FAR
        with suppress(RuntimeError):
            self.run(self.runs.stop())
        self.site.close()


def said(reply: Reply, start: int = 0) -> str:
    """The text of a stream; every delta must begin where the one before ended."""
    text = ""
    for name, data in reply.named:
        if name == "delta":
            assert data["at"] == start + len(text)
            text += data["text"]
    return text
