"""``POST /completions``, also with a suffix to be reached (fill in the middle)."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dsv2.service.inference.answers import TextCompletion
from dsv2.service.inference.chat_writer import Heading
from dsv2.service.inference.context import Inference, Job, encoded, fingerprint, request_id
from dsv2.service.inference.params import default_max_tokens, sampling_params
from dsv2.service.inference.sse import Writer
from dsv2.service.inference.text_writer import TextForm, TextStreamWriter, TextWriter
from dsv2.service.inference.tool_stream import AnswerReader
from dsv2.service.platform.idempotent import Repeatable
from dsv2.service.protocol import CompletionBody
from dsv2.service.serving import ServedModel
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.json_body import json_body
from dsv2.service.web.openapi import described

PATHS = ("/completions", "/v1/completions", "/beta/completions")
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, whose clients count on it; less where the context leaves less."""

Body = Annotated[CompletionBody, Depends(json_body(CompletionBody))]


def router(inference: Inference) -> APIRouter:
    """The route, under each of its addresses."""
    made = APIRouter(tags=["completions"])

    async def create_completion(
        request: Request, caller: SignedIn, body: Body, attempt: Repeatable
    ) -> Response:
        """Continue prompts; with ``echo`` and ``logprobs`` also rate them."""
        model = inference.find(body.model)
        return inference.respond(await _job(request_id(request), model, body), caller, attempt)

    for path in PATHS:
        made.add_api_route(
            path, create_completion, methods=["POST"],
            **described(CompletionBody, TextCompletion, streams=True),
        )  # fmt: skip
    return made


def _listed(body: CompletionBody) -> list[str] | list[list[int]]:
    """The prompts as a list."""
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return prompt


async def _ids(prompt: str | list[int], model: ServedModel, body: CompletionBody) -> list[int]:
    tokenizer = model.tokenizer
    if not isinstance(prompt, str):
        return prompt
    suffix = body.suffix

    def encode() -> list[int]:
        if suffix is not None:
            return model.chat_format.fim(prompt, suffix)
        start = [] if body.add_special_tokens is False else [tokenizer.bos_id]
        if not body.parse_special:
            return start + tokenizer.encode(prompt)
        ids = tokenizer.encode_with_specials(prompt)
        return ids if ids[:1] == start else start + ids  # never two BOS

    size = len(prompt.encode()) + len((suffix or "").encode())
    return await encoded(encode, size, tokenizer, model.engine.limits, "prompt")


def _best_of(body: CompletionBody) -> int:
    """Answers to be computed for each prompt."""
    if body.best_of is None:
        return body.num_choices
    if body.best_of < body.num_choices:
        raise ApiError(400, "best_of: must be at least n", param="best_of")
    if body.stream and body.best_of > body.num_choices:
        raise ApiError(
            400, "best_of: cannot be streamed, all answers must be there", param="best_of"
        )
    return body.best_of


async def _job(identity: str, model: ServedModel, body: CompletionBody) -> Job:
    listed = _listed(body)
    if body.suffix is not None and not isinstance(listed[0], str):
        raise ApiError(400, "suffix: needs a prompt of text", param="suffix")
    if body.suffix is not None and body.echo and body.logprobs is not None:
        # The model has read the suffix before: they would be of another text than is told.
        raise ApiError(400, "suffix: cannot be, with both echo and logprobs", param="suffix")
    prompts = [await _ids(prompt, model, body) for prompt in listed]
    per_prompt = _best_of(body)
    is_silent = bool(body.echo) and body.max_tokens == 0
    wanted = 1 if is_silent else body.max_tokens
    if wanted is None:
        longest = max(map(len, prompts))
        wanted = default_max_tokens(model.engine.limits, longest, DEFAULT_MAX_TOKENS)
    count = body.logprobs
    if count is None and per_prompt > body.num_choices:
        count = 0
    params = sampling_params(
        body,
        max_tokens=wanted,
        logprobs=count,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    echoes = None
    if body.echo:
        echoes = [
            prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)
            for prompt in listed
        ]
    form = TextForm(model.tokenizer, echoes, per_prompt, body.num_choices, body.logprobs)
    heading = Heading(
        f"cmpl-{identity}", int(time.time()), model.name, fingerprint(model.engine.description)
    )
    writer: Writer
    if body.stream:
        writer = TextStreamWriter(heading, form, with_usage=body.wants_usage)
    else:
        writer = TextWriter(heading, form)
    structure_name = next(
        (name for name in ("regex", "grammar") if getattr(body, name) is not None),
        "response_format",
    )
    return Job(
        id=identity,
        model=model,
        prompts=prompts,
        params=params,
        per_prompt=per_prompt,
        make_reader=lambda: AnswerReader(model.tokenizer, params),
        writer=writer,
        prompt_name="prompt",
        names={"prompt_logprobs": "logprobs", "structure": structure_name},
        is_silent=is_silent,
    )
