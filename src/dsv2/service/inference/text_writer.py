"""Completions as bytes: event by event, or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from dsv2.service.inference.answers import TextChoice, TextCompletion, TextLogprobs, Usage, encode
from dsv2.service.inference.chat_writer import Heading
from dsv2.service.inference.generation import Choice, Piece
from dsv2.service.inference.logprobs import TextLogprobsBuilder, joined
from dsv2.service.inference.sse import DONE, WholeWriter, event
from dsv2.service.web.errors import ApiError
from dsv2.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextForm:
    """What a completion is to hold.

    Attributes:
        tokenizer: of the model.
        echoes: the text of each prompt to be repeated, or None.
        per_prompt: answers computed for each prompt.
        kept: of those, how many are given: the likeliest.
        logprobs: alternatives per token, or None without logprobs.
    """

    tokenizer: Tokenizer
    echoes: Sequence[str] | None
    per_prompt: int
    kept: int
    logprobs: int | None


class _Parts:
    """Turns the pieces of one choice into text and logprobs, the prompt's first."""

    def __init__(self, form: TextForm) -> None:
        self._form = form
        self._builder = TextLogprobsBuilder(form.tokenizer)

    def take(self, piece: Piece) -> tuple[str, TextLogprobs | None]:
        text, form = piece.text, self._form
        parts: list[TextLogprobs] = []
        if piece.is_first and form.echoes is not None:
            text = form.echoes[piece.choice.index // form.per_prompt] + text
            if form.logprobs is not None and piece.prompt_logprobs is not None:
                prompt = piece.choice.request.prompt_ids
                parts.append(self._builder.add(prompt, piece.prompt_logprobs, form.logprobs))
        if form.logprobs is None:
            return text, None
        if piece.tokens:
            parts.append(self._builder.add(piece.tokens, piece.logprobs, form.logprobs))
        return text, joined(parts)


class TextStreamWriter:
    """Server-sent events.

    Args:
        heading: of each.
        form: what they hold.
        with_usage: end with the usage.
    """

    is_stream = True

    def __init__(self, heading: Heading, form: TextForm, *, with_usage: bool) -> None:
        self._heading, self._form, self._with_usage = heading, form, with_usage
        self._parts: dict[int, _Parts] = {}

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Events of what has come."""
        out = []
        for piece in pieces:
            index = piece.choice.index
            parts = self._parts.get(index)
            if parts is None:
                parts = self._parts[index] = _Parts(self._form)
            text, logprobs = parts.take(piece)
            if text or piece.finish is not None or (logprobs is not None and logprobs.tokens):
                out.append(self._chunk(TextChoice(index, text, logprobs, piece.finish)))
        return b"".join(out)

    def abandon(self, choices: Sequence[Choice]) -> bytes:
        """The honest end of answers that were cut off."""
        return b"".join(
            self._chunk(TextChoice(choice.index, "", None, "insufficient_system_resource"))
            for choice in choices
        )

    def fail(self, error: ApiError) -> bytes:
        """The last event."""
        return event(error.body)

    def close(self, usage: Usage) -> bytes:
        """The usage, where it was asked for, and the end."""
        return (self._event([], usage) if self._with_usage else b"") + DONE

    def _chunk(self, choice: TextChoice) -> bytes:
        return self._event([choice], None if self._with_usage else UNSET)

    def _event(self, choices: list[TextChoice], usage: Usage | UnsetType | None) -> bytes:
        return event(_completion(self._heading, choices, usage))


@dataclass
class _Answer:
    parts: _Parts
    text: list[str] = field(default_factory=list)
    logprobs: list[TextLogprobs] = field(default_factory=list)
    total: float = 0.0
    tokens: int = 0
    finish: str | None = None

    @property
    def likelihood(self) -> float:
        """Mean logprob of a token."""
        return self.total / max(self.tokens, 1)


class TextWriter(WholeWriter):
    """The whole answer at once; arguments as :class:`TextStreamWriter`'s."""

    def __init__(self, heading: Heading, form: TextForm) -> None:
        self._heading, self._form = heading, form
        self._answers: dict[int, _Answer] = {}

    def write(self, pieces: Sequence[Piece]) -> bytes:
        """Keep what has come."""
        for piece in pieces:
            index = piece.choice.index
            answer = self._answers.get(index)
            if answer is None:
                answer = self._answers[index] = _Answer(_Parts(self._form))
            text, logprobs = answer.parts.take(piece)
            answer.text.append(text)
            if logprobs is not None:
                answer.logprobs.append(logprobs)
            answer.total += sum(one.chosen for one in piece.logprobs)
            answer.tokens += len(piece.tokens)
            answer.finish = piece.finish
        return b""

    def close(self, usage: Usage) -> bytes:
        """The answer."""
        answers = [answer for _, answer in sorted(self._answers.items())]
        size, kept = self._form.per_prompt, self._form.kept
        best: list[_Answer] = []
        for start in range(0, len(answers), size):
            group = answers[start : start + size]
            if kept < size:
                group = sorted(group, key=lambda answer: -answer.likelihood)[:kept]
            best += group
        choices = [
            TextChoice(
                index,
                "".join(answer.text),
                None if self._form.logprobs is None else joined(answer.logprobs),
                answer.finish,
            )
            for index, answer in enumerate(best)
        ]
        return encode(_completion(self._heading, choices, usage))


def _completion(
    head: Heading, choices: list[TextChoice], usage: Usage | UnsetType | None
) -> TextCompletion:
    return TextCompletion(
        head.id, "text_completion", head.created, head.model, head.fingerprint, choices, usage
    )
