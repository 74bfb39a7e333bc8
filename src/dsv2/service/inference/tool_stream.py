"""Text and tool calls of one answer, as deltas while its tokens come."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsv2.engine.output import OutputText
from dsv2.engine.request import SamplingParams
from dsv2.service.inference.answers import Call, CallDelta, CalledFunction, FunctionDelta
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.tool_calls import (
    CallArguments,
    CallEnd,
    CallReader,
    CallStart,
    Event,
    Stray,
    Word,
)


@dataclass
class Told:
    """What some tokens told: text, pieces of calls, and whether the answer ends with them."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    is_over: bool = False


class AnswerReader:
    """Reads one answer.

    Args:
        tokenizer: of the model.
        params: stop strings and ``min_tokens``; stop strings end text, never a call's arguments.
        tools: whether tool calls are read; else control tokens are silent.
        max_calls: the answer ends with this many.

    Attributes:
        num_calls: calls that have begun.
        may_end: whether the answer may end by what is read, before the engine ends it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        tools: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self._text = OutputText(tokenizer, params)
        self._reader = CallReader(tokenizer) if tools else None
        self._max_calls = max_calls
        self.num_calls = 0
        self.may_end = bool(params.stop) or max_calls is not None

    @property
    def stop(self) -> str | None:
        """The stop string that has ended the answer."""
        return self._text.stop

    @property
    def is_plain(self) -> bool:
        """Whether tokens tell nothing but text and end nothing: :meth:`text_of` may be used."""
        return self._reader is None and self._text.is_plain

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of several tokens at once, as :meth:`push` tells it one by one."""
        return self._text.push_all(tokens)

    def push(self, token: int) -> Told:
        """What a token tells."""
        if self._reader is None:
            text, is_over = self._text.push(token)
            return Told(text, is_over=is_over)
        told = Told()
        events = self._reader.push(token)
        if not events and self._reader.is_inside:
            told.text = self._text.finish()  # what was held back as a stop string's beginning
        self._tell(events, told)
        return told

    def finish(self) -> Told:
        """What is left when the answer ends otherwise than by :attr:`Told.is_over`."""
        told = Told(self._text.finish())
        if self._reader is not None:
            self._tell(self._reader.finish(), told)
        return told

    def _tell(self, events: list[Event], told: Told) -> None:
        for event in events:
            match event:
                case Word(token):
                    text, told.is_over = self._text.push(token)
                    told.text += text
                case Stray(text):
                    told.text += text
                case CallStart(index, name):
                    self.num_calls = index + 1
                    function = FunctionDelta(name=name, arguments="")
                    told.calls.append(
                        CallDelta(index, f"call_{secrets.token_hex(12)}", "function", function)
                    )
                case CallArguments(index, text):
                    told.calls.append(CallDelta(index, function=FunctionDelta(arguments=text)))
                case CallEnd(index):
                    told.is_over = index + 1 == self._max_calls


def whole_calls(deltas: list[CallDelta]) -> list[Call]:
    """The calls that deltas put together make."""
    calls: dict[int, Call] = {}
    for delta in deltas:
        assert isinstance(delta.function, FunctionDelta)
        arguments = delta.function.arguments
        assert isinstance(arguments, str)
        if isinstance(delta.id, str):
            assert isinstance(delta.function.name, str)
            calls[delta.index] = Call(
                delta.id, "function", CalledFunction(delta.function.name, arguments)
            )
        else:
            calls[delta.index].function.arguments += arguments
    return list(calls.values())
