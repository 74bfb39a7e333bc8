"""The body of OpenAI's responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from dsv2.service.protocol.base import Body, Many, Strict, only_type
from dsv2.service.protocol.chat import FunctionName


def _as_parts(value: Any) -> Any:
    """A text as the one part that it stands for."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _as_items(value: Any) -> Any:
    """A text as the user's message that it stands for."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _kind(value: Any) -> str:
    """An item's type, which messages may leave out."""
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else "message"


class InputPart(Strict):
    """Words; ``annotations`` and ``logprobs`` are ignored."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(Strict):
    """Words of an answer that was refused."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputPart | RefusalPart, Field(discriminator="type")]
Parts = Annotated[Many[Part], BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])]


class MessageItem(Strict):
    """One turn; the last one, where it is the assistant's, is the beginning of the answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class CallItem(Strict):
    """A call that the assistant made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Strict):
    """What a call has given."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unavailable",
        custom_error_message="Items of this type are not available here, allowed are message, "
        "function_call and function_call_output",
    ),
]


class FunctionTool(Strict):
    """A function that the assistant may call; OpenAI's own tools are not here."""

    type: Annotated[Literal["function"], only_type("function")]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChosenFunction(Strict):
    """The one function that is to be called."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(Strict):
    """The form of an answer; the other fields go with ``json_schema``, ``strict`` always meant."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Strict):
    """How an answer is written; ``verbosity`` is ignored."""

    format: TextFormat | None = None


class ResponsesBody(Body):
    """A conversation to be continued.

    ``reasoning``, ``service_tier``, ``user`` and what else asks nothing of the answer are ignored.
    """

    refused: ClassVar[dict[str, str]] = {
        "store": "is not available: answers are not stored",
        "previous_response_id": "is not available: answers are not stored; send the whole "
        "conversation as input",
        "conversation": "is not available: conversations are not stored; send the whole one as "
        "input",
        "background": "is not available: an answer comes with its request",
        "prompt": "is not available: prompts are not stored",
        "top_logprobs": "is not available here; use chat completions",
    }

    model: str
    input: Annotated[
        Many[Item],
        Field(min_length=1),
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
    ]
    instructions: str | None = None
    tools: Annotated[Many[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None
    include: Many[Literal["reasoning.encrypted_content"]] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
