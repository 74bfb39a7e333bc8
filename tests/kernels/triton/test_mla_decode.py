"""Paged decode in Triton against the reference; in the interpreter where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.shapes import BLOCK_SIZE, ShapeError
from tests.kernels.triton.place import DEVICE, HALF, draw, lengths_to

pytest.importorskip("triton")

from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.mla_decode import (
    FIXED_SPLIT,
    DecodeTiles,
    attend_absorbed,
    decode_latent,
    decode_tiles,
    num_splits,
)


class Case(NamedTuple):
    q_latent: Tensor
    q_rope: Tensor
    cache: Tensor
    table: Tensor
    kv_len: Tensor
    q_lens: tuple[int, ...]

    def reference(self, scale: float) -> Tensor:
        wide = (part.float() for part in self[:3])
        return reference.attend_absorbed(*wide, *self[3:], scale)


def make(
    heads: int, latent: int, rope: int, kv: tuple[int, ...], q_lens: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """A cache with shuffled blocks whose unused slots are NaN."""
    blocks = -(-max(kv) // BLOCK_SIZE)
    order = torch.randperm(len(kv) * blocks, generator=torch.Generator().manual_seed(1))
    table = order.to(torch.int32).view(len(kv), blocks).to(DEVICE)
    cache = torch.full((len(kv) * blocks, BLOCK_SIZE, latent + rope), torch.nan, device=DEVICE)
    for row, length in zip(table, kv, strict=True):
        values = draw(length, latent + rope, seed=length)
        for start in range(0, length, BLOCK_SIZE):
            part = values[start : start + BLOCK_SIZE]
            cache[int(row[start // BLOCK_SIZE]), : part.shape[0]] = part
    tokens = sum(q_lens)
    return Case(
        draw(tokens, heads, latent).to(dtype), draw(tokens, heads, rope, seed=1).to(dtype),
        cache.to(dtype), table, lengths_to(kv), q_lens,
    )  # fmt: skip


def decode(case: Case, **options: object) -> Tensor:
    return decode_latent(*case[:5], bounds(case.q_lens, DEVICE), max(case.q_lens), 0.2, **options)  # type: ignore[arg-type]


MANY_ROWS = DecodeTiles(rows=64, keys=32, warps=4, stages=1)


@pytest.mark.parametrize("tiles", [None, MANY_ROWS])
@pytest.mark.parametrize(
    ("heads", "kv", "q_lens"),
    [
        (16, (1, 130, 300), (1, 1, 1)),
        (3, (70, 200), (4, 2)),  # several new tokens, rows that fill no tile
        (5, (3, 65), (3, 1)),  # the first query sees one key
    ],
)
def test_values_equal_the_reference(
    heads: int, kv: tuple[int, ...], q_lens: tuple[int, ...], tiles: DecodeTiles | None
) -> None:
    case = make(heads, 32, 16, kv, q_lens)
    for deterministic in (False, True):
        ours = decode(case, tiles=tiles, deterministic=deterministic)
        torch.testing.assert_close(ours, case.reference(0.2), atol=1e-5, rtol=1e-4)


def test_widths_that_are_no_power_of_two() -> None:
    case = make(2, 24, 6, (90, 5), (1, 1))
    torch.testing.assert_close(decode(case), case.reference(0.2), atol=1e-5, rtol=1e-4)


def test_half_precision_and_the_op() -> None:
    case = make(16, 64, 16, (100, 64), (1, 2), HALF)
    expected = case.reference(0.2)
    torch.testing.assert_close(decode(case).float(), expected, atol=2e-2, rtol=2e-2)
    ours = attend_absorbed(*case, 0.2)
    torch.testing.assert_close(ours.float(), expected, atol=2e-2, rtol=2e-2)


def test_many_heads_take_wide_tiles() -> None:
    case = make(80, 32, 16, (100,), (1,), HALF)
    assert decode_tiles(80, HALF).rows == 64
    torch.testing.assert_close(decode(case).float(), case.reference(0.2), atol=2e-2, rtol=2e-2)


def test_a_row_alone_has_the_bits_it_has_in_a_batch() -> None:
    # 16 heads fill a tile: NumPy's product, unlike a GPU's, depends on the place of a row in it.
    heads = 16 if DEVICE.type == "cpu" else 4
    case = make(heads, 32, 16, (600, 20, 300), (2, 1, 1))
    together = decode(case, deterministic=True)
    row = 0
    for place, length in enumerate(case.q_lens):
        for offset in range(length):
            rows = slice(row + offset, row + offset + 1)
            seen = case.kv_len[place : place + 1] - (length - 1 - offset)
            blocks = -(-int(seen) // BLOCK_SIZE)
            alone = decode(
                Case(
                    case.q_latent[rows], case.q_rope[rows], case.cache,
                    case.table[place : place + 1, :blocks].contiguous(), seen, (1,),
                ),
                deterministic=True,
            )  # fmt: skip
            assert torch.equal(alone, together[rows])
        row += length


def test_a_padding_sequence_yields_zeros() -> None:
    case = make(2, 16, 16, (70, 9), (1, 1))
    case.kv_len[1] = 0
    assert not decode(case)[1].any()
    assert not decode(case, deterministic=True)[1].any()


def test_splits_fill_the_device_and_hold_two_blocks() -> None:
    tiles = decode_tiles(16, torch.bfloat16)
    assert num_splits(128, 1, 4096, tiles, 132) == 2
    assert num_splits(256, 1, 4096, tiles, 132) == 1
    assert num_splits(16, 1, 65536, tiles, 132) == 16
    assert num_splits(1, 1, 8192, tiles, 132) == 64
    assert num_splits(1, 1, 1, tiles, 132) == 1
    assert FIXED_SPLIT % BLOCK_SIZE == 0


def test_what_cannot_be_is_refused() -> None:
    case = make(2, 16, 16, (9,), (1,))
    with pytest.raises(ShapeError):
        decode(case._replace(cache=case.cache[..., :-1]))
    with pytest.raises(ValueError, match="no gradient"):
        attend_absorbed(case.q_latent.requires_grad_(), *case[1:], 0.2)
