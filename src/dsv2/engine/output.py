"""From tokens to text as it may be shown: whole characters, and never part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from dsv2.engine.request import SamplingParams
from dsv2.tokenizer import StreamDecoder, Tokenizer


class OutputText:
    """The text of one answer, piece by piece.

    The pieces that :meth:`push` and :meth:`finish` return are together the whole text. A stop
    string ends it, and neither it nor the beginning of one is ever given out.

    Attributes:
        stop: the stop string that has ended it.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops = params.stops
        self._longest = max(map(len, self._stops), default=0)
        self._min_tokens = params.min_tokens
        self._tokens = 0
        self._held = ""
        self._finished = False
        self.stop: str | None = None

    def push(self, token: int) -> tuple[str, bool]:
        """The text that a token lets out, and whether a stop string has ended the answer."""
        text = self._decoder.push(token)
        if not self._stops:
            return text, False
        self._tokens += 1
        self._held += text
        return self._release(final=False)

    @property
    def is_plain(self) -> bool:
        """Whether nothing in the text can end the answer, so that :meth:`push_all` may be used."""
        return not self._stops

    def push_all(self, tokens: Sequence[int]) -> str:
        """The text that several tokens let out, where there is no stop string to look for."""
        assert not self._stops
        return self._decoder.push_all(tokens)

    def finish(self) -> str:
        """What is left when the answer ends otherwise."""
        if self._finished:
            return ""
        self._held += self._decoder.finish()
        return self._release(final=True)[0]

    def _release(self, *, final: bool) -> tuple[str, bool]:
        if self._tokens > self._min_tokens or (final and self._tokens >= self._min_tokens):
            found = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
            if found:
                place, self.stop = min(found)
                text, self._held, self._finished = self._held[:place], "", True
                return text, True
        kept = 0 if final else self._kept()
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def _kept(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for size in range(min(self._longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
