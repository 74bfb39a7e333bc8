"""What is known of one request: its times and counts."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """One request from the moment it was due.

    All times are seconds of one clock that only goes forward. A chunk is an event that brings
    something of the answer; a server under load may put several tokens into one.

    Attributes:
        number: from 0, in the order of sending.
        due: when it was to be sent.
        started: when it was: the connection, if a new one is needed, comes after that.
        headers: when the answer's head was there.
        first: when the first chunk came. Where the model said nothing that is text but tokens were
            counted, when the answer's end came.
        ended: when nothing more was to come, or it failed.
        times: of every chunk.
        tokens: in every chunk, where the server says so in the chunk itself; else 0.
        prompt_tokens: as the server counted.
        cached_tokens: of the prompt, found in the server's cache.
        completion_tokens: as the server counted, else what the chunks say, else chunks.
        is_counted: whether the server sent its count.
        finish_reason: as the server sent it.
        status: of HTTP.
        failure: what kind of failure ended it; None for a whole answer.
        message: of the failure, for people.
        request_id: the server's name for it.
    """

    number: int
    due: float
    started: float = 0.0
    headers: float | None = None
    first: float | None = None
    ended: float = 0.0
    times: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    is_counted: bool = False
    finish_reason: str | None = None
    status: int | None = None
    failure: str | None = None
    message: str | None = None
    request_id: str | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token: from sending, connecting included, to the first chunk."""
        return None if self.first is None else self.first - self.started

    @property
    def tpot(self) -> float | None:
        """Time per output token: from first to last chunk over the tokens after the first."""
        if not self.times or self.completion_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) / (self.completion_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: times between one chunk and the next."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def latency(self) -> float:
        """End to end: from sending to the end of the answer."""
        return self.ended - self.started

    def to_dict(self, start: float) -> dict[str, Any]:
        """Its numbers as plain data, with times in seconds since ``start``."""

        def since(time: float | None) -> float | None:
            return None if time is None else round(time - start, 6)

        return {
            "number": self.number,
            "due": since(self.due),
            "started": since(self.started),
            "headers": since(self.headers),
            "first": since(self.first),
            "ended": since(self.ended),
            "chunks": [since(time) for time in self.times],
            "chunk_tokens": list(self.tokens) if any(self.tokens) else None,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "is_counted": self.is_counted,
            "finish_reason": self.finish_reason,
            "status": self.status,
            "failure": self.failure,
            "message": self.message,
            "request_id": self.request_id,
        }
