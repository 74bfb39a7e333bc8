from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv2.engine.blocks import BlockPool, OutOfBlocksError

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
