"""What all routes of the inference API work with, and what they have in common."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import TypeVar

from fastapi import Request as HttpRequest
from starlette.responses import Response

from dsv2.engine.request import ContextLengthError, Limits, Request, SamplingParams
from dsv2.service.inference.generation import Choice
from dsv2.service.inference.pace import Pace
from dsv2.service.inference.params import check, check_size, refused, with_seed
from dsv2.service.inference.sse import AnswerWatch, GenerationResponse, Patience, Writer
from dsv2.service.inference.tool_stream import AnswerReader
from dsv2.service.platform.idempotent import Attempt
from dsv2.service.serving import Admission, Caller, Models, ServedModel, Ticket
from dsv2.service.web.errors import ApiError, unknown_model
from dsv2.tokenizer import ChatError, Tokenizer, TokenizerError

_SHORT_TEXT = 16_384
"""Bytes that are encoded at once, within about a millisecond; longer texts go to a thread."""

T = TypeVar("T")


@dataclass(frozen=True)
class Inference:
    """What the routes need.

    Attributes:
        models: that are served.
        admission: limits and money.
        patience: how long to wait for whom.
        watch: is told of every answer.
        pace: of all streams.
    """

    models: Models
    admission: Admission
    patience: Patience = field(default_factory=Patience)
    watch: AnswerWatch | None = None
    pace: Pace = field(default_factory=Pace)

    def find(self, name: str) -> ServedModel:
        """The model of a name or an alias.

        Raises:
            ApiError: 404.
        """
        model = self.models.find(name)
        if model is None:
            raise unknown_model(name, self.models.names)
        return model

    def choices_of(self, job: Job, caller: Caller) -> list[Choice]:
        """The choices of a request, once the engine's gate has let it through.

        Raises:
            ApiError: 400.
        """
        check_size(job.prompts, job.prompt_name)
        requests: list[Request] = []
        choices: list[Choice] = []
        for prompt in job.prompts:
            ids, leader = tuple(prompt), None
            for place in range(job.per_prompt):
                index = len(choices)
                request = Request(
                    f"{job.id}-{index}", ids, with_seed(job.params, place), caller.priority,
                    tenant=caller.account_id, salt=caller.account_id,
                )  # fmt: skip
                requests.append(request)
                reader = job.make_reader()
                choice = Choice(index, request, reader, leader, is_silent=job.is_silent)
                leader = leader or choice
                choices.append(choice)
        check(requests, job.model.engine.limits, prompt=job.prompt_name, names=job.names)
        return choices

    async def admit(self, job: Job, caller: Caller, attempt: Attempt | None = None) -> Ticket:
        """Let a request in; see :class:`dsv2.service.serving.Admission` for what it raises."""
        answers = 0 if job.is_silent else len(job.prompts) * job.per_prompt
        return await self.admission.admit(
            caller,
            request_id=job.id,
            model=job.model.name,
            prompt_tokens=sum(map(len, job.prompts)),
            completion_tokens=answers * job.params.max_tokens,
            attempt=attempt,
        )

    def respond(self, job: Job, caller: Caller, attempt: Attempt | None = None) -> Response:
        """The answer to a request, as its writer writes it.

        Raises:
            ApiError: 400.
        """
        assert job.writer is not None
        choices = self.choices_of(job, caller)
        return GenerationResponse(
            job.model.engine, choices, lambda: self.admit(job, caller, attempt), job.writer,
            self.patience, prompt=job.prompt_name, names=job.names, model=job.model.name,
            watch=self.watch, pace=self.pace,
        )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A request that is understood.

    Attributes:
        id: made by the server.
        model: to run.
        prompts: tokens of each.
        params: of every answer but for the seed.
        per_prompt: answers to each prompt.
        make_reader: reads an answer.
        writer: of what is sent; None where nothing is.
        prompt_name: what the body calls the prompt.
        names: the body's names of other fields of the engine's.
        is_silent: the prompts alone are wanted.
    """

    id: str
    model: ServedModel
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    per_prompt: int
    make_reader: Callable[[], AnswerReader]
    writer: Writer | None
    prompt_name: str
    names: dict[str, str]
    is_silent: bool = False


def request_id(request: HttpRequest) -> str:
    """The id that the server gave a request; never the client's own."""
    given = request.scope.get("state", {}).get("request_id")
    return given if isinstance(given, str) else secrets.token_hex(16)


@lru_cache(maxsize=64)
def fingerprint(description: str) -> str:
    """``system_fingerprint``: the same while the same model runs in the same way."""
    return "fp_" + sha256(description.encode()).hexdigest()[:12]


@lru_cache(maxsize=16)
def _longest_token(tokenizer: Tokenizer) -> int:
    return max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))


async def encoded(
    encode: Callable[[], T], size: int, tokenizer: Tokenizer, limits: Limits, param: str
) -> T:
    """Run an encoding of ``size`` bytes: a long one in a thread, one that cannot fit not at all.

    Raises:
        ApiError: 400: it is certainly longer than the context, or not what can be encoded.
    """
    if size > limits.max_context * _longest_token(tokenizer):
        least = -(-size // _longest_token(tokenizer))
        error = ContextLengthError(
            "max_tokens",
            f"does not fit: this model's maximum context length is {limits.max_context} tokens, "
            f"but at least {least} were asked for. Please reduce the length of the messages or "
            "completion.",
        )
        raise refused(error, prompt=param, names={})
    try:
        return encode() if size <= _SHORT_TEXT else await asyncio.to_thread(encode)
    except ChatError as error:
        field_name = str(error).split(" ", 1)[0].rstrip(":")
        known = field_name.startswith(("messages", "tools"))
        raise ApiError(400, str(error), param=field_name if known else param) from error
    except TokenizerError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from error
