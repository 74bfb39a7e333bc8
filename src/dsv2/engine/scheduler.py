"""Which sequence computes how many tokens in this step. Plain data, no tensors.

The one question a scheduler answers is ``{sequence: tokens}``: a prompt, a chunk of one and a
generated token are the same case. This one admits in order of arrival, gives each sequence all the
blocks of its life at once, and so never has to take any back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dsv2.engine.blocks import BlockPool
from dsv2.engine.request import Request, RequestError
from dsv2.shapes import BLOCK_SIZE


@dataclass(eq=False)
class Sequence:
    """A request under way.

    Attributes:
        tokens: prompt and answer so far.
        computed: how many of them are in the cache.
        blocks: its cache blocks, in order.
        seed: of its random choices.
    """

    request: Request
    seed: int
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def remaining(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.tokens) - self.computed

    @property
    def in_answer(self) -> bool:
        """Whether the next token to compute is one that was generated."""
        return self.computed >= len(self.request.prompt_ids)

    @property
    def blocks_needed(self) -> int:
        """Cache blocks for the longest it can become."""
        longest = len(self.request.prompt_ids) + self.request.params.max_tokens
        return -(-longest // BLOCK_SIZE)


@dataclass(frozen=True)
class Work:
    """A sequence and the number of its tokens to compute in a step."""

    sequence: Sequence
    count: int

    @property
    def finishes(self) -> bool:
        """Whether the sequence then has a next token to choose."""
        return self.count == self.sequence.remaining


class Scheduler:
    """Admission and the plan of each step.

    Args:
        pool: the cache's blocks.
        max_step_tokens: most tokens of a step; longer prompts come in chunks.
        max_sequences: most sequences under way at once.
    """

    def __init__(self, pool: BlockPool, *, max_step_tokens: int, max_sequences: int) -> None:
        if max_step_tokens < max_sequences:
            raise ValueError(
                f"max_step_tokens {max_step_tokens} is below max_sequences {max_sequences}: "
                "every sequence needs room for a token"
            )
        self.pool = pool
        self._max_step_tokens, self._max_sequences = max_step_tokens, max_sequences
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Put a sequence in line.

        Raises:
            RequestError: it could not run even alone.
        """
        if sequence.blocks_needed > self.pool.total:
            room = self.pool.total * BLOCK_SIZE
            raise RequestError(
                "max_tokens",
                f"{sequence.request.params.max_tokens} and a prompt of "
                f"{len(sequence.request.prompt_ids)} tokens need more than the cache's {room} "
                "tokens. Please reduce the length of either.",
            )
        self.waiting.append(sequence)

    def plan(self) -> list[Work]:
        """The work of the next step; empty when there is none. Admits what fits."""
        while self.waiting and len(self.running) < self._max_sequences:
            if self.waiting[0].blocks_needed > self.pool.num_free:
                break
            sequence = self.waiting.popleft()
            sequence.blocks = self.pool.allocate(sequence.blocks_needed)
            self.running.append(sequence)
        # Generated tokens first: a long prompt delays nobody's answer by more than a chunk.
        order = sorted(self.running, key=lambda sequence: sequence.remaining > 1)
        left, works = self._max_step_tokens, []
        for sequence in order:
            count = min(sequence.remaining, left)
            if count:
                works.append(Work(sequence, count))
                left -= count
        return works

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting.remove(sequence)
