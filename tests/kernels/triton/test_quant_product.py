"""Products with coded weights in Triton against the reference on the weights they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.executor import Mlp
from dsv2.kernels.formats import (
    CODEBOOK,
    SCHEMES,
    BlockTensor,
    Coded,
    QuantTensor,
    dequantise,
    quantise,
    quantise_blocks,
    relative_rmse,
    stack,
    weight_rows,
)
from dsv2.kernels.ops import ExpertWeights
from dsv2.shapes import ShapeError
from tests.kernels.triton.place import DEVICE, HALF, draw

pytest.importorskip("triton")

from dsv2.kernels.triton.quant_product import (
    SLIM,
    TILES,
    QuantTiles,
    _scaled_bytes,
    _scaled_levels,
    coded,
    quant_product,
    quant_tiles,
    run_quant_experts,
)

FORMATS = ("int4", "int8", "fp8")


def to_device(weight: Coded) -> Coded:
    if isinstance(weight, BlockTensor):
        return BlockTensor(weight.codes.to(DEVICE), weight.scales.to(DEVICE))
    return QuantTensor(
        weight.scheme, weight.codes.to(DEVICE), weight.scales.to(DEVICE),
        weight.row_scales.to(DEVICE),
    )  # fmt: skip


def matrix(rows: int, columns: int, name: str, seed: int = 0) -> Coded:
    """Any codes and scales make a weight; of fp8 those that a weight has."""
    if name == "fp8":
        return to_device(quantise_blocks(draw(rows, columns, seed=seed).cpu() / columns**0.5))
    kind, generator = SCHEMES[name], torch.Generator().manual_seed(seed)
    shapes = (rows, columns * kind.bits // 8), (rows, columns // kind.group)
    codes = torch.randint(256, shapes[0], dtype=torch.uint8, generator=generator)
    scales = torch.randint(-127, 128, shapes[1], dtype=torch.int8, generator=generator)
    row_scales = torch.rand(rows, generator=generator) / (5000 * columns**0.5)
    return to_device(QuantTensor(name, codes, scales, row_scales))


def experts_of(count: int, width: int, inner: int, name: str) -> Mlp:
    shapes = ((inner, width), (inner, width), (width, inner))
    return Mlp(
        *(
            stack([matrix(*shape, name, seed=10 * part + one) for one in range(count)])
            for part, shape in enumerate(shapes)
        )
    )


def wide(mlp: Mlp) -> ExpertWeights:
    return ExpertWeights(*(dequantise(coded(part)) for part in vars(mlp).values()))


def rounded(weight: Coded) -> Tensor:
    """What the codes stand for, in the precision that is multiplied."""
    if isinstance(weight, BlockTensor):
        return dequantise(weight).to(HALF).float()
    plain = replace(weight, row_scales=torch.ones_like(weight.row_scales))
    return dequantise(plain).to(HALF).float() * weight.row_scales.unsqueeze(-1)


SMALL = QuantTiles(16, 32, 4, 1)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_product_equals_that_with_the_weights_the_codes_stand_for(name: str, tokens: int) -> None:
    # 192 columns are a block and a half of fp8, 150 rows end inside a block and a tile.
    weight = matrix(150, 192, name)
    x = draw(tokens, 192)
    ours = quant_product(x, weight, tiles=SMALL)
    torch.testing.assert_close(ours, x @ dequantise(weight).T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_gate_and_up_in_one_product(name: str) -> None:
    gate, up = matrix(40, 128, name), matrix(40, 128, name, seed=1)
    x = draw(7, 128)
    expected = torch.nn.functional.silu(x @ dequantise(gate).T) * (x @ dequantise(up).T)
    torch.testing.assert_close(quant_product(x, up, gate=gate), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tiles", [*TILES.values(), *SLIM.values()], ids=str)
def test_every_tile_in_half_precision(name: str, tiles: QuantTiles) -> None:
    weight, x = matrix(80, 128, name), draw(tiles.rows, 128).to(HALF)
    ours = quant_product(x, weight, dtype=torch.float32, tiles=tiles)
    # Weights are rounded once, before the scales of rows, and summed in fp32.
    expected = x.float() @ rounded(weight).T
    assert relative_rmse(expected, ours) < 1e-6


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [2, 19])
def test_experts_equal_the_reference(name: str, tokens: int) -> None:
    experts = experts_of(3, 128, 64, name)
    scores = torch.rand(tokens, 3, generator=torch.Generator().manual_seed(tokens))
    ids = scores.topk(2).indices.to(DEVICE)
    x, weights = draw(tokens, 128), draw(tokens, 2).abs()
    weights[0, 1] = 0
    expected = reference.experts(x, ids, weights, wide(experts))
    for deterministic in (False, True):
        ours = run_quant_experts(x, ids, weights, experts, deterministic=deterministic)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert run_quant_experts(x[:0], ids[:0], weights[:0], experts).shape == (0, 128)


def test_all_sixteen_levels_and_every_byte_of_fp8() -> None:
    """An identity matrix reads every code back, as it is."""
    eye = torch.eye(128, device=DEVICE)
    codes = torch.arange(128 * 64, device=DEVICE).view(128, 64).remainder(256).to(torch.uint8)
    scales = torch.arange(1, 257, device=DEVICE).view(128, 2).remainder(127).to(torch.int8)
    four = QuantTensor("int4", codes, scales, draw(128).abs())
    torch.testing.assert_close(
        quant_product(eye, four).T, dequantise(four), atol=0, rtol=2e-7, equal_nan=False
    )
    bytes_ = torch.arange(128 * 128, device=DEVICE).view(128, 128).remainder(256)
    bytes_[(bytes_ & 127) == 127] = 0  # NaN
    eight = BlockTensor(
        bytes_.to(torch.uint8).view(torch.float8_e4m3fn), torch.full((1, 1), 0.37, device=DEVICE)
    )
    torch.testing.assert_close(quant_product(eye, eight).T, dequantise(eight), atol=0, rtol=2e-7)


def test_tiles_are_chosen_by_rows_and_for_one_matrix_by_its_width() -> None:
    assert [quant_tiles(rows).rows for rows in (1, 16, 17, 64, 65, 9999)] == [
        16,
        16,
        32,
        64,
        128,
        128,
    ]
    assert quant_tiles(40, width=2048) is SLIM[64]
    assert quant_tiles(65, width=2048) is quant_tiles(65, width=102_400) is TILES[128]
    assert quant_tiles(40, width=102_400) is TILES[64]
    for width in (None, 2048, 102_400):
        assert len({quant_tiles(rows, True, width) for rows in (1, 50, 9999)}) == 1


def permute(left: int, right: int, chosen: int) -> int:
    """What the instruction does: a nibble takes one of eight bytes, its high bit takes the sign."""
    from_, out = left.to_bytes(4, "little") + right.to_bytes(4, "little"), 0
    for place in range(4):
        nibble = chosen >> 4 * place & 15
        byte = from_[nibble & 7]
        out |= (byte if nibble < 8 else 255 * (byte >> 7)) << 8 * place
    return out


def pair(word: int) -> Tensor:
    """The two bf16 numbers of a register."""
    return torch.frombuffer(bytearray(word.to_bytes(4, "little")), dtype=torch.bfloat16)


def fma(a: int, b: int, c: int) -> int:
    done = (pair(a).double() * pair(b).double() + pair(c).double()).bfloat16()
    return int.from_bytes(done.view(torch.uint8).numpy().tobytes(), "little")


def run_assembly(lines: str, first: int, codes: bytes, scales: list[float], out: int) -> Tensor:
    """Instructions that only a GPU has, in Python.

    Args:
        lines: the program.
        first: number of the register of the codes; that of the scales are the next two.
        codes: four bytes.
        scales: one for each byte.
        out: registers of results.
    """
    parts = torch.tensor(scales).bfloat16().view(torch.uint8).numpy().tobytes()
    registers = {
        f"${first}": int.from_bytes(codes, "little"),
        f"${first + 1}": int.from_bytes(parts[:4], "little"),
        f"${first + 2}": int.from_bytes(parts[4:], "little"),
    }
    for line in lines.strip("{ }").split(";")[1:]:
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        target, *operands = (part.strip() for part in rest.split(","))
        values = [registers[one] if one in registers else int(one, 0) for one in operands]
        registers[target] = {
            "mov.b32": lambda a: a,
            "and.b32": lambda a, b: a & b,
            "or.b32": lambda a, b: a | b,
            "shr.b32": lambda a, b: a >> b,
            "prmt.b32": permute,
            "fma.rn.bf16x2": fma,
        }[name](*values)  # type: ignore[operator]
    return torch.cat([pair(registers[f"${place}"]) for place in range(out)])


SCALES = [3.0, -127.0, 0.0, 77.0]
"""Bytes of a register may lie in lines of different scales."""


def test_instructions_for_4_bit_codes_find_their_levels() -> None:
    found = set()
    for turn in range(64):
        raw = bytes((37 * turn + 67 * place + 11) & 255 for place in range(4))
        levels = [CODEBOOK[byte & 15] for byte in raw] + [CODEBOOK[byte >> 4] for byte in raw]
        expected = (torch.tensor(levels) * torch.tensor(SCALES * 2)).bfloat16()
        assert torch.equal(run_assembly(_scaled_levels(), 4, raw, SCALES, 4), expected)
        found |= {*raw}
    assert len({byte & 15 for byte in found}) == len({byte >> 4 for byte in found}) == 16


def test_instructions_for_8_bit_codes_find_their_numbers() -> None:
    for start in range(256):
        raw = bytes((start + 64 * place) & 255 for place in range(4))
        codes = torch.frombuffer(bytearray(raw), dtype=torch.int8)
        expected = (codes.float() * torch.tensor(SCALES)).bfloat16()
        assert torch.equal(run_assembly(_scaled_bytes(), 2, raw, SCALES, 2), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_an_embedding(name: str) -> None:
    weight = matrix(150, 192, name)
    ids = torch.tensor([149, 0, 128, 0], dtype=torch.int32, device=DEVICE)
    assert torch.equal(weight_rows(weight, ids), dequantise(weight)[ids.long()])
    plain: Tensor = dequantise(weight)
    assert torch.equal(weight_rows(plain, ids), plain[ids.long()])


@pytest.mark.parametrize(("name", "bound"), [("int4", 0.09), ("int8", 0.008), ("fp8", 0.03)])
def test_error_of_each_format(name: str, bound: float) -> None:
    weight = draw(128, 128).cpu() / 16
    done = quantise_blocks(weight) if name == "fp8" else quantise(weight, name)
    assert bound / 2 < relative_rmse(weight, dequantise(done)) < bound


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="x has 64 columns, the weight 128"):
        quant_product(draw(2, 64), matrix(16, 128, "int4"))
    with pytest.raises(ShapeError, match="gate is int8"):
        quant_product(draw(2, 128), matrix(16, 128, "int4"), gate=matrix(16, 128, "int8"))
    with pytest.raises(TypeError, match=r"a tensor of torch\.float32"):
        coded(draw(2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_published_widths_on_a_gpu(name: str, tokens: int) -> None:
    weight, x = matrix(1408, 2048, name), draw(tokens, 2048).bfloat16()
    expected = x.float() @ rounded(weight).T
    assert relative_rmse(expected, quant_product(x, weight, dtype=torch.float32)) < 1e-5
    assert relative_rmse(expected, quant_product(x, weight)) < 2.5e-3
