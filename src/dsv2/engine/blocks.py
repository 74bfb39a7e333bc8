"""The blocks of the latent cache: who owns which. Plain integers, no tensors."""

from __future__ import annotations

from collections.abc import Iterable


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free; whoever asks has to look first."""


class BlockPool:
    """``total`` blocks, each free or owned by one sequence."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool of {total} blocks, allowed is at least 1")
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._owned: set[int] = set()

    @property
    def num_free(self) -> int:
        """Blocks that can be had."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks.

        Raises:
            OutOfBlocksError: there are not so many; none was taken.
        """
        if not 0 <= count <= len(self._free):
            raise OutOfBlocksError(f"{count} blocks wanted, {len(self._free)} are free")
        taken = [self._free.pop() for _ in range(count)]
        self._owned.update(taken)
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            ValueError: one of them is not owned; nothing was given back.
        """
        given = list(blocks)
        if len(set(given)) != len(given) or not self._owned.issuperset(given):
            raise ValueError(f"blocks {given} are not all owned, or one is named twice")
        self._owned.difference_update(given)
        self._free.extend(reversed(given))
