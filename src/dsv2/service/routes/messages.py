"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``, as Anthropic's clients ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dsv2.service.inference.answers import encode
from dsv2.service.inference.chat_job import chat_job
from dsv2.service.inference.context import Inference, request_id
from dsv2.service.inference.conversation import conversation_ids, tool_use
from dsv2.service.inference.message_answers import Message, TokenCount
from dsv2.service.inference.messages_chat import chat_of
from dsv2.service.inference.messages_writer import MessagesStreamWriter, MessagesWriter
from dsv2.service.platform.idempotent import Repeatable
from dsv2.service.protocol import CountTokensBody, MessagesBody
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.json_body import json_body
from dsv2.service.web.openapi import described

PATHS = ("/v1/messages", "/anthropic/v1/messages")

Body = Annotated[MessagesBody, Depends(json_body(MessagesBody))]
Counted = Annotated[CountTokensBody, Depends(json_body(CountTokensBody))]


def router(inference: Inference) -> APIRouter:
    """The routes, under each of their addresses."""
    made = APIRouter(tags=["messages"])

    async def create_message(
        request: Request, caller: SignedIn, body: Body, attempt: Repeatable
    ) -> Response:
        """Answer a conversation."""
        model, identity = inference.find(body.model), request_id(request)
        make = MessagesStreamWriter if body.stream else MessagesWriter
        writer = make(f"msg_{identity}", model.name)
        names = {"stop": "stop_sequences"}
        job = await chat_job(identity, model, chat_of(body), writer, names=names)
        return inference.respond(job, caller, attempt)

    async def count_message_tokens(caller: SignedIn, body: Counted) -> Response:
        """The tokens that a conversation is for the model."""
        model, chat = inference.find(body.model), chat_of(body)
        ids = await conversation_ids(model, chat.messages, tool_use(chat, model).tools)
        return Response(encode(TokenCount(len(ids))), media_type="application/json")

    for path in PATHS:
        made.add_api_route(
            path, create_message, methods=["POST"],
            **described(MessagesBody, Message, streams=True, error="AnthropicError"),
        )  # fmt: skip
        made.add_api_route(
            f"{path}/count_tokens", count_message_tokens, methods=["POST"],
            **described(CountTokensBody, TokenCount, error="AnthropicError"),
        )  # fmt: skip
    return made
