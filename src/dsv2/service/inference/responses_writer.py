"""Responses as bytes: event by event, or whole.

Both put the answer together in the same way; the whole one leaves the events away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsv2.service.inference.answers import CallDelta, FunctionDelta, Usage, encode
from dsv2.service.inference.generation import Choice, Piece
from dsv2.service.inference.response_answers import (
    IncompleteDetails,
    ModelResponse,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponseError,
    Status,
    response_usage,
)
from dsv2.service.inference.sse import WholeWriter, named_event
from dsv2.service.web.errors import ApiError

_Event = tuple[str, dict[str, Any]]


class _Growing:
    """A response that grows, and the events that tell of it.

    Words that come behind a call stand in a last message of their own.
    """

    def __init__(self, response: ModelResponse) -> None:
        self.response = response
        self.has_begun = False
        self._open: OutputMessage | OutputCall | None = None
        self._parts: list[str] = []
        self._late: list[str] = []
        self._is_cut = False

    def take(self, piece: Piece) -> Iterator[_Event]:
        """A piece more."""
        if piece.is_first:
            self.has_begun = True
            yield "response.created", {"response": self.response}
            yield "response.in_progress", {"response": self.response}
        if piece.text and isinstance(self._open, OutputCall):
            self._late.append(piece.text)
        elif piece.text:
            yield from self._say(piece.text)
        for call in piece.calls:
            yield from self._call(call)
        if piece.late:
            self._late.append(piece.late)
        self._is_cut = piece.finish == "length"

    def end(self, usage: Usage) -> Iterator[_Event]:
        """The last events."""
        status: Status = "incomplete" if self._is_cut else "completed"
        if late := "".join(self._late):
            yield from self._close("completed")
            yield from self._say(late)
        yield from self._close(status)
        response = self.response
        response.status, response.usage = status, response_usage(usage)
        if self._is_cut:
            response.incomplete_details = IncompleteDetails("max_output_tokens")
        yield f"response.{status}", {"response": response}

    def fail(self, error: ApiError) -> _Event:
        """The response as it failed."""
        self._settle("incomplete")
        response = self.response
        response.status = "failed"
        response.error = ResponseError(
            "server_error" if error.status >= 500 else "invalid_prompt", str(error)
        )
        return "response.failed", {"response": response}

    def _say(self, text: str) -> Iterator[_Event]:
        if self._open is None:
            place = len(self.response.output)
            id_ = f"msg_{self.response.id.removeprefix('resp_')}_{place}"
            yield from self._begin(OutputMessage(id_, "in_progress", []))
            yield "response.content_part.added", self._at(part=OutputText(""), content_index=0)
        self._parts.append(text)
        yield "response.output_text.delta", self._at(content_index=0, delta=text, logprobs=[])

    def _call(self, call: CallDelta) -> Iterator[_Event]:
        function = call.function
        assert isinstance(function, FunctionDelta)
        if isinstance(call.id, str):
            assert isinstance(function.name, str)
            yield from self._close("completed")
            id_ = "fc_" + call.id.removeprefix("call_")
            yield from self._begin(OutputCall(id_, call.id, function.name, "", "in_progress"))
        if arguments := function.arguments:
            assert isinstance(arguments, str)
            self._parts.append(arguments)
            yield "response.function_call_arguments.delta", self._at(delta=arguments)

    def _begin(self, item: OutputMessage | OutputCall) -> Iterator[_Event]:
        self._open, self._parts = item, []
        self.response.output.append(item)
        place = len(self.response.output) - 1
        yield "response.output_item.added", {"output_index": place, "item": item}

    def _settle(self, status: Status) -> None:
        """What has come is written into the open item."""
        item, text = self._open, "".join(self._parts)
        if isinstance(item, OutputMessage):
            item.status, item.content = status, [OutputText(text)]
        elif item is not None:
            item.status, item.arguments = status, text

    def _close(self, status: Status) -> Iterator[_Event]:
        self._settle(status)
        item = self._open
        if isinstance(item, OutputMessage):
            [part] = item.content
            done = self._at(content_index=0, text=part.text, logprobs=[])
            yield "response.output_text.done", done
            yield "response.content_part.done", self._at(content_index=0, part=part)
        elif item is not None:
            done = self._at(name=item.name, arguments=item.arguments)
            yield "response.function_call_arguments.done", done
        if item is not None:
            place = len(self.response.output) - 1
            yield "response.output_item.done", {"output_index": place, "item": item}
        self._open = None

    def _at(self, **fields: Any) -> dict[str, Any]:
        """Fields of an event of the open item."""
        assert self._open is not None
        place = len(self.response.output) - 1
        return {"item_id": self._open.id, "output_index": place} | fields


class ResponsesStreamWriter:
    """Server-sent events.

    Args:
        response: without output.
    """

    is_stream = True

    def __init__(self, response: ModelResponse) -> None:
        self._growing, self._sent = _Growing(response), 0

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Events of what has come."""
        return b"".join(self._event(*one) for piece in pieces for one in self._growing.take(piece))

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """Nothing: the error says it."""
        return b""

    def fail(self, error: ApiError) -> bytes:
        """The last event: of the response that failed, or of the error where there is none yet."""
        if self._growing.has_begun:
            return self._event(*self._growing.fail(error))
        body = error.body["error"]
        return self._event("error", {name: body[name] for name in ("code", "message", "param")})

    def close(self, usage: Usage) -> bytes:
        """The ends of item and response."""
        return b"".join([self._event(*one) for one in self._growing.end(usage)])

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        number, self._sent = self._sent, self._sent + 1
        return named_event(name, {"sequence_number": number} | fields)


class ResponsesWriter(WholeWriter):
    """The whole response at once; arguments as :class:`ResponsesStreamWriter`'s."""

    def __init__(self, response: ModelResponse) -> None:
        self._growing = _Growing(response)

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Keep what has come."""
        for piece in pieces:
            for _ in self._growing.take(piece):
                pass
        return b""

    def close(self, usage: Usage) -> bytes:
        """The response."""
        for _ in self._growing.end(usage):
            pass
        return encode(self._growing.response)
