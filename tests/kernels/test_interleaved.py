"""Blocks of interleaved rows: there and back, and where a code lies."""

from __future__ import annotations

import pytest
import torch

from dsv2.kernels.formats import SCHEMES, QuantTensor, dequantise, quantise, stack
from dsv2.kernels.interleaved import by_rows, deinterleave, interleave, interleaved_shapes


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("shape", [(16, 64), (40, 192), (3, 5, 128)])
def test_there_and_back(scheme: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(shape, generator=generator)
    rows = [quantise(one, scheme) for one in draw.reshape(-1, *shape[-2:])]
    weight = stack(rows) if len(shape) == 3 else rows[0]
    assert isinstance(weight, QuantTensor)
    blocks = interleave(weight)
    assert blocks.shape == weight.shape == shape
    for part, (size, dtype) in interleaved_shapes(shape, SCHEMES[scheme]).items():
        own = getattr(blocks, part)
        assert tuple(own.shape) == size and own.dtype == dtype and own.is_contiguous()
    back = deinterleave(blocks)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scales, weight.scales)
    assert torch.equal(back.row_scales, weight.row_scales)
    assert torch.equal(dequantise(by_rows(blocks)), dequantise(weight))
    assert by_rows(weight) is weight


def test_where_a_code_lies() -> None:
    """Column c of row r: word c // 8, lane r % 16, byte c % 4, the high half from 4 on."""
    codes = torch.arange(32 * 32, dtype=torch.int64).mul(7).remainder(256).to(torch.uint8)
    four = QuantTensor(
        "int4", codes.view(32, 32), torch.ones(32, 1, dtype=torch.int8), torch.ones(32)
    )
    eight = QuantTensor(
        "int8", codes.view(32, 32), torch.ones(32, 1, dtype=torch.int8), torch.ones(32)
    )
    for row, column in ((0, 0), (3, 5), (17, 30), (31, 63)):
        byte = int(four.codes[row, column // 2])
        stored = int(interleave(four).codes[row // 16, column // 8, row % 16, column % 4])
        assert (stored >> (4 if column % 8 >= 4 else 0)) & 15 == byte >> column % 2 * 4 & 15
        place = column // 2
        level = int(eight.codes.view(torch.int8)[row, place])
        assert (
            int(interleave(eight).codes[row // 16, place // 4, row % 16, place % 4]) == level + 128
        )
