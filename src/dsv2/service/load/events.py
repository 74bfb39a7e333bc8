"""A stream of server-sent events and the answer that it tells piece by piece."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_LINE_BYTES = 4 << 20
"""A longer line is no event of an answer."""

DONE = b"[DONE]"


class MalformedError(ValueError):
    """The server sent what the format does not allow."""


class EventReader:
    """Cuts bytes as they come into the data of events.

    Comments, which servers send to keep a connection alive, and fields other than ``data`` are
    skipped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that ``piece`` completes.

        Raises:
            MalformedError: a line does not end.
        """
        if self._rest:
            piece = self._rest + piece
        *lines, self._rest = piece.split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise MalformedError(f"a line is longer than {MAX_LINE_BYTES} bytes")
        found = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                found.append(b"\n".join(self._data))
                self._data.clear()
        return found


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: int | None = None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, found in a cache; 0 where the server does not say."""
        if self.prompt_cache_hit_tokens is not None:
            return self.prompt_cache_hit_tokens
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    @property
    def has_text(self) -> bool:
        """Whether it brings something of the answer, not only a role or an end."""
        if self.text or self.token_ids:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.tool_calls or delta.reasoning_content or delta.reasoning
        )


class Chunk(msgspec.Struct):
    """What of an event's data matters here; everything else is skipped unread."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None

    @property
    def failure(self) -> str | None:
        """What the server says went wrong in mid-stream."""
        return None if self.error is None else error_message(msgspec.json.encode(self.error))


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def read_chunk(data: bytes) -> Chunk:
    """A piece of an answer.

    Raises:
        MalformedError: it is no JSON, or not of the form of an answer's piece.
    """
    try:
        return _decode_chunk(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError(f"no piece of an answer: {error}") from error


def error_message(body: bytes) -> str:
    """The message of an error's body in any of the usual shapes, else the body itself."""
    text = body.decode("utf-8", "replace")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return text
    for _ in range(2):
        if isinstance(value, dict):
            value = value.get("error", value.get("message", value.get("detail", value)))
    if isinstance(value, dict):
        value = value.get("message", value)
    return value if isinstance(value, str) else text
