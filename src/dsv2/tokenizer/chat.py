"""The chat formats of DeepSeek-V2 and V2.5, as code: no template language, no parsing of text.

A conversation becomes segments: what the format itself says is made of control tokens and literal
text, what a message says is encoded as plain text. A message can therefore never end a turn.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsv2.tokenizer import special
from dsv2.tokenizer.bpe import Tokenizer
from dsv2.tokenizer.tool_calls import CallArguments, CallReader, CallStart, Stray, Word

ROLES = ("system", "user", "assistant", "tool")


class ChatError(ValueError):
    """A conversation is malformed, or the format cannot say what it asks for."""


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls: its name and its arguments as a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``tool_calls`` belong to the assistant alone."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass
class Rendered:
    """Tokens of a conversation and which of them the assistant said.

    Attributes:
        ids: the tokens, with exactly one BOS, at the start.
        loss_mask: for each token, whether a model is to learn it: the assistant's words, its calls
            and its end of turn.
    """

    ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)

    def add(self, ids: Sequence[int], learned: bool = False) -> None:
        """Append tokens."""
        self.ids.extend(ids)
        self.loss_mask.extend([learned] * len(ids))

    def drop_end(self) -> None:
        """Take the last token away."""
        del self.ids[-1], self.loss_mask[-1]


def parse_message(value: Message | Mapping[str, Any], place: int) -> Message:
    """Check one message, in our form or as a mapping in OpenAI's.

    Raises:
        ChatError: naming the message, the field, its value and what is allowed.
    """
    if isinstance(value, Message):
        message = value
    elif isinstance(value, Mapping):
        content = value.get("content")
        calls = value.get("tool_calls") or ()
        if content is None and calls:
            content = ""
        message = Message(
            role=value.get("role", ""),
            content=content,  # type: ignore[arg-type]  # checked below
            tool_calls=tuple(_parse_call(call, place) for call in calls),
        )
    else:
        raise ChatError(f"messages[{place}] is a {type(value).__name__}, allowed is an object")
    if message.role not in ROLES:
        raise ChatError(
            f"messages[{place}].role is {message.role!r}, allowed are {', '.join(ROLES)}"
        )
    if not isinstance(message.content, str):
        raise ChatError(
            f"messages[{place}].content is {message.content!r:.80}, allowed is a string"
        )
    if message.tool_calls and message.role != "assistant":
        raise ChatError(f"messages[{place}].tool_calls: role {message.role} cannot call tools")
    return message


def _parse_call(call: Any, place: int) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise ChatError(f"messages[{place}].tool_calls needs function.name and function.arguments")
    return ToolCall(name, arguments)


class ChatFormat(ABC):
    """What the formats share: system message first, tools within it, tool calls and results."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        """The tokens of a conversation.

        Args:
            messages: at least one; roles system, user, assistant, tool.
            tools: functions in OpenAI's form, described to the model in the system message.
            add_generation_prompt: end where the assistant is to speak.
            continue_final: end within the last message, which is the beginning of the assistant's
                answer; the model goes on from there.

        Raises:
            ChatError: a message or a tool is malformed, or the tokenizer lacks a control token.
        """
        if not messages:
            raise ChatError("messages is empty, allowed is at least one message")
        parsed = [parse_message(message, place) for place, message in enumerate(messages)]
        if continue_final:
            if parsed[-1].role != "assistant" or parsed[-1].tool_calls:
                raise ChatError(
                    f"messages[{len(parsed) - 1}] cannot be continued, only an assistant's words "
                    "can"
                )
            if not parsed[-1].content:  # no word yet: it is for the model to begin
                parsed, continue_final, add_generation_prompt = parsed[:-1], False, True
        if tools:
            text = tools_text(tools)
            if parsed and parsed[0].role == "system":
                parsed[0] = Message("system", f"{parsed[0].content}\n\n{text}")
            else:
                parsed.insert(0, Message("system", text))
        out = Rendered()
        out.add([self.tokenizer.bos_id])
        place = 0
        while place < len(parsed):
            message = parsed[place]
            if message.role == "tool":
                results = []
                while place < len(parsed) and parsed[place].role == "tool":
                    results.append(parsed[place].content)
                    place += 1
                self._results(out, results)
                continue
            self._turn(out, message)
            place += 1
        if continue_final:
            out.drop_end()  # the end of the turn, which _answer has set
            return out
        if add_generation_prompt and (not parsed or parsed[-1].role != "tool"):
            self._open_assistant(out)
        return out

    def fim(self, prefix: str, suffix: str) -> list[int]:
        """The prompt whose continuation goes between ``prefix`` and ``suffix`` (PSM order)."""
        return [
            self.tokenizer.bos_id,
            self.tokenizer.control(special.FIM_BEGIN),
            *self.tokenizer.encode(prefix),
            self.tokenizer.control(special.FIM_HOLE),
            *self.tokenizer.encode(suffix),
            self.tokenizer.control(special.FIM_END),
        ]

    def parse_tool_calls(self, ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        """The text and the tool calls of an assistant's tokens.

        Raises:
            ChatError: a call is cut off or malformed.
        """
        reader = CallReader(self.tokenizer)
        events = [event for token in ids for event in reader.push(token)] + reader.finish()
        if reader.problem is not None:
            raise ChatError(reader.problem)
        names = {event.index: event.name for event in events if isinstance(event, CallStart)}
        arguments = dict.fromkeys(names, "")
        for event in events:
            if isinstance(event, CallArguments):
                arguments[event.index] += event.text
        text = self.tokenizer.decode(event.token for event in events if isinstance(event, Word))
        text += "".join(event.text for event in events if isinstance(event, Stray))
        return text, tuple(ToolCall(name, arguments[index]) for index, name in names.items())

    def _say(self, out: Rendered, text: str, learned: bool = False) -> None:
        out.add(self.tokenizer.encode(text), learned)

    def _mark(self, out: Rendered, name: str, learned: bool = False) -> None:
        if name not in self.tokenizer.special_ids:
            raise ChatError(f"this conversation needs {name}, which this tokenizer does not have")
        out.add([self.tokenizer.special_ids[name]], learned)

    def _answer(self, out: Rendered, message: Message) -> None:
        """An assistant's words, calls and end of turn: all that a model learns."""
        self._say(out, message.content, learned=True)
        if message.tool_calls:
            self._mark(out, special.CALLS_BEGIN, learned=True)
            for number, call in enumerate(message.tool_calls):
                if number:
                    self._say(out, "\n", learned=True)
                self._mark(out, special.CALL_BEGIN, learned=True)
                self._say(out, "function", learned=True)
                self._mark(out, special.TOOL_SEP, learned=True)
                self._say(out, f"{call.name}\n```json\n{call.arguments}\n```", learned=True)
                self._mark(out, special.CALL_END, learned=True)
            self._mark(out, special.CALLS_END, learned=True)
        out.add([self.tokenizer.eos_id], learned=True)

    def _results(self, out: Rendered, results: Sequence[str]) -> None:
        self._mark(out, special.OUTPUTS_BEGIN)
        for number, result in enumerate(results):
            if number:
                self._say(out, "\n")
            self._mark(out, special.OUTPUT_BEGIN)
            self._say(out, result)
            self._mark(out, special.OUTPUT_END)
        self._mark(out, special.OUTPUTS_END)

    @abstractmethod
    def _turn(self, out: Rendered, message: Message) -> None: ...

    @abstractmethod
    def _open_assistant(self, out: Rendered) -> None: ...


