"""The blocks of the latent cache: who holds which, and what the idle ones still hold.

A full block may be published under its content: the 64 tokens in it and the identity of the
content before them. A later sequence that begins with the same tokens takes the same blocks. Blocks
that nobody holds stay published until their memory is needed, the longest unused first. Plain
integers, no tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from dsv2.shapes import BLOCK_SIZE

Prefix = int | str
"""Identity of everything up to a block's end; before the first block the salt of the tenant."""


class OutOfBlocksError(RuntimeError):
    """More blocks were asked for than are free; whoever asks has to look first."""


class BlockPool:
    """``total`` blocks, each held by any number of sequences."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool of {total} blocks, allowed is at least 1")
        self.total = total
        self._blank = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, held by nobody
        self._holders: dict[int, int] = {}
        # A dictionary compares the tokens themselves, so equal hashes never share a block.
        self._published: dict[tuple[Prefix, tuple[int, ...]], int] = {}
        self._content: dict[int, tuple[tuple[Prefix, tuple[int, ...]], int]] = {}
        self._next_prefix = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be had, published ones that nobody holds included."""
        return len(self._blank) + len(self._idle)

    @property
    def num_published(self) -> int:
        """Blocks whose content can be found."""
        return len(self._content)

    def holders(self, block: int) -> int:
        """How many sequences hold a block."""
        return self._holders.get(block, 0)

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` blocks of any content.

        Raises:
            OutOfBlocksError: there are not so many; none was taken.
        """
        if not 0 <= count <= self.num_free:
            raise OutOfBlocksError(f"{count} blocks wanted, {self.num_free} are free")
        taken = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._unpublish(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def match(self, salt: str, tokens: Sequence[int], limit: int) -> list[int]:
        """The published blocks that hold the first tokens, at most ``limit`` blocks; not taken."""
        prefix: Prefix = salt
        found: list[int] = []
        for number in range(limit):
            part = tuple(tokens[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE])
            block = self._published.get((prefix, part))
            if block is None:
                break
            found.append(block)
            prefix = self._content[block][1]
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks nobody holds: holding them makes so many fewer free."""
        return sum(block in self._idle for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold published blocks, also those that others hold.

        Raises:
            ValueError: one of them is neither held nor published.
        """
        for block in blocks:
            if block not in self._holders and block not in self._idle:
                raise ValueError(f"block {block} holds nothing that could be shared")
            self._idle.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def publish(self, block: int, prefix: Prefix, tokens: Sequence[int]) -> Prefix:
        """Make a held, full block findable by its content; the first of equal ones stays so.

        Returns:
            The prefix of the block that follows.
        """
        if block not in self._holders or len(tokens) != BLOCK_SIZE:
            raise ValueError(f"block {block} is not held, or {len(tokens)} tokens do not fill it")
        key = (prefix, tuple(tokens))
        known = self._published.get(key)
        if known is None:
            self._next_prefix += 1
            self._published[key] = block
            self._content[block] = (key, self._next_prefix)
            known = block
        return self._content[known][1]

    def forget(self, blocks: Iterable[int]) -> None:
        """Make the content of blocks unfindable, because it is not to be trusted."""
        for block in blocks:
            self._unpublish(block)
            if block in self._idle:
                del self._idle[block]
                self._blank.append(block)

    def _unpublish(self, block: int) -> None:
        content = self._content.pop(block, None)
        if content is not None:
            del self._published[content[0]]

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back, in the order they stood in.

        Raises:
            ValueError: one of them is not held; nothing was given back.
        """
        given = list(blocks)
        if len(set(given)) != len(given) or not all(block in self._holders for block in given):
            raise ValueError(f"blocks {given} are not all held, or one is named twice")
        # The last blocks of a sequence are of use to the fewest others: they go first.
        for block in reversed(given):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._content:
                self._idle[block] = None
            else:
                self._blank.append(block)
