"""The bodies of Anthropic's messages and of counting their tokens."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dsv2.service.protocol.base import Body, Many, Strict, only_type
from dsv2.service.protocol.chat import FunctionName


def _as_blocks(value: Any) -> Any:
    """A text as the one block that it stands for."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextBlock(Strict):
    """Words; ``cache_control`` and ``citations`` are ignored."""

    type: Literal["text"]
    text: str


Texts = Annotated[
    Many[TextBlock],
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock]),
]


class ToolUseBlock(Strict):
    """A call that the assistant made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Strict):
    """What a call has given; that it failed (``is_error``) is for the text to say."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class InputMessage(Strict):
    """One turn; the last one, where it is the assistant's, is the beginning of the answer."""

    role: Literal["user", "assistant"]
    content: Annotated[
        Many[Block], BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block])
    ]


class InputTool(Strict):
    """A function that the assistant may call; Anthropic's own tools are not here."""

    type: Annotated[Literal["custom"] | None, only_type("custom")] = None
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]


class MessagesToolChoice(Strict):
    """Whether tools are called; ``name`` goes with ``tool``."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    """The model does not think before it speaks, so this can only be off."""

    type: Literal["disabled"]


_NOT_HERE = "is not available here"


class CountTokensBody(Body):
    """A conversation whose tokens are to be counted."""

    refused: ClassVar[dict[str, str]] = {
        "mcp_servers": "is not available: nothing is fetched",
        "container": _NOT_HERE,
        "context_management": "is not available: nothing is cut silently",
        "output_config": _NOT_HERE,
        "output_format": _NOT_HERE,
    }

    model: str
    messages: Annotated[Many[InputMessage], Field(min_length=1)]
    system: Texts | None = None
    tools: Annotated[Many[InputTool], Field(max_length=128)] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None


class MessagesBody(CountTokensBody):
    """A conversation to be continued; ``metadata`` and ``service_tier`` are ignored."""

    max_tokens: int
    stop_sequences: Many[str] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool | None = None
