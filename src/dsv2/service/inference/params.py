"""From the body of a request to the engine's parameters, and the gate's word back to the client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

from dsv2.engine.request import (
    MAX_SEED,
    ContextLengthError,
    Limits,
    Request,
    RequestError,
    SamplingParams,
    Structure,
    validate,
)
from dsv2.service.protocol.base import (
    MAX_PROMPT_TOKENS,
    MAX_SEQUENCES,
    ResponseFormat,
    SamplingBody,
)
from dsv2.service.web.errors import ApiError

_PLAIN = (
    "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "seed", "min_tokens", "ignore_eos",
)  # fmt: skip
"""Fields that body and engine call alike, and whose absence means the engine's default."""


def sampling_params(
    body: SamplingBody,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    structure: Structure | None = None,
) -> SamplingParams:
    """The engine's parameters; bounds are the gate's.

    Args:
        body: of the request.
        max_tokens: most tokens of each answer.
        logprobs: best tokens to be told per token of the answer.
        prompt_logprobs: the same for the prompt.
        structure: of the answer, where it does not come from the body's own fields.

    Raises:
        ApiError: 400: two fields want different structures, or ``logit_bias`` has a key that is no
            token id.
    """
    given = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    stop = body.stop if body.stop is not None else ()
    return SamplingParams(
        max_tokens=max_tokens,
        top_k=0 if body.top_k in (None, -1) else body.top_k,  # -1 is vLLM's word for off
        logit_bias=_bias(body.logit_bias),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structure=_structure(body, structure),
        **given,
    )


def _bias(given: dict[str, float] | None) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise ApiError(
                400, f"logit_bias: {key!r:.60} is no token id, allowed is a whole number as text",
                param="logit_bias",
            )  # fmt: skip
        bias[int(key)] = value
    return bias


def _structure(body: SamplingBody, other: Structure | None) -> Structure | None:
    wanted: dict[str, Structure] = {} if other is None else {"tool_choice": other}
    if body.response_format is not None and body.response_format.type != "text":
        wanted["response_format"] = _format(body.response_format)
    for kind in ("regex", "grammar"):
        if (text := getattr(body, kind)) is not None:
            wanted[kind] = Structure(kind, text)
    if len(wanted) > 1:
        first, second, *_ = wanted
        raise ApiError(400, f"{second} cannot be combined with {first}", param=second)
    return next(iter(wanted.values()), None)


def _format(wanted: ResponseFormat) -> Structure:
    if wanted.type == "json_object":
        return Structure("json_object")
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        param = "response_format.json_schema"
        raise ApiError(400, f"{param}: is missing, or has no schema", param=param)
    return Structure("json_schema", json.dumps(wanted.json_schema.schema_, ensure_ascii=False))


def choice_seed(seed: int | None, place: int) -> int | None:
    """The seed of a request's choice ``place``: the first has the request's own."""
    if seed is None or place == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & MAX_SEED


def default_max_tokens(limits: Limits, prompt: int, usual: int) -> int:
    """``usual``, or less where the context leaves less; at least 1, which the gate then refuses."""
    return max(1, min(usual, limits.max_context - prompt))


def check(
    requests: Sequence[Request], limits: Limits, *, prompt: str, names: dict[str, str]
) -> None:
    """Send requests that differ only in prompt and seed through the engine's gate.

    Args:
        requests: one per prompt and choice.
        limits: of their engine.
        prompt: what the body calls the prompt.
        names: the body's names of other fields of the engine's.

    Raises:
        ApiError: 400 in OpenAI's words.
    """
    if len(requests) > MAX_SEQUENCES:
        raise ApiError(
            400, f"n: {len(requests)} answers in all were asked for, allowed are {MAX_SEQUENCES}",
            param="n",
        )  # fmt: skip
    try:
        for request in requests:
            validate(request, limits)
    except RequestError as error:
        raise refused(error, prompt=prompt, names=names) from error


def check_size(prompts: Sequence[Sequence[int]], param: str) -> None:
    """Refuse more prompt tokens than one request may bring: 400."""
    total = sum(map(len, prompts))
    if total > MAX_PROMPT_TOKENS:
        raise ApiError(
            400, f"{param}: {total} tokens in all, allowed are {MAX_PROMPT_TOKENS}", param=param
        )


def refused(error: RequestError, *, prompt: str, names: dict[str, str]) -> ApiError:
    """The gate's error in OpenAI's words: ``param``, and a code where the context is too short."""
    if isinstance(error, ContextLengthError):
        words = error.problem.partition("this model's ")[2]
        return ApiError(400, f"This model's {words}", param=prompt, code="context_length_exceeded")
    field, bracket, rest = error.field.partition("[")
    field = prompt if field == "prompt" else names.get(field, field)
    param = field + bracket + rest
    return ApiError(400, f"{param}: {error.problem}", param=param)


def with_seed(params: SamplingParams, place: int) -> SamplingParams:
    """The parameters of choice ``place``."""
    if place == 0 or params.seed is None:
        return params
    return replace(params, seed=choice_seed(params.seed, place))
