from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv2.engine.blocks import BlockPool, OutOfBlocksError
from dsv2.shapes import BLOCK_SIZE

TOTAL = 12


class Pool(RuleBasedStateMachine):
    """A pool against a plain list of who owns what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.owned: list[list[int]] = []

    @rule(count=st.integers(0, TOTAL + 2))
    def allocate(self, count: int) -> None:
        free = TOTAL - sum(map(len, self.owned))
        if count > free:
            with pytest.raises(OutOfBlocksError):
                self.pool.allocate(count)
        else:
            self.owned.append(self.pool.allocate(count))

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1))))

    @rule(block=st.integers(-1, TOTAL))
    def release_of_a_stranger_changes_nothing(self, block: int) -> None:
        if not any(block in blocks for blocks in self.owned):
            with pytest.raises(ValueError, match="not all held"):
                self.pool.release([block])

    @invariant()
    def nobody_shares(self) -> None:
        taken = [block for blocks in self.owned for block in blocks]
        assert len(set(taken)) == len(taken)
        assert all(0 <= block < TOTAL for block in taken)
        assert self.pool.num_free == TOTAL - len(taken)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class Shared(RuleBasedStateMachine):
    """A pool whose blocks are published, found, held by several, and forgotten (F34).

    The model is a list of what every sequence holds, and of what was written to every block: the
    salt and all tokens up to the block's end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.written: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.owners: list[tuple[str, tuple[int, ...], list[int]]] = []
        self.bad: set[int] = set()

    @staticmethod
    def tokens(letters: tuple[int, ...]) -> list[int]:
        return [letter for letter in letters for _ in range(BLOCK_SIZE)]

    @rule(
        salt=st.sampled_from(["", "s"]),
        letters=st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple),
        publishes=st.booleans(),
    )
    def begin(self, salt: str, letters: tuple[int, ...], publishes: bool) -> None:
        text = self.tokens(letters)
        found = self.pool.match(salt, text, len(letters))
        for number, block in enumerate(found):
            assert self.written[block] == (salt, letters[: number + 1])
            assert block not in self.bad
        missing = len(letters) - len(found)
        if missing > self.pool.num_free - self.pool.idle(found):
            return
        self.pool.hold(found)
        held = {block for _, _, blocks in self.owners for block in blocks}
        blocks = found + self.pool.allocate(missing)
        assert not held.intersection(blocks[len(found) :])
        prefix: int | str = salt
        for number, block in enumerate(blocks):
            if number >= len(found):
                self.written[block] = (salt, letters[: number + 1])
                self.bad.discard(block)
            if publishes:
                part = text[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
                prefix = self.pool.publish(block, prefix, part)
        if publishes:
            assert len(self.pool.match(salt, text, len(letters))) == len(letters)
        self.owners.append((salt, letters, blocks))

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), forget=st.booleans())
    def end(self, data: st.DataObject, forget: bool) -> None:
        _, _, blocks = self.owners.pop(data.draw(st.integers(0, len(self.owners) - 1)))
        if forget:
            self.pool.forget(blocks)
            self.bad.update(blocks)
        self.pool.release(blocks)

    @rule(block=st.integers(0, TOTAL - 1))
    def a_blank_block_cannot_be_shared(self, block: int) -> None:
        if self.pool.holders(block) == 0 and not self.pool.idle([block]):
            with pytest.raises(ValueError, match="nothing that could be shared"):
                self.pool.hold([block])

    @invariant()
    def holders_are_counted(self) -> None:
        counts = Counter(block for _, _, blocks in self.owners for block in blocks)
        assert all(self.pool.holders(block) == counts[block] for block in range(TOTAL))
        assert self.pool.num_free == TOTAL - len(counts)


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.integers(-3, 0))
def test_an_empty_pool_is_refused(total: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        BlockPool(total)


def test_a_block_is_given_back_once() -> None:
    pool = BlockPool(4)
    taken = pool.allocate(2)
    with pytest.raises(ValueError, match="named twice"):
        pool.release([taken[0], taken[0]])
    pool.release(taken)
    with pytest.raises(ValueError, match="not all held"):
        pool.release(taken)
