"""Anthropic's conversation as a chat's: blocks become messages of text, calls and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dsv2.service.protocol.chat import (
    CalledFunction,
    CalledTool,
    ChatBody,
    ChatMessage,
    Function,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
)
from dsv2.service.protocol.messages import (
    CountTokensBody,
    InputMessage,
    InputTool,
    MessagesBody,
    MessagesToolChoice,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from dsv2.service.web.errors import ApiError


def chat_of(body: CountTokensBody) -> ChatBody:
    """The chat that means the same.

    Raises:
        ApiError: 400: a block stands where it cannot, or a result belongs to no call.
    """
    messages: list[ChatMessage] = []
    if body.system:
        messages.append(ChatMessage(role="system", content=_text(body.system)))
    calls: list[str] = []
    for place, message in enumerate(body.messages):
        if message.role == "assistant":
            messages.append(_assistant(message, place))
            calls = [block.id for block in message.content if isinstance(block, ToolUseBlock)]
        else:
            messages += _user(message, place, calls)
            calls = []
    choice = body.tool_choice
    fields: dict[str, Any] = {}
    if isinstance(body, MessagesBody):
        fields = {
            "max_tokens": body.max_tokens, "stop": body.stop_sequences, "top_p": body.top_p,
            "temperature": body.temperature, "top_k": body.top_k, "stream": body.stream,
        }  # fmt: skip
    return ChatBody(
        model=body.model,
        messages=messages,
        tools=[_tool(one) for one in body.tools] if body.tools else None,
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        **fields,
    )


def _text(blocks: Sequence[TextBlock]) -> str:
    return "".join(block.text for block in blocks)


def _assistant(message: InputMessage, place: int) -> ChatMessage:
    texts: list[TextBlock] = []
    calls: list[CalledTool] = []
    for index, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolUseBlock):
            arguments = json.dumps(block.input, ensure_ascii=False)
            function = CalledFunction(name=block.name, arguments=arguments)
            calls.append(CalledTool(id=block.id, function=function))
        else:
            raise _misplaced(place, index, "tool_result", "assistant")
    return ChatMessage(role="assistant", content=_text(texts), tool_calls=calls or None)


def _user(message: InputMessage, place: int, calls: list[str]) -> list[ChatMessage]:
    """Results first and in the order of their calls, as the model has learned to read them."""
    texts: list[TextBlock] = []
    results: dict[str, str] = {}
    for index, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            texts.append(block)
        elif isinstance(block, ToolResultBlock):
            given = block.tool_use_id
            if given not in calls or given in results:
                param = f"messages[{place}].content[{index}].tool_use_id"
                raise ApiError(
                    400, f"{param}: {given!r:.80} is no call of the message before it that waits "
                    "for its result", param=param,
                )  # fmt: skip
            results[given] = _text(block.content or ())
        else:
            raise _misplaced(place, index, "tool_use", "user")
    missing = [call for call in calls if call not in results]
    if missing:
        param = f"messages[{place}]"
        raise ApiError(400, f"{param}: there is no tool_result for {missing[0]!r:.80}", param=param)
    found = [
        ChatMessage(role="tool", content=results[call], tool_call_id=call) for call in calls
    ]  # fmt: skip
    if texts or not found:
        found.append(ChatMessage(role="user", content=_text(texts)))
    return found


def _misplaced(place: int, index: int, kind: str, role: str) -> ApiError:
    param = f"messages[{place}].content[{index}].type"
    return ApiError(400, f"{param}: a {kind} block cannot be the {role}'s", param=param)


def _tool(given: InputTool) -> Tool:
    function = Function(
        name=given.name, description=given.description, parameters=given.input_schema
    )
    return Tool(type="function", function=function)


def _choice(given: MessagesToolChoice) -> ToolChoice:
    match given.type:
        case "any":
            return "required"
        case "tool":
            if given.name is None:
                param = "tool_choice.name"
                raise ApiError(400, f"{param}: is missing", param=param)
            return NamedTool(type="function", function=NamedFunction(name=given.name))
        case _:
            return given.type
