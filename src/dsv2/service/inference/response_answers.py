"""What ``/responses`` answers, as msgspec structs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dsv2.service.inference.answers import Usage

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """Words of the assistant; ``annotations`` and ``logprobs`` are always empty."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """A message of the assistant."""

    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputCall(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call of the assistant, with its arguments as JSON."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class InputTokensDetails(msgspec.Struct):
    """Of the input's tokens, how many were found in the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """There is no reasoning apart from the answer."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Tokens of a response."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


def response_usage(usage: Usage) -> ResponseUsage:
    """A usage in this route's words."""
    return ResponseUsage(
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens,
        InputTokensDetails(usage.prompt_cache_hit_tokens), OutputTokensDetails(),
    )  # fmt: skip


class ResponseError(msgspec.Struct):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ModelResponse(msgspec.Struct, kw_only=True):
    """A response, and what was asked."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    output: list[OutputMessage | OutputCall] = []
    usage: ResponseUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    previous_response_id: None = None
    truncation: Literal["disabled"] = "disabled"
    store: bool = False
    background: bool = False
    object: Literal["response"] = "response"
