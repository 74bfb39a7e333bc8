"""What a caller gets: answers, pieces of answers, and how long they took."""

from __future__ import annotations

from dataclasses import dataclass

from dsv2.engine.sampler import TokenLogprobs
from dsv2.tokenizer import ToolCall


@dataclass(frozen=True)
class Timings:
    """Seconds of one request.

    Attributes:
        time_to_first_token: from the call to the first token.
        total: from the call to the last token.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer.
    """

    time_to_first_token: float
    total: float
    prompt_tokens: int
    new_tokens: int

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens over the time to the first token."""
        return self.prompt_tokens / max(self.time_to_first_token, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first over the time they took; 0 with one token."""
        if self.new_tokens < 2:
            return 0.0
        return (self.new_tokens - 1) / max(self.total - self.time_to_first_token, 1e-9)


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        prompt_ids: tokens of the prompt.
        token_ids: tokens of the answer, the one that ended it included.
        text: the answer without control tokens, up to a stop string.
        finish_reason: ``stop``, ``length``, or ``error`` when the model's numbers were not finite.
        logprobs: one entry per token, where they were asked for.
        tool_calls: functions that the assistant calls, in a chat.
        timings: how long it took.
        cached_tokens: tokens of the prompt that were found in the cache.
        prompt_logprobs: one entry per token of the prompt, None for the first, where they were
            asked for.
        error: what went wrong, with finish reason ``error``.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of an answer; the last has the whole as ``completion``."""

    text: str
    completion: Completion | None = None
