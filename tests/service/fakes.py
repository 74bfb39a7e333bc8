"""Stand-ins: a scripted engine, an admission that keeps its books in lists, and the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from fastapi import Request as HttpRequest

import dsv2.pocket
from dsv2.engine.request import Limits, Request
from dsv2.service.inference.context import Inference
from dsv2.service.inference.sse import Patience
from dsv2.service.platform.idempotent import Attempt
from dsv2.service.routes import inference_routers
from dsv2.service.serving import Caller, Canceller, Models, ServedModel, Sink
from dsv2.service.web.app import create_app
from dsv2.service.web.errors import ApiError
from dsv2.service.worker.streams import pump
from dsv2.service.worker.wire import Stats, Tokens
from dsv2.tokenizer import Tokenizer, chat_format

Step = Tokens | Exception | float
"""What a scripted engine does next: yield, raise, or sleep for so many seconds."""
Script = Callable[[Request], Iterable[Step]]
CALLER = Caller("u1", "a1", "user")


def pocket_tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(next(iter(dsv2.pocket.__path__))))


class FakeEngine:
    """Does what its script says of each request."""

    def __init__(self, script: Script, *, max_context: int = 2048) -> None:
        self.script = script
        self.limits = Limits(vocab_size=8192, max_context=max_context)
        self.description = "a script"
        self.is_healthy, self.stats = True, Stats()
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.open = 0

    def submit(self, request: Request, sink: Sink) -> Canceller:
        return pump(self._outputs(request), sink).cancel

    async def _outputs(self, request: Request) -> AsyncGenerator[Tokens, None]:
        self.requests.append(request)
        self.open += 1
        ended = False
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    ended = True
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    continue
                ended = step.finish_reason is not None
                yield step
                await asyncio.sleep(0)
        finally:
            self.open -= 1
            if not ended:
                self.cancelled.append(request.id)


@dataclass
class FakeTicket:
    request_id: str
    headers: Mapping[str, str] = field(default_factory=lambda: {"x-ratelimit-limit-requests": "9"})
    noted: tuple[int, int, int] | None = None
    closed: list[str] = field(default_factory=list)

    def note(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        assert not self.closed
        self.noted = (prompt_tokens, cached_tokens, completion_tokens)

    def keep(self, status: int, content_type: str, body: bytes) -> None:
        assert not self.closed

    async def close(self, finish: str) -> None:
        await asyncio.sleep(0)
        self.closed.append(finish)


class FakeAdmission:
    def __init__(self) -> None:
        self.tickets: list[FakeTicket] = []
        self.asked: list[tuple[str, int, int]] = []
        self.refusal: ApiError | None = None

    async def admit(
        self, caller: Caller, *, request_id: str, model: str, prompt_tokens: int,
        completion_tokens: int, attempt: Attempt | None = None,
    ) -> FakeTicket:  # fmt: skip
        if self.refusal is not None:
            raise self.refusal
        self.asked.append((model, prompt_tokens, completion_tokens))
        self.tickets.append(FakeTicket(request_id))
        return self.tickets[-1]


async def identify(request: HttpRequest) -> Caller:
    given = request.headers.get("authorization", "")
    if "x-api-key" in request.headers:
        given = f"Bearer {request.headers['x-api-key']}"
    if given == "Bearer sk-narrow":
        return Caller("u2", "a2", "user", models=("other",))
    if given != "Bearer sk-test":
        raise ApiError(401, "There is no valid key")
    return CALLER


HEADERS = {"authorization": "Bearer sk-test"}


@dataclass
class Site:
    """An application over a scripted engine."""

    app: FastAPI
    engine: FakeEngine
    admission: FakeAdmission
    tokenizer: Tokenizer


def make_site(
    script: Script, tokenizer: Tokenizer, *, patience: Patience | None = None,
    max_context: int = 2048, **options: object,
) -> Site:  # fmt: skip
    engine, admission = FakeEngine(script, max_context=max_context), FakeAdmission()
    model = ServedModel(
        "pocket", engine, tokenizer, chat_format("v2.5", tokenizer), ("deepseek-chat", "gpt-4")
    )
    inference = Inference(Models([model]), admission, patience or Patience())
    app = create_app(identify, inference_routers(inference), **options)  # type: ignore[arg-type]
    return Site(app, engine, admission, tokenizer)


def words(tokenizer: Tokenizer, text: str, finish: str = "stop", cached: int = 0) -> Script:
    """A script that says a text token by token, to everybody."""
    ids = tokenizer.encode(text)

    def script(request: Request) -> Iterable[Step]:
        for place, token in enumerate(ids):
            last = place == len(ids) - 1
            yield Tokens(request.id, [token], None, finish if last else None, cached_tokens=cached)

    return script
