"""``POST /responses``, whose answers are not stored."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dsv2.service.inference.chat_job import chat_job
from dsv2.service.inference.context import Inference, request_id
from dsv2.service.inference.response_answers import ModelResponse
from dsv2.service.inference.responses_chat import chat_of, structure_name
from dsv2.service.inference.responses_writer import ResponsesStreamWriter, ResponsesWriter
from dsv2.service.platform.idempotent import Repeatable
from dsv2.service.protocol import ResponsesBody
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.json_body import json_body
from dsv2.service.web.openapi import described

PATHS = ("/responses", "/v1/responses")

Body = Annotated[ResponsesBody, Depends(json_body(ResponsesBody))]


def router(inference: Inference) -> APIRouter:
    """The route, under each of its addresses."""
    made = APIRouter(tags=["responses"])

    async def create_response(
        request: Request, caller: SignedIn, body: Body, attempt: Repeatable
    ) -> Response:
        """Answer a conversation."""
        model, identity = inference.find(body.model), request_id(request)
        make = ResponsesStreamWriter if body.stream else ResponsesWriter
        writer = make(_response(f"resp_{identity}", model.name, body))
        names = {"max_tokens": "max_output_tokens", "structure": structure_name(body)}
        job = await chat_job(
            identity, model, chat_of(body), writer, prompt_name="input", names=names
        )
        return inference.respond(job, caller, attempt)

    for path in PATHS:
        made.add_api_route(
            path, create_response, methods=["POST"],
            **described(ResponsesBody, ModelResponse, streams=True),
        )  # fmt: skip
    return made


def _response(id_: str, model: str, body: ResponsesBody) -> ModelResponse:
    """The response before anything is said, with what was asked."""

    def plain(part: Any) -> Any:
        return part.model_dump(by_alias=True, exclude_none=True)

    choice = body.tool_choice or "auto"
    form = body.text.format if body.text is not None else None
    return ModelResponse(
        id=id_,
        created_at=int(time.time()),
        model=model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        text={"format": {"type": "text"} if form is None else plain(form)},
        tool_choice=choice if isinstance(choice, str) else plain(choice),
        tools=[plain(tool) for tool in body.tools or ()],
    )
