"""A chat's answers as bytes: event by event, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from dsv2.service.inference.answers import (
    AssistantMessage,
    CallDelta,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    TokenLogprob,
    Usage,
    encode,
)
from dsv2.service.inference.generation import Choice, Piece
from dsv2.service.inference.logprobs import chat_entries
from dsv2.service.inference.sse import DONE, WholeWriter, event
from dsv2.service.inference.tool_stream import whole_calls
from dsv2.service.web.errors import ApiError
from dsv2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Heading:
    """What every event and every answer begins with."""

    id: str
    created: int
    model: str
    fingerprint: str


class ChatStreamWriter:
    """Server-sent events.

    Args:
        heading: of each.
        tokenizer: of the model.
        top_logprobs: alternatives per token, or None without logprobs.
        with_usage: end with the usage.
    """

    is_stream = True

    def __init__(
        self, heading: Heading, tokenizer: Tokenizer, top_logprobs: int | None, *, with_usage: bool
    ) -> None:
        self._heading, self._tokenizer = heading, tokenizer
        self._top_logprobs, self._with_usage = top_logprobs, with_usage

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Events of what has come."""
        return b"".join([self._chunk(one) for piece in pieces for one in self._choices(piece)])

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """The honest end of answers that were cut off."""
        return b"".join(
            self._chunk(
                ChunkChoice(choice.index, Delta(), finish_reason="insufficient_system_resource")
            )
            for choice in choices
        )

    def fail(self, error: ApiError) -> bytes:
        """The last event."""
        return event(error.body)

    def close(self, usage: Usage) -> bytes:
        """The usage, where it was asked for, and the end."""
        return (self._event([], usage) if self._with_usage else b"") + DONE

    def _choices(self, piece: Piece) -> list[ChunkChoice]:
        index, out = piece.choice.index, []
        if piece.is_first:
            out.append(ChunkChoice(index, Delta(role="assistant", content="")))
        logprobs = None
        if self._top_logprobs is not None and piece.tokens:
            entries = chat_entries(
                self._tokenizer, piece.tokens, piece.logprobs, self._top_logprobs
            )
            logprobs = ChatLogprobs(entries) if entries else None
        if piece.words or logprobs is not None:
            out.append(ChunkChoice(index, Delta(content=piece.words), logprobs))
        if piece.calls:
            out.append(ChunkChoice(index, Delta(tool_calls=piece.calls)))
        if piece.finish is not None:
            out.append(ChunkChoice(index, Delta(), finish_reason=piece.finish))
        return out

    def _chunk(self, choice: ChunkChoice) -> bytes:
        return self._event([choice], None if self._with_usage else UNSET)

    def _event(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> bytes:
        head = self._heading
        return event(
            ChatChunk(
                head.id, "chat.completion.chunk", head.created, head.model, head.fingerprint,
                choices, usage,
            )
        )  # fmt: skip


@dataclass
class _Answer:
    text: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    entries: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""


class ChatWriter(WholeWriter):
    """The whole answer at once; arguments as :class:`ChatStreamWriter`'s."""

    def __init__(self, heading: Heading, tokenizer: Tokenizer, top_logprobs: int | None) -> None:
        self._heading, self._tokenizer, self._top_logprobs = heading, tokenizer, top_logprobs
        self._answers: dict[int, _Answer] = {}

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Keep what has come."""
        for piece in pieces:
            answer = self._answers.setdefault(piece.choice.index, _Answer())
            answer.text.append(piece.words)
            answer.calls += piece.calls
            if self._top_logprobs is not None:
                answer.entries += chat_entries(
                    self._tokenizer, piece.tokens, piece.logprobs, self._top_logprobs
                )
            answer.finish = piece.finish or ""
        return b""

    def close(self, usage: Usage) -> bytes:
        """The answer."""
        head = self._heading
        choices = [
            ChatChoice(
                index,
                AssistantMessage(
                    "assistant",
                    "".join(answer.text),
                    whole_calls(answer.calls) if answer.calls else UNSET,
                ),
                None if self._top_logprobs is None else ChatLogprobs(answer.entries),
                answer.finish,
            )
            for index, answer in sorted(self._answers.items())
        ]
        return encode(
            ChatCompletion(
                head.id, "chat.completion", head.created, head.model, head.fingerprint, choices,
                usage,
            )
        )  # fmt: skip
