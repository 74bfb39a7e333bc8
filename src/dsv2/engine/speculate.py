"""Guesses at the next tokens, which one step verifies all at once.

A guess is kept where it is the token that would have been chosen anyway, so that answers are the
same with and without, at any temperature; a wrong guess costs the time of computing it.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Protocol

from dsv2.engine.sequence import Sequence

MAX_DRAFTS = 64
"""Most tokens to guess at once."""


def check_count(count: int) -> None:
    """Raise ValueError where the number of guesses is out of bounds."""
    if not 1 <= count <= MAX_DRAFTS:
        raise ValueError(f"count is {count}, allowed are 1 to {MAX_DRAFTS} guesses")


class Drafter(Protocol):
    """Fills in the drafts of sequences that are generating."""

    @property
    def num_undrafted(self) -> int:
        """How often a sequence got no guesses for lack of memory, context or finite numbers."""
        ...

    def draft(self, sequences: Rows[Sequence]) -> None:
        """Set ``drafts`` of each sequence, possibly to nothing."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        ...


class NgramDrafter:
    """Continues the last tokens as they went on where they last stood in the text.

    Args:
        count: most tokens to guess.
        longest: tokens that must recur; where they do not, fewer are tried, down to
            ``shortest``.
        shortest: least tokens that must recur.
        window: how far back to look.
    """

    def __init__(
        self, count: int = 4, longest: int = 4, shortest: int = 2, window: int = 4096
    ) -> None:
        check_count(count)
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"shortest is {shortest}, longest {longest}; allowed is 1 <= shortest <= longest"
            )
        self._count, self._longest, self._shortest = count, longest, shortest
        self._window = window

    @property
    def num_undrafted(self) -> int:
        """None: it keeps nothing that could be full."""
        return 0

    def draft(self, sequences: Rows[Sequence]) -> None:
        """Look in each sequence's own tokens."""
        for sequence in sequences:
            params = sequence.request.params
            room = params.max_tokens - sequence.num_generated - 1
            sequence.drafts = self._continue(sequence.tokens[-self._window :], room)

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def _continue(self, tokens: list[int], room: int) -> list[int]:
        if room < 1:
            return []
        for size in range(min(self._longest, len(tokens) - 1), self._shortest - 1, -1):
            tail = tokens[-size:]
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == tail:
                    return tokens[start + size : start + size + min(self._count, room)]
        return []
