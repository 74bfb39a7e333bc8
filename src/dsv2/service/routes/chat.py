"""``POST /chat/completions``."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dsv2.service.answers import ChatCompletion
from dsv2.service.chat_writer import ChatStreamWriter, ChatWriter, Heading
from dsv2.service.conversation import conversation_ids, tool_use
from dsv2.service.deps import SignedIn
from dsv2.service.errors import ApiError
from dsv2.service.idempotent import Repeatable
from dsv2.service.inference import Inference, Job, fingerprint, request_id
from dsv2.service.json_body import json_body
from dsv2.service.openapi import described
from dsv2.service.params import default_max_tokens, sampling_params
from dsv2.service.protocol import ChatBody
from dsv2.service.serving import ServedModel
from dsv2.service.sse import Writer
from dsv2.service.tool_stream import AnswerReader

PATHS = ("/chat/completions", "/v1/chat/completions", "/beta/chat/completions")
DEFAULT_MAX_TOKENS = 4096
"""DeepSeek's; less where the context leaves less."""

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
    use = tool_use(body, model)
    prompt = await conversation_ids(
        model,
        body.messages,
        use.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final=body.continue_final_message,
    )
    wanted, limit_name = body.max_completion_tokens, "max_completion_tokens"
    if wanted is None:
        wanted, limit_name = body.max_tokens, "max_tokens"
    if wanted is None:
        wanted = default_max_tokens(model.engine.limits, len(prompt), DEFAULT_MAX_TOKENS)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
    top = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, max_tokens=wanted, logprobs=top, structure=use.structure)
    heading = Heading(
        f"chatcmpl-{identity}", int(time.time()), model.name,
        fingerprint(model.engine.description),
    )  # fmt: skip
    writer: Writer
    if body.stream:
        writer = ChatStreamWriter(heading, model.tokenizer, top, with_usage=body.wants_usage)
    else:
        writer = ChatWriter(heading, model.tokenizer, top)
    structure_name = next(
        (name for name in ("regex", "grammar") if getattr(body, name) is not None),
        "tool_choice" if use.structure is not None else "response_format",
    )
    return Job(
        id=identity,
        model=model,
        prompts=[prompt],
        params=params,
        per_prompt=body.num_choices,
        make_reader=lambda: AnswerReader(
            model.tokenizer, params, tools=use.are_read, max_calls=use.max_calls
        ),
        writer=writer,
        prompt_name="messages",
        names={
            "max_tokens": limit_name, "logprobs": "top_logprobs", "structure": structure_name,
        },
    )  # fmt: skip
