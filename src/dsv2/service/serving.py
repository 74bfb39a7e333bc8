"""What the routes are written against: engines, models, who asks, and what it costs.

Each is a protocol with one real implementation, so that every route can be tested without an
engine process and without accounts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from dsv2.engine.request import Limits, Request
from dsv2.service.worker.wire import Stats, Tokens
from dsv2.tokenizer import ChatFormat, Tokenizer

if TYPE_CHECKING:
    from dsv2.service.platform.idempotent import Attempt


class EngineGoneError(RuntimeError):
    """The engine process has died, hangs or is not up yet; another one may take its place."""


class Sink(Protocol):
    """Takes what comes of one request. Neither method waits or raises."""

    def put(self, output: Tokens) -> None:
        """Some tokens; the last output has a ``finish_reason``."""
        ...

    def fail(self, error: Exception) -> None:
        """The request has ended otherwise, and nothing follows.

        It is an :class:`EngineGoneError` where the engine was lost, an ``OverloadedError`` where
        its line is full, and a ``RequestError`` where its gate refuses the request.
        """
        ...


Canceller = Callable[[], object]
"""Ends a request that is under way."""


class Engine(Protocol):
    """An engine as the API process sees it."""

    @property
    def limits(self) -> Limits:
        """What it can take."""
        ...

    @property
    def description(self) -> str:
        """What runs where, for people."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether its step loop has shown itself of late."""
        ...

    @property
    def stats(self) -> Stats:
        """As of its last heartbeat."""
        ...

    def submit(self, request: Request, sink: Sink) -> Canceller:
        """Begin a request, whose outputs go to the sink, in this thread's event loop.

        Returns:
            What cancels the request, within one step of the engine; nothing more comes then. Once
            the request has ended, it does nothing.

        Raises:
            EngineGoneError: the engine is not there.
            OverloadedError: its line is full.
            RequestError: the request cannot be sent.
        """
        ...


@dataclass(frozen=True)
class ServedModel:
    """A model under its name in the API.

    Attributes:
        name: what ``model`` says in requests and answers.
        aliases: other names that mean it.
        engine: computes.
        tokenizer: text to tokens and back.
        chat_format: how a conversation is written.
        created: seconds since 1970, for ``/v1/models``.
        owned_by: for ``/v1/models``.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat_format: ChatFormat
    aliases: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    owned_by: str = "dsv2"


class Models:
    """The models of this server by name and alias.

    Raises:
        ValueError: two models claim one name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.all = tuple(models)
        self._by_name: dict[str, ServedModel] = {}
        for model in models:
            for name in (model.name, *model.aliases):
                if name in self._by_name:
                    raise ValueError(f"model name {name!r} is given to two models")
                self._by_name[name] = model

    def find(self, name: str) -> ServedModel | None:
        """The model of that name or alias."""
        return self._by_name.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, without aliases."""
        return tuple(model.name for model in self.all)


@dataclass(frozen=True)
class Rates:
    """How fast somebody may ask; None is no limit.

    Attributes:
        requests_per_minute: most requests begun in a minute.
        tokens_per_minute: most tokens of prompts and answers in a minute.
        max_concurrent: most requests at a time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who a request comes from.

    Attributes:
        user_id: the user.
        account_id: who pays, and whose prefix cache is read: never anybody else's.
        role: ``user`` or ``admin``.
        key_id: the API key it came with; None for a session of the site and for the guest.
        models: names the key may use; None for all.
        priority: of its requests in the engine.
        rates: limits of the key, beside those of the account.
    """

    user_id: str
    account_id: str
    role: str
    key_id: str | None = None
    models: tuple[str, ...] | None = None
    priority: int = 0
    rates: Rates = Rates()

    def may_use(self, model: str) -> bool:
        """Whether the key is for this model."""
        return self.models is None or model in self.models


Finish = Literal[
    "stop", "length", "tool_calls", "cancelled", "disconnect", "dropped", "error", "shutdown"
]  # fmt: skip
"""How a request has ended, in one word for the books: ``cancelled`` is one whose client has left or
has stopped it, ``disconnect`` one whose client left before it began, ``dropped`` one whose client
did not read."""


class Ticket(Protocol):
    """A request that was let in: its money is held, and it counts against the limits.

    Attributes:
        request_id: made by the server.
        headers: rate-limit headers for the answer.
    """

    request_id: str
    headers: Mapping[str, str]

    def note(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """What has been produced so far, in total. Cheap; called for every piece of an answer."""
        ...

    def keep(self, status: int, content_type: str, body: bytes) -> None:
        """The answer as it goes out, to be had again by its idempotency key; before ``close``."""
        ...

    async def close(self, finish: Finish) -> None:
        """Charge what was noted, exactly once, and give the rest back; later calls do nothing.

        Nothing noted means that nothing was done, and nothing is charged. It is shielded from the
        cancellation of the task that calls it.
        """
        ...


class Admission(Protocol):
    """Limits and money before any work is done."""

    async def admit(
        self,
        caller: Caller,
        *,
        request_id: str,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        attempt: Attempt | None = None,
    ) -> Ticket:
        """Let a request in.

        Args:
            caller: who asks.
            request_id: made by the server, unique for ever.
            model: the model's own name, not an alias.
            prompt_tokens: tokens of all its prompts.
            completion_tokens: most tokens of all its answers together.
            attempt: its idempotency key, where it has one.

        Raises:
            AnsweredError: the same request was answered before.
            ApiError: 402 without the money, 403 for a model that the key is not for, 429 over a
                limit with ``Retry-After``, 503 when the store cannot be reached.
        """
        ...
