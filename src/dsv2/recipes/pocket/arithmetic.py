"""Two-digit sums and differences, a tenth of them held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Problem:
    """``left + right`` or ``left - right``."""

    left: int
    sign: str
    right: int

    @property
    def question(self) -> str:
        """As in ``17 + 25``."""
        return f"{self.left} {self.sign} {self.right}"

    @property
    def answer(self) -> int:
        """The result."""
        return self.left + self.right if self.sign == "+" else self.left - self.right

    @property
    def held_out(self) -> bool:
        """Whether no training text may hold it; a sum goes with its mirror image."""
        numbers = sorted((self.left, self.right)) if self.sign == "+" else (self.left, self.right)
        key = hashlib.sha256(f"{numbers[0]}{self.sign}{numbers[1]}".encode()).digest()
        return int.from_bytes(key[:8], "big") < HELD_OUT_SHARE * 2**64


def problems() -> Iterator[Problem]:
    """All sums and differences of two numbers from 10 to 99."""
    for left in range(10, 100):
        for right in range(10, 100):
            yield Problem(left, "+", right)
            yield Problem(left, "-", right)
