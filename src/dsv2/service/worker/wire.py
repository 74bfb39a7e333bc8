"""What API and engine process say to each other: msgspec structs as MessagePack, never pickle.

One message is one frame. The API process sends :data:`ToEngine`, the engine process answers with
:data:`FromEngine`; every field is checked while it is decoded, and a frame that does not fit ends
the connection it came from, not the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from dsv2.engine.request import Request, SamplingParams, Structure

_T = TypeVar("_T")


class Logprobs(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Natural logarithms at one step: of the token that was taken, and the best (id, value)."""

    chosen: float
    top: list[tuple[int, float]] = []


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """A request to the engine; see :class:`dsv2.engine.request.Request`.

    ``params`` holds the fields of :class:`SamplingParams` that differ from their defaults.
    """

    id: str
    prompt_ids: list[int]
    params: dict[str, Any]
    priority: int = 0
    tenant: str = ""
    salt: str = ""


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    """End a request, wherever it is."""

    id: str


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Send :class:`Welcome` now: a connection begins with it."""


class Tokens(msgspec.Struct, tag="tokens", array_like=True, frozen=True, gc=False):
    """What one or more steps yielded for one request.

    Attributes:
        id: whose.
        tokens: new ones, in order; empty with ``error``.
        logprobs: one entry per token, where they were asked for.
        finish_reason: ``stop``, ``length``, ``error`` or ``rejected`` at the end, else None.
        error: what went wrong, for ``error`` and ``rejected``.
        field: for ``rejected``: the request's field that is wrong, or None when the engine has no
            room, and the same request may be taken later.
        cached_tokens: with the first token: tokens of the prompt found in the prefix cache.
        prompt_logprobs: with the first token, where they were asked for: one entry per token of
            the prompt, None for the first.
    """

    id: str
    tokens: list[int] = []
    logprobs: list[Logprobs] | None = None
    finish_reason: str | None = None
    error: str | None = None
    field: str | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[Logprobs | None] | None = None


class Batch(msgspec.Struct, tag="batch", array_like=True, frozen=True):
    """What the steps since the last message yielded for the requests of one connection."""

    outputs: list[Tokens]


class Stats(msgspec.Struct, frozen=True):
    """A look at the engine; totals are since its start.

    Attributes:
        running: sequences under way.
        waiting: sequences in line.
        free_blocks: cache blocks of 64 tokens that can be had.
        total_blocks: all cache blocks.
        preemptions: sequences that were put back into the line.
        prompt_tokens: of admitted requests.
        cached_tokens: of those, found in the prefix cache.
        generated_tokens: given out.
        steps: steps computed.
        step_seconds: time they took together.
    """

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0


class Heartbeat(msgspec.Struct, tag="heartbeat", array_like=True, frozen=True):
    """The step loop lives: it went round ``age`` seconds before this was sent."""

    age: float
    stats: Stats


class Welcome(msgspec.Struct, tag="welcome", array_like=True, frozen=True):
    """What the engine process runs, once the model is loaded.

    Attributes:
        description: model, device, format of the weights and backend, for people.
        vocab_size: token ids are below it.
        max_context: most tokens of prompt and answer together.
        max_logprobs: most alternatives per token.
        pid: of the engine process.
    """

    description: str
    vocab_size: int
    max_context: int
    max_logprobs: int
    pid: int


ToEngine = Submit | Cancel | Ask
FromEngine = Batch | Heartbeat | Welcome

encode = msgspec.msgpack.Encoder().encode


def refusing(decode: Callable[[bytes], _T]) -> Callable[[bytes], _T]:
    """A decoder of msgspec's that raises msgspec.MsgspecError for every frame that is no message.

    By itself msgspec raises others for text that is no UTF-8 and for a frame nested too deep.
    """

    def read(frame: bytes) -> _T:
        try:
            return decode(frame)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error

    return read


decode_to_engine = refusing(msgspec.msgpack.Decoder(ToEngine).decode)
decode_from_engine = refusing(msgspec.msgpack.Decoder(FromEngine).decode)

_DEFAULTS = SamplingParams()


def to_wire(request: Request) -> Submit:
    """A request as a message."""
    params: dict[str, Any] = {}
    for name in SamplingParams.__dataclass_fields__:
        value = getattr(request.params, name)
        if value != getattr(_DEFAULTS, name):
            params[name] = value
    if "logit_bias" in params:
        params["logit_bias"] = dict(params["logit_bias"])
    if request.params.structure is not None:
        params["structure"] = [request.params.structure.kind, request.params.structure.text]
    return Submit(
        request.id, list(request.prompt_ids), params, request.priority, request.tenant, request.salt
    )


def from_wire(message: Submit) -> Request:
    """The request of a message; its values are not checked beyond what the wire says.

    Raises:
        TypeError, ValueError: a parameter is unknown, or the structure is no pair.
    """
    params = dict(message.params)
    if (structure := params.get("structure")) is not None:
        kind, text = structure
        params["structure"] = Structure(kind, text)
    return Request(
        message.id, tuple(message.prompt_ids), SamplingParams(**params), message.priority,
        message.tenant, message.salt,
    )  # fmt: skip


def join(first: Tokens, second: Tokens) -> Tokens:
    """Two outputs of one request as one; the first one's lists are used up."""
    first.tokens.extend(second.tokens)
    if first.logprobs is not None and second.logprobs is not None:
        first.logprobs.extend(second.logprobs)
    if second.finish_reason is None:
        return first
    return replace(
        first, finish_reason=second.finish_reason, error=second.error, field=second.field
    )
