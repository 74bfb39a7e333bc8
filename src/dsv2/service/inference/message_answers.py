"""What Anthropic's addresses answer, as msgspec structs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from dsv2.service.inference.answers import Usage


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """Words of the assistant."""

    text: str


class ToolUseContent(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of the assistant."""

    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct):
    """Tokens in Anthropic's count: ``input_tokens`` are those that were not in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


def message_usage(usage: Usage) -> MessageUsage:
    """A usage in Anthropic's count."""
    return MessageUsage(
        usage.prompt_cache_miss_tokens, usage.completion_tokens, usage.prompt_cache_hit_tokens
    )


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Message(msgspec.Struct):
    """The answer to a conversation."""

    id: str
    model: str
    content: list[TextContent | ToolUseContent]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class TokenCount(msgspec.Struct):
    """Tokens of a conversation."""

    input_tokens: int
