"""Tokens to text as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from dsv2.tokenizer.bpe import Tokenizer


class StreamDecoder:
    """Decodes token by token; the pieces together equal :meth:`Tokenizer.decode` of them all."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, number: int) -> str:
        """The text that token ``number`` completes; bytes of an unfinished character wait."""
        if self._skip and self._tokenizer.is_special(number):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(number))

    def push_all(self, numbers: Iterable[int]) -> str:
        """The text that several tokens complete, for less than one :meth:`push` for each takes."""
        found = self._tokenizer.bytes_of(numbers, skip_special_tokens=self._skip)
        return self._utf8.decode(found)

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that never came whole."""
        return self._utf8.decode(b"", final=True)
