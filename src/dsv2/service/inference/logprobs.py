"""Logprobs in the two shapes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence

from dsv2.service.inference.answers import TextLogprobs, TokenLogprob, TopLogprob
from dsv2.service.worker.wire import Logprobs
from dsv2.tokenizer import StreamDecoder, Tokenizer


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text; bytes that are no character by themselves become U+FFFD."""
    return tokenizer.token_bytes(token).decode("utf-8", errors="replace")


def chat_entries(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[Logprobs], count: int
) -> list[TokenLogprob]:
    """An entry per token, control tokens left out: they are no content.

    Args:
        tokenizer: of the model.
        tokens: of the answer.
        logprobs: one per token.
        count: alternatives per token.
    """
    entries: list[TokenLogprob] = []
    for token, found in zip(tokens, logprobs, strict=True):
        if tokenizer.is_special(token):
            continue
        best = [
            TopLogprob(token_text(tokenizer, one), value, list(tokenizer.token_bytes(one)))
            for one, value in found.top[:count]
        ]
        entries.append(
            TokenLogprob(
                token_text(tokenizer, token), found.chosen, list(tokenizer.token_bytes(token)), best
            )
        )
    return entries


class TextLogprobsBuilder:
    """Logprobs of a completion, bit by bit.

    Every token has an entry, the one that ends an answer too: harnesses count on it. Of tokens that
    read alike the larger value is kept, and the one that was taken is always among the best.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def add(
        self, tokens: Sequence[int], logprobs: Sequence[Logprobs | None], count: int
    ) -> TextLogprobs:
        """The entries of further tokens; ``count`` alternatives for each."""
        out = TextLogprobs([], [], [], [])
        for token, found in zip(tokens, logprobs, strict=True):
            out.text_offset.append(self._offset)
            self._offset += len(self._decoder.push(token))
            out.tokens.append(token_text(self._tokenizer, token))
            if found is None:
                out.token_logprobs.append(None)
                out.top_logprobs.append(None)
                continue
            out.token_logprobs.append(found.chosen)
            best: dict[str, float] = {}
            for one, value in (*found.top[:count], (token, found.chosen)):
                text = token_text(self._tokenizer, one)
                best[text] = max(value, best.get(text, value))
            out.top_logprobs.append(best)
        return out


def joined(parts: Sequence[TextLogprobs]) -> TextLogprobs:
    """The entries of several parts as one."""
    out = TextLogprobs([], [], [], [])
    for part in parts:
        out.text_offset += part.text_offset
        out.token_logprobs += part.token_logprobs
        out.tokens += part.tokens
        out.top_logprobs += part.top_logprobs
    return out
