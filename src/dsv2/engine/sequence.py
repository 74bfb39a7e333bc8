"""A request under way, and its part of a step. Plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dsv2.engine.blocks import BlockPool, Prefix
from dsv2.engine.request import Request
from dsv2.shapes import BLOCK_SIZE


def blocks_for(tokens: int) -> int:
    """Cache blocks that hold so many tokens."""
    return -(-tokens // BLOCK_SIZE)


UNKNOWN = -1
"""Stands in a sequence's tokens for one that a step under way is still choosing."""


@dataclass(eq=False)
class Sequence:
    """A request under way.

    Attributes:
        request: what was asked.
        seed: of its random choices.
        tokens: prompt and answer so far; the last one may be :data:`UNKNOWN`.
        drafts: guesses at the tokens that follow, to be verified in the next step.
        computed: how many tokens are in the cache.
        blocks: its cache blocks, in order.
        published: how many of its blocks other sequences may find.
        prefix: identity of the content of the published blocks.
        cached_tokens: tokens of the prompt that were found in the cache when it was admitted.
        preemptions: how often its blocks were taken away.
        arrival: its place in the order of arrival.
        waits: not to be admitted yet.
        matcher: follows the answer's structure (:class:`dsv2.engine.structured.Matcher`), or None.
    """

    request: Request
    seed: int
    tokens: list[int]
    drafts: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    published: int = 0
    prefix: Prefix = ""
    cached_tokens: int = 0
    preemptions: int = 0
    arrival: int = 0
    waits: bool = False
    matcher: Any = None

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def remaining(self) -> int:
        """Tokens that are not in the cache yet, drafts included."""
        return len(self.tokens) + len(self.drafts) - self.computed

    @property
    def in_answer(self) -> bool:
        """Whether the next token to compute is one that was generated."""
        return self.computed >= self.num_prompt

    @property
    def is_full(self) -> bool:
        """Whether the answer has all its tokens, and only waits to be ended."""
        return self.num_generated >= self.request.params.max_tokens

    @property
    def blocks_needed(self) -> int:
        """Cache blocks for the longest it can become."""
        return blocks_for(self.num_prompt + self.request.params.max_tokens)

    @property
    def rank(self) -> tuple[int, int]:
        """Lower goes first: priority, then arrival."""
        return (-self.request.priority, self.arrival)


@dataclass(frozen=True)
class Work:
    """A sequence and the number of its tokens to compute in a step.

    The properties hold until the step's new tokens are appended to the sequence.
    """

    sequence: Sequence
    count: int

    @property
    def finishes(self) -> bool:
        """Whether the sequence then has a next token to choose."""
        return self.sequence.computed + self.count >= len(self.sequence.tokens)

    @property
    def num_choices(self) -> int:
        """Positions whose next token is chosen: one, and one more for each draft."""
        sequence = self.sequence
        return max(sequence.computed + self.count - len(sequence.tokens) + 1, 0)

    def tokens(self) -> list[int]:
        """The tokens to compute."""
        first, sequence = self.sequence.computed, self.sequence
        last, known = first + self.count, len(sequence.tokens)
        if last <= known:
            return sequence.tokens[first:last]
        return sequence.tokens[first:] + sequence.drafts[: last - known]


def publish(pool: BlockPool, sequence: Sequence, certain: int) -> None:
    """Let other sequences find the full blocks of the first ``certain`` tokens.

    Args:
        pool: that the sequence's blocks are of.
        sequence: whose blocks hold those tokens.
        certain: tokens that are computed and will not change.
    """
    while (sequence.published + 1) * BLOCK_SIZE <= certain:
        first = sequence.published * BLOCK_SIZE
        sequence.prefix = pool.publish(
            sequence.blocks[sequence.published],
            sequence.prefix or sequence.request.salt,
            sequence.tokens[first : first + BLOCK_SIZE],
        )
        sequence.published += 1
