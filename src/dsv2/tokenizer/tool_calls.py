"""The grammar of tool calls, read token by token, so that a whole answer and a stream agree.

An answer's calls stand behind its words::

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    ARGUMENTS
    ```<｜tool▁call▁end｜>...<｜tool▁calls▁end｜>

Control tokens are told by their ids, never by their text. What begins like a call and turns out to
be none is text; once the name and the opening fence were read it is a call, even if it is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv2.tokenizer import special
from dsv2.tokenizer.bpe import Tokenizer
from dsv2.tokenizer.stream import StreamDecoder

_OPEN = "\n```json\n"
_CLOSE = "\n```"


@dataclass(frozen=True)
class Word:
    """A token outside all calls, for the caller to decode."""

    token: int


@dataclass(frozen=True)
class Stray:
    """Text that stood where a call was expected."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins: its place among the calls, from 0, and its function."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """A call is complete, or ``is_cut`` off."""

    index: int
    is_cut: bool = False


Event = Word | Stray | CallStart | CallArguments | CallEnd


class CallReader:
    """Follows one answer.

    Attributes:
        problem: what is wrong with the first call that is malformed or cut off, else None.
        num_calls: calls that have begun.
        is_inside: whether calls have begun and not all of them ended.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.special_ids
        self._calls_begin, self._calls_end, self._call_begin, self._call_end, self._separator = (
            ids.get(name, -1) for name in special.CALLS
        )
        self._tokenizer = tokenizer
        self.problem: str | None = None
        self.num_calls = 0
        self.is_inside = False
        self._between: list[int] = []
        self._call: _Call | None = None

    def push(self, token: int) -> list[Event]:
        """What a token tells."""
        if not self.is_inside:
            if token == self._calls_begin:
                self.is_inside = True
                return []
            return [Word(token)]
        if token in (self._call_begin, self._call_end, self._calls_end):
            return self._turn(token)
        if self._call is None:
            self._between.append(token)
            return []
        if token == self._separator:
            return self._call.separate()
        return self._events(self._call.push(token))

    def finish(self) -> list[Event]:
        """What the end of the answer tells."""
        return self._close_call(is_cut=True) if self._call else self._close_gap()

    def _turn(self, token: int) -> list[Event]:
        """A control token: a call or all of them begin or end."""
        if self._call is not None:
            events = self._close_call(is_cut=token != self._call_end)
        else:
            events = self._close_gap()
            if token == self._call_end:
                self._complain("a tool call ends that did not begin")
        if token == self._call_begin:
            self._call = _Call(self._tokenizer)
        self.is_inside = token != self._calls_end
        return events

    def _close_gap(self) -> list[Event]:
        text = self._tokenizer.decode(self._between)
        self._between = []
        return [Stray(text)] if text.strip() else []

    def _close_call(self, *, is_cut: bool) -> list[Event]:
        call, self._call = self._call, None
        assert call is not None
        events = self._events(call.finish())
        if is_cut:
            self._complain("a tool call is cut off")
        elif not call.has_separator:
            self._complain(f"a tool call has no {special.TOOL_SEP}")
        elif not call.is_closed:
            self._complain(f"a tool call has no JSON block: {call.seen[:80]!r}")
        if call.has_begun:
            events.append(CallEnd(self.num_calls - 1, is_cut or not call.is_closed))
        elif call.seen.strip():
            events.append(Stray(call.seen))
        return events

    def _complain(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _events(self, found: tuple[str | None, str]) -> list[Event]:
        name, arguments = found
        events: list[Event] = []
        if name is not None:
            self.num_calls += 1
            events.append(CallStart(self.num_calls - 1, name))
        if arguments:
            events.append(CallArguments(self.num_calls - 1, arguments))
        return events


class _Call:
    """One call; ``seen`` is its text as long as it has not begun."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self.seen = ""
        self.has_separator = self.has_begun = self.is_closed = False
        self._name_from = 0
        self._held = ""

    def separate(self) -> list[Event]:
        """The separator: the name follows."""
        if not self.has_separator:
            self.seen += self._decoder.finish()
            self.has_separator, self._name_from = True, len(self.seen)
        return []

    def push(self, token: int) -> tuple[str | None, str]:
        """The name, when it is known now, and arguments."""
        return self._take(self._decoder.push(token))

    def finish(self) -> tuple[str | None, str]:
        """What is left; the closing fence, or what came of it, and text behind it are dropped."""
        name, arguments = self._take(self._decoder.finish())
        self.is_closed = self._held.startswith(_CLOSE)
        return name, arguments

    def _take(self, text: str) -> tuple[str | None, str]:
        if self.has_begun:
            return None, self._release(text)
        self.seen += text
        if not self.has_separator:
            return None, ""
        name, fence, rest = self.seen[self._name_from :].partition(_OPEN)
        if not fence or not name:
            return None, ""
        self.has_begun = True
        return name, self._release(rest)

    def _release(self, text: str) -> str:
        """The arguments before the last fence; the end of one may still come."""
        self._held += text
        cut = self._held.rfind(_CLOSE)
        if cut < 0:
            cut = len(self._held)
            for size in range(len(_CLOSE) - 1, 0, -1):
                if self._held.endswith(_CLOSE[:size]):
                    cut -= size
                    break
        out, self._held = self._held[:cut], self._held[cut:]
        return out
