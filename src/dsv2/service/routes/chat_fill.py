"""``POST /api/chat/fill``: what goes between two texts, as events; nothing is kept.

Events ``delta`` have ``{"text"}``, the last is ``done`` with usage and finish, or ``error``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from dsv2.service.chats.events import site_event
from dsv2.service.chats.params import Params, SiteBody, checked_params, find_model
from dsv2.service.chats.shapes import usage_shape
from dsv2.service.inference.answers import Usage
from dsv2.service.inference.context import Job, encoded, request_id
from dsv2.service.inference.generation import Choice, Piece
from dsv2.service.inference.params import default_max_tokens, sampling_params
from dsv2.service.inference.tool_stream import AnswerReader
from dsv2.service.platform.desk import Answers
from dsv2.service.protocol.base import SamplingBody
from dsv2.service.store.chat_messages import AnswerUsage
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body

DEFAULT_MAX_TOKENS = 256

router = APIRouter(prefix="/api/chat")


class Gap(SiteBody):
    """What stands before and behind what is wanted; the model is named here, not in ``params``."""

    model: str
    prefix: str
    suffix: str
    params: Params = Params()


class FillWriter:
    """Writes the filling as events; see :class:`dsv2.service.inference.sse.Writer`."""

    is_stream = True

    def __init__(self) -> None:
        self._finish: str | None = None
        self._first: float | None = None
        self._last = 0.0

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Events of what has come."""
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last
        for piece in pieces:
            self._finish = piece.finish or self._finish
        return b"".join(site_event("delta", {"text": one.text}) for one in pieces if one.text)

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """Nothing: the error says it."""
        return b""

    def fail(self, error: ApiError) -> bytes:
        """The last event."""
        return site_event("error", error.body)

    def close(self, usage: Usage) -> bytes:
        """The usage and the end."""
        spent = round((self._last - (self._first or self._last)) * 1000)
        taken = AnswerUsage(
            usage.prompt_tokens, usage.prompt_cache_hit_tokens, usage.completion_tokens, spent
        )
        return site_event("done", {"usage": usage_shape(taken), "finish": self._finish})


@router.post("/fill")
async def fill(
    request: Request,
    caller: SignedIn,
    runs: Answers,
    body: Annotated[Gap, Depends(json_body(Gap))],
) -> Response:
    """Fill a gap; a page that leaves ends it."""
    inference = runs.inference
    if body.params.model is not None:
        raise ApiError(400, "params.model: model says it", param="params.model")
    model = find_model(inference.models, body.model, "model")
    checked_params(body.params, inference.models)
    prompt = await encoded(
        lambda: model.chat_format.fim(body.prefix, body.suffix),
        len(body.prefix.encode()) + len(body.suffix.encode()),
        model.tokenizer, model.engine.limits, "prefix",
    )  # fmt: skip
    wanted = body.params.max_tokens
    if wanted is None:
        wanted = default_max_tokens(model.engine.limits, len(prompt), DEFAULT_MAX_TOKENS)
    sampling = SamplingBody(model=model.name, **body.params.sampling)
    params = sampling_params(sampling, max_tokens=wanted)
    job = Job(
        id=request_id(request),
        model=model,
        prompts=[prompt],
        params=params,
        per_prompt=1,
        make_reader=lambda: AnswerReader(model.tokenizer, params),
        writer=FillWriter(),
        prompt_name="prefix",
        names={"max_tokens": "params.max_tokens"},
    )
    return inference.respond(job, caller)
