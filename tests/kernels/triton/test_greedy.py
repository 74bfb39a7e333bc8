"""The likeliest token of each row: against the reference, ties, and numbers that are not finite."""

from __future__ import annotations

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.triton.greedy import greedy_tokens
from tests.kernels.triton.place import DEVICE, draw


@pytest.mark.parametrize(("rows", "width"), [(1, 5), (3, 2048), (4, 5000), (2, 40_000)])
def test_equals_the_reference(rows: int, width: int) -> None:
    logits = draw(rows, width)
    found = greedy_tokens(logits)
    assert found.dtype == torch.int64
    assert torch.equal(found, reference.greedy_tokens(logits))


def test_the_first_of_equals_wins_in_every_part() -> None:
    logits = torch.zeros(3, 6000, device=DEVICE)
    logits[1, [4100, 4099, 5999]] = 1.0
    logits[2, [0, 2048, 4096]] = 1.0
    assert greedy_tokens(logits).tolist() == [0, 4099, 0]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_none_and_harms_no_other(number: float) -> None:
    logits = draw(4, 5000)
    expected = greedy_tokens(logits)
    for place in (0, 2047, 2048, 4999):
        broken = logits.clone()
        broken[2, place] = number
        found = greedy_tokens(broken)
        assert found[2] == -1
        assert torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])
        assert torch.equal(found, reference.greedy_tokens(broken))


def test_rows_may_be_apart_and_may_be_none() -> None:
    logits = draw(4, 300)
    wide = torch.cat((logits, logits), 1)
    assert torch.equal(greedy_tokens(wide[:, :300]), greedy_tokens(logits))
    assert greedy_tokens(logits[:0]).shape == (0,)
