"""From a chat's body to the tokens of its prompt, and what its tools mean for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv2.engine.request import Structure
from dsv2.service.inference.context import encoded
from dsv2.service.inference.tool_grammar import call_grammar
from dsv2.service.protocol.chat import ChatBody, ChatMessage, NamedTool, Tool
from dsv2.service.serving import ServedModel
from dsv2.service.web.errors import ApiError
from dsv2.tokenizer import Message, ToolCall


@dataclass(frozen=True)
class ToolUse:
    """What the assistant may call.

    Attributes:
        tools: that it is told of.
        are_read: whether calls are read from its answer.
        max_calls: it is stopped after so many; None for no limit.
        structure: that forces it to call, or None.
    """

    tools: tuple[Tool, ...] = ()
    are_read: bool = False
    max_calls: int | None = None
    structure: Structure | None = None


def tool_use(body: ChatBody, model: ServedModel) -> ToolUse:
    """The meaning of ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    With ``none`` the model is not told of the tools. With ``required`` and a name a grammar leaves
    it nothing but calls of the tools, of that one once for a name.

    Raises:
        ApiError: 400: the choice does not go with the tools.
    """
    choice, tools = body.tool_choice, tuple(body.tools or ())
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two functions have one name", param="tools")
    if not tools:
        if choice is not None and choice not in ("none", "auto"):
            raise ApiError(400, "tool_choice: there are no tools to choose", param="tool_choice")
        return ToolUse()
    if choice == "none":
        return ToolUse()
    max_calls = 1 if body.parallel_tool_calls is False else None
    structure = None
    if isinstance(choice, NamedTool):
        chosen = [tool for tool in tools if tool.function.name == choice.function.name]
        if not chosen:
            raise ApiError(
                400, f"tool_choice: {choice.function.name} is not among the tools",
                param="tool_choice",
            )  # fmt: skip
        max_calls = 1
        structure = call_grammar(model.tokenizer, chosen, many=False)
    elif choice == "required":
        structure = call_grammar(model.tokenizer, tools, many=max_calls is None)
    return ToolUse(tools, True, max_calls, structure)


def _messages(messages: Sequence[ChatMessage]) -> list[Message]:
    return [
        Message(
            "system" if message.role == "developer" else message.role,
            message.text,
            tuple(
                ToolCall(call.function.name, call.function.arguments)
                for call in message.tool_calls or ()
            ),
        )
        for message in messages
    ]


def _continues(
    messages: Sequence[ChatMessage],
    add_generation_prompt: bool | None,
    continue_final: bool | None,
) -> bool:
    """Whether the last message is the beginning of the answer.

    An assistant's is, with a flag or without, unless a new turn is asked for.

    Raises:
        ApiError: 400: the flags contradict each other or the messages.
    """
    last = messages[-1]
    for place, message in enumerate(messages):
        if message.prefix and (message.role != "assistant" or place + 1 < len(messages)):
            param = f"messages[{place}].prefix"
            raise ApiError(
                400, f"{param}: only the last message, an assistant's, can be", param=param
            )
    wanted = continue_final or last.prefix
    if wanted and (last.role != "assistant" or last.tool_calls):
        name = "continue_final_message"
        raise ApiError(400, f"{name}: the last message must be the assistant's words", param=name)
    if wanted and add_generation_prompt:
        name = "add_generation_prompt"
        raise ApiError(400, f"{name}: cannot be, with a message to continue", param=name)
    if wanted:
        return True
    is_begun = last.role == "assistant" and not last.tool_calls
    return is_begun and continue_final is None and not add_generation_prompt


async def conversation_ids(
    model: ServedModel,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    *,
    add_generation_prompt: bool | None = None,
    continue_final: bool | None = None,
    name: str = "messages",
) -> list[int]:
    """The tokens of a conversation, which the client calls ``name``, up to where it goes on.

    Raises:
        ApiError: 400: it is malformed, or certainly too long.
    """
    goes_on = _continues(messages, add_generation_prompt, continue_final)
    parsed = _messages(messages)
    listed: list[dict[str, Any]] = [tool.model_dump(exclude_none=True) for tool in tools]

    def render() -> list[int]:
        return model.chat_format.render(
            parsed,
            tools=listed,
            add_generation_prompt=not goes_on and add_generation_prompt is not False,
            continue_final=goes_on,
        ).ids

    size = sum(len(message.content.encode()) for message in parsed)
    return await encoded(render, size, model.tokenizer, model.engine.limits, name)