class FormatV2(ChatFormat):
    """``User: …``, ``Assistant: …`` in plain words, as V2, V2-Lite and Coder-V2 were trained.

    An answer that follows tool results comes directly behind them.
    """

    def _turn(self, out: Rendered, message: Message) -> None:
        if message.role == "system":
            self._say(out, f"{message.content}\n\n")
        elif message.role == "user":
            self._say(out, f"User: {message.content}\n\n")
        elif self._behind_results(out):
            self._answer(out, message)
        else:
            # The space belongs to the answer: a prompt ends in "Assistant:", and a space there
            # makes the published models answer in the wrong language or repeat themselves.
            self._say(out, "Assistant:")
            self._answer(out, Message("assistant", f" {message.content}", message.tool_calls))

    def _open_assistant(self, out: Rendered) -> None:
        self._say(out, "Assistant:")

    def _behind_results(self, out: Rendered) -> bool:
        return out.ids[-1] == self.tokenizer.special_ids.get(special.OUTPUTS_END)


class FormatV25(ChatFormat):
    """``<｜User｜>…<｜Assistant｜>…`` as V2.5 was trained; no newlines between turns."""

    def _turn(self, out: Rendered, message: Message) -> None:
        if message.role == "system":
            self._say(out, message.content)
        elif message.role == "user":
            self._mark(out, special.USER)
            self._say(out, message.content)
        else:
            if out.ids[-1] != self.tokenizer.special_ids.get(special.OUTPUTS_END):
                self._mark(out, special.ASSISTANT)
            self._answer(out, message)

    def _open_assistant(self, out: Rendered) -> None:
        self._mark(out, special.ASSISTANT)


FORMATS: dict[str, type[ChatFormat]] = {"v2": FormatV2, "v2.5": FormatV25}


def chat_format(name: str, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of that name.

    Raises:
        ChatError: there is none.
    """
    if name not in FORMATS:
        raise ChatError(f"chat format {name!r} is unknown, allowed are {', '.join(FORMATS)}")
    return FORMATS[name](tokenizer)


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """The description of functions that the V2.5 line was trained to find in its system message.

    Raises:
        ChatError: a tool has no function with a name.
    """
    lines = ["## Tools", "", "### Function", "", "You have the following functions available:", ""]
    for place, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ChatError(
                f"tools[{place}] is {str(tool)[:80]}, allowed is a function with a name"
            )
        schema = json.dumps(function, ensure_ascii=False)
        lines += [f"- `{function['name']}`:", "```json", schema, "```"]
    return "\n".join(lines)
