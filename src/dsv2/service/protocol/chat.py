"""The body of a chat completion."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dsv2.service.protocol.base import Many, SamplingBody, Strict

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Part(Strict):
    """A part of a message; text alone, nothing is fetched."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Strict):
    """A function that was called, with its arguments as JSON."""

    name: str
    arguments: str


class CalledTool(Strict):
    """A call that the assistant made earlier."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Strict):
    """One turn; ``name`` and ``tool_call_id`` are taken and not shown to the model.

    Attributes:
        prefix: on the last message, the assistant's: it is the beginning of the answer.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[Part] | None = None
    name: str | None = None
    tool_calls: Many[CalledTool] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content)
        return self.content or ""


class Function(Strict):
    """A function that the assistant may call; ``parameters`` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool; functions alone are known."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """The name of a function."""

    name: FunctionName


class NamedTool(Strict):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class ChatBody(SamplingBody):
    """A conversation to be continued."""

    refused: ClassVar[dict[str, str]] = SamplingBody.refused | {
        "audio": "is not available: answers are text",
        "web_search_options": "is not available: nothing is fetched",
        "functions": "is the old form of tools; use tools",
        "function_call": "is the old form of tool_choice; use tool_choice",
        "echo": "is not available in a chat; use completions",
    }

    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: Many[Literal["text"]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
