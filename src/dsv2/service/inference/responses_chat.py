"""A response's input as a chat: items become messages of text, calls and results."""

from __future__ import annotations

from collections.abc import Sequence

from dsv2.service.protocol.base import JsonSchema, ResponseFormat
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
from dsv2.service.protocol.responses import (
    CallItem,
    CallOutputItem,
    ChosenFunction,
    FunctionTool,
    InputPart,
    MessageItem,
    Part,
    ResponsesBody,
)
from dsv2.service.web.errors import ApiError


def chat_of(body: ResponsesBody) -> ChatBody:
    """The chat that means the same.

    Raises:
        ApiError: 400: an output belongs to no call or is missing, or the format does not go with
            the rest.
    """
    messages = _Messages()
    if body.instructions:
        messages.found.append(ChatMessage(role="system", content=body.instructions))
    for place, item in enumerate(body.input):
        messages.take(item, place)
    messages.flush()
    return ChatBody(
        model=body.model,
        messages=messages.found,
        tools=[_tool(one) for one in body.tools] if body.tools else None,
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        response_format=_format(body),
        stream=body.stream,
    )


def structure_name(body: ResponsesBody) -> str:
    """The field that gives the answer its structure, where there is one."""
    return "tool_choice" if _forces_calls(body) else "text.format"


class _Messages:
    """Gathers an assistant's words and calls into one message, and their outputs behind it."""

    def __init__(self) -> None:
        self.found: list[ChatMessage] = []
        self._words: str | None = None
        self._calls: list[CallItem] = []
        self._outputs: dict[str, str] = {}

    def take(self, item: MessageItem | CallItem | CallOutputItem, place: int) -> None:
        """One item more."""
        if isinstance(item, MessageItem):
            self.flush()
            if item.role == "assistant":
                self._words = _text(item.content)
            else:
                self.found.append(ChatMessage(role=item.role, content=_text(item.content)))
        elif isinstance(item, CallItem):
            if self._outputs:
                self.flush()
            if any(call.call_id == item.call_id for call in self._calls):
                raise _wrong(place, item.call_id, "is the id of two calls")
            self._calls.append(item)
        else:
            waits = {call.call_id for call in self._calls} - set(self._outputs)
            if item.call_id not in waits:
                raise _wrong(place, item.call_id, "is no call before it that waits for its output")
            self._outputs[item.call_id] = _text(item.output)

    def flush(self) -> None:
        """The assistant's turn is over; outputs stand in the order of their calls."""
        for call in self._calls:
            if call.call_id not in self._outputs:
                raise ApiError(
                    400, f"input: there is no function_call_output for {call.call_id!r:.80}",
                    param="input",
                )  # fmt: skip
        if self._words is not None or self._calls:
            calls = [
                CalledTool(
                    id=call.call_id,
                    function=CalledFunction(name=call.name, arguments=call.arguments),
                )
                for call in self._calls
            ]
            self.found.append(
                ChatMessage(role="assistant", content=self._words or "", tool_calls=calls or None)
            )
        for call in self._calls:
            output = self._outputs[call.call_id]
            self.found.append(ChatMessage(role="tool", content=output, tool_call_id=call.call_id))
        self._words, self._calls, self._outputs = None, [], {}


def _text(parts: Sequence[Part]) -> str:
    return "".join(part.text if isinstance(part, InputPart) else part.refusal for part in parts)


def _wrong(place: int, call_id: str, words: str) -> ApiError:
    param = f"input[{place}].call_id"
    return ApiError(400, f"{param}: {call_id!r:.80} {words}", param=param)


def _tool(given: FunctionTool) -> Tool:
    function = Function(
        name=given.name, description=given.description, parameters=given.parameters
    )  # fmt: skip
    return Tool(type="function", function=function)


def _forces_calls(body: ResponsesBody) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, ChosenFunction)


def _choice(body: ResponsesBody) -> ToolChoice | None:
    given = body.tool_choice
    if isinstance(given, ChosenFunction):
        return NamedTool(type="function", function=NamedFunction(name=given.name))
    return given


def _format(body: ResponsesBody) -> ResponseFormat | None:
    given = body.text.format if body.text is not None else None
    if given is None or given.type == "text":
        return None
    if _forces_calls(body):
        raise ApiError(
            400, "text.format: cannot be combined with this tool_choice", param="text.format"
        )
    if given.type == "json_object":
        return ResponseFormat(type="json_object")
    if given.schema_ is None:
        raise ApiError(400, "text.format.schema: is missing", param="text.format.schema")
    schema = JsonSchema(name=given.name, schema=given.schema_)
    return ResponseFormat(type="json_schema", json_schema=schema)
