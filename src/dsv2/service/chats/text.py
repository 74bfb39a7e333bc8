"""The text of an answer while it grows, and those who read along.

Places are counted in characters as Unicode counts them: code points.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from dsv2.service.inference.answers import TokenLogprob


@dataclass(frozen=True)
class Delta:
    """A piece of the text.

    Attributes:
        at: where it begins.
        text: of it.
        tokens: that came with it, where they are kept.
        count: how many it took; 0 where that is not known.
    """

    at: int
    text: str
    tokens: list[dict[str, Any]] | None = None
    count: int = 0

    @property
    def shape(self) -> dict[str, Any]:
        """As it is sent."""
        fields: dict[str, Any] = {"at": self.at, "text": self.text}
        if self.tokens is not None:
            fields["tokens"] = self.tokens
        if self.count:
            fields["count"] = self.count
        return fields


class GrowingText:
    """Text that grows at its end, until it is closed.

    Args:
        begun: what there is already.

    Attributes:
        is_closed: whether nothing follows.
    """

    def __init__(self, begun: str = "") -> None:
        self.is_closed = False
        self._parts = [Delta(0, begun)] if begun else []
        self._end = len(begun)
        self._news = asyncio.Event()

    @property
    def whole(self) -> str:
        """All of it."""
        if len(self._parts) > 1:
            return "".join(part.text for part in self._parts)
        return self._parts[0].text if self._parts else ""

    def add(self, text: str, tokens: list[dict[str, Any]] | None = None, *, count: int = 0) -> None:
        """Let it grow."""
        self._parts.append(Delta(self._end, text, tokens, count))
        self._end += len(text)
        self._tell()

    def close(self) -> None:
        """Nothing follows."""
        self.is_closed = True
        self._tell()

    def read(self, start: int) -> Reader:
        """A reader that begins at a place, or at the end if that comes before."""
        return Reader(self, self._parts, min(start, self._end))

    async def wait(self, seconds: float) -> bool:
        """Wait until it grows or is closed; False if nothing happens for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Reader:
    """One who reads along; see :meth:`GrowingText.read`."""

    def __init__(self, text: GrowingText, parts: list[Delta], at: int) -> None:
        self._text, self._parts, self._at = text, parts, at
        self._next = self._count = 0
        while self._next < len(parts):
            part = parts[self._next]
            if part.at + len(part.text) > at or part.at >= at:
                break
            self._next += 1

    def take(self) -> Delta | None:
        """What has come since, or None; tokens without text yet count to what follows."""
        fresh, self._next = self._parts[self._next :], len(self._parts)
        if not fresh:
            return None
        tokens = [token for part in fresh if part.at >= self._at for token in part.tokens or ()]
        has_tokens = any(part.tokens is not None for part in fresh)
        text = "".join(part.text for part in fresh)[max(0, self._at - fresh[0].at) :]
        self._count += sum(part.count for part in fresh)
        if not text and not tokens:
            return None
        delta = Delta(self._at, text, tokens if has_tokens else None, self._count)
        self._at += len(text)
        self._count = 0
        return delta


def token_shape(entry: TokenLogprob) -> dict[str, Any]:
    """A token with its logprob and the best ones at its place."""
    return {
        "text": entry.token,
        "logprob": entry.logprob,
        "top": [[one.token, one.logprob] for one in entry.top_logprobs],
    }
