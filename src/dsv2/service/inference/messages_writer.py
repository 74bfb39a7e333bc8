"""Anthropic's messages as bytes: event by event, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from dsv2.service.inference.answers import CallDelta, FunctionDelta, Usage, encode, usage_of
from dsv2.service.inference.generation import Choice, Piece
from dsv2.service.inference.message_answers import (
    Message,
    StopReason,
    TextContent,
    ToolUseContent,
    message_usage,
)
from dsv2.service.inference.sse import WholeWriter, named_event
from dsv2.service.inference.tool_stream import whole_calls
from dsv2.service.web.error_shapes import anthropic_body
from dsv2.service.web.errors import ApiError


def _stop(piece: Piece) -> tuple[StopReason, str | None]:
    """Why an answer has ended, with its last piece; and the stop sequence that has ended it."""
    if piece.finish == "length":
        return "max_tokens", None
    if piece.finish == "tool_calls":
        return "tool_use", None
    stop = piece.choice.reader.stop
    return ("end_turn", None) if stop is None else ("stop_sequence", stop)


def _call_id(id_: str) -> str:
    return "toolu_" + id_.removeprefix("call_")


@dataclass
class _Answer:
    """What is kept of an answer until its end."""

    text: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    reason: StopReason | None = None
    stop: str | None = None


class MessagesStreamWriter:
    """Server-sent events. Words that come behind a call stand in a last block of their own.

    Args:
        id_: of the message.
        model: that answers.
    """

    is_stream = True

    def __init__(self, id_: str, model: str) -> None:
        self._id, self._model = id_, model
        self._late, self._end = _Answer(), _Answer()
        self._index, self._open = -1, ""

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Events of what has come."""
        out: list[bytes] = []
        for piece in pieces:
            if piece.is_first:
                out.append(self._start(piece))
            if piece.text and self._open == "tool_use":
                self._late.text.append(piece.text)
            elif piece.text:
                out.append(self._say(piece.text))
            out += [self._call(call) for call in piece.calls]
            self._late.text.append(piece.late)
            if piece.finish is not None:
                self._end.reason, self._end.stop = _stop(piece)
        return b"".join(out)

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """Nothing: the error says it."""
        return b""

    def fail(self, error: ApiError) -> bytes:
        """The last event."""
        return named_event("error", anthropic_body(error.status, str(error)))

    def close(self, usage: Usage) -> bytes:
        """The ends of block and message."""
        late = "".join(self._late.text)
        out = [self._close_block(), self._say(late) + self._close_block() if late else b""]
        delta = {"stop_reason": self._end.reason, "stop_sequence": self._end.stop}
        out.append(named_event("message_delta", {"delta": delta, "usage": message_usage(usage)}))
        return b"".join([*out, named_event("message_stop", {})])

    def _start(self, piece: Piece) -> bytes:
        prompt = len(piece.choice.request.prompt_ids)
        usage = message_usage(usage_of(prompt, piece.cached_tokens, 0))
        message = Message(self._id, self._model, [], None, None, usage)
        return named_event("message_start", {"message": message}) + named_event("ping", {})

    def _say(self, text: str) -> bytes:
        out = b"" if self._open == "text" else self._open_block(TextContent(""), "text")
        return out + self._delta({"type": "text_delta", "text": text})

    def _call(self, call: CallDelta) -> bytes:
        out, function = b"", call.function
        assert isinstance(function, FunctionDelta)
        if isinstance(call.id, str):
            assert isinstance(function.name, str)
            block = ToolUseContent(_call_id(call.id), function.name, {})
            out = self._close_block() + self._open_block(block, "tool_use")
        if function.arguments:
            out += self._delta({"type": "input_json_delta", "partial_json": function.arguments})
        return out

    def _open_block(self, block: TextContent | ToolUseContent, kind: str) -> bytes:
        self._index, self._open = self._index + 1, kind
        fields = {"index": self._index, "content_block": block}
        return named_event("content_block_start", fields)

    def _close_block(self) -> bytes:
        was_open, self._open = self._open, ""
        return named_event("content_block_stop", {"index": self._index}) if was_open else b""

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_event("content_block_delta", {"index": self._index, "delta": delta})


class MessagesWriter(WholeWriter):
    """The whole message at once; arguments as :class:`MessagesStreamWriter`'s."""

    def __init__(self, id_: str, model: str) -> None:
        self._id, self._model = id_, model
        self._answer = _Answer()

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Keep what has come."""
        answer = self._answer
        for piece in pieces:
            answer.text.append(piece.words)
            answer.calls += piece.calls
            if piece.finish is not None:
                answer.reason, answer.stop = _stop(piece)
        return b""

    def fail(self, error: ApiError) -> bytes:
        """The error alone."""
        return encode(anthropic_body(error.status, str(error)))

    def close(self, usage: Usage) -> bytes:
        """The message."""
        answer, text = self._answer, "".join(self._answer.text)
        content: list[TextContent | ToolUseContent] = [TextContent(text)] if text else []
        for call in whole_calls(answer.calls):
            given = _read(call.function.arguments)
            content.append(ToolUseContent(_call_id(call.id), call.function.name, given))
        return encode(
            Message(
                self._id, self._model, content, answer.reason, answer.stop, message_usage(usage)
            )
        )  # fmt: skip


def _read(arguments: str) -> dict[str, Any]:
    """A call's arguments, of one that was cut off what there is; nothing of what is no object."""
    try:
        value = from_json(arguments, allow_partial=True, allow_inf_nan=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
