"""``POST /chat/completions``."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dsv2.service.inference.answers import ChatCompletion
from dsv2.service.inference.chat_job import chat_job
from dsv2.service.inference.chat_writer import ChatStreamWriter, ChatWriter, Heading
from dsv2.service.inference.context import Inference, Job, fingerprint, request_id
from dsv2.service.inference.sse import Writer
from dsv2.service.platform.idempotent import Repeatable
from dsv2.service.protocol import ChatBody
from dsv2.service.serving import ServedModel
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body
from dsv2.service.web.openapi import described

PATHS = ("/chat/completions", "/v1/chat/completions", "/beta/chat/completions")

Body = Annotated[ChatBody, Depends(json_body(ChatBody))]


def router(inference: Inference) -> APIRouter:
    """The route, under each of its addresses."""
    made = APIRouter(tags=["chat"])

    async def create_chat_completion(
        request: Request, caller: SignedIn, body: Body, attempt: Repeatable
    ) -> Response:
        """Answer a conversation."""
        model = inference.find(body.model)
        return inference.respond(await _job(request_id(request), model, body), caller, attempt)

    for path in PATHS:
        made.add_api_route(
            path, create_chat_completion, methods=["POST"],
            **described(ChatBody, ChatCompletion, streams=True),
        )  # fmt: skip
    return made


async def _job(identity: str, model: ServedModel, body: ChatBody) -> Job:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    top = (body.top_logprobs or 0) if body.logprobs else None
    heading = Heading(
        f"chatcmpl-{identity}", int(time.time()), model.name,
        fingerprint(model.engine.description),
    )  # fmt: skip
    writer: Writer
    if body.stream:
        writer = ChatStreamWriter(heading, model.tokenizer, top, with_usage=body.wants_usage)
    else:
        writer = ChatWriter(heading, model.tokenizer, top)
    return await chat_job(identity, model, body, writer, top_logprobs=top)
