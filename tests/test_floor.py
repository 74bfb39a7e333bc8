"""Floor 0: shape checks and the batch layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv2.ragged import RaggedBatch
from dsv2.shapes import ShapeError, check


def test_letters_bind_once_for_a_whole_call() -> None:
    sizes = check((torch.zeros(2, 3), "T D"), (torch.zeros(3, 5), "D F"), (torch.zeros(9), "*"))
    assert sizes == {"T": 2, "D": 3, "F": 5}
    check((torch.zeros(4, 64), "P 64"))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([((2, 3), "T D"), ((4, 5), "D F")], "tensor 1 .*axis D .*is 4, expected 3"),
        ([((2, 3), "T")], "tensor 0 .*expected 1 axes"),
        ([((2, 63), "P 64")], "is 63, expected 64"),
    ],
)
def test_the_first_mismatch_is_named(shapes: list[tuple[tuple[int, ...], str]], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        check(*((torch.zeros(size), spec) for size, spec in shapes))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_packed_batches_know_their_documents(lengths: list[int]) -> None:
    batch = RaggedBatch.packed(torch.arange(sum(lengths)), lengths)
    assert batch.num_tokens == sum(lengths)
    assert batch.num_sequences == len(lengths)
    assert batch.query_lengths() == tuple(lengths)
    assert batch.positions.tolist() == [place for length in lengths for place in range(length)]
    assert batch.cu_q.diff().tolist() == batch.kv_len.tolist() == lengths
    moved = batch.to("cpu")
    assert moved.tokens.tolist() == batch.tokens.tolist()


@pytest.mark.parametrize("lengths", [[], [3], [2, 3], [4, 0], [5, -1]])
def test_lengths_must_cover_the_tokens(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths must be positive and sum"):
        RaggedBatch.packed(torch.arange(4), lengths)
