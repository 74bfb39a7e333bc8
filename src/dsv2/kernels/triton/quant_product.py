"""Products with weights in 4 and 8 bits and in fp8, dense and by expert, in Triton.

The codes become weights of the activations' dtype on their way to the matrix units: level times the
scale of its group, rounded once as the weights of a bf16 checkpoint are. Sums are fp32; scales of
rows, which all columns of a row share, come last.

Bytes where rows are few: 4.125, 8.25 or 8 bits per weight. Arithmetic: 2 per weight and row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.executor import Mlp
from dsv2.kernels.formats import CODEBOOK, FP8_BLOCK, SCHEMES, BlockTensor, Coded, Weight
from dsv2.kernels.triton.expert_order import ExpertOrder, order_by_expert
from dsv2.kernels.triton.grouped_gemm import FIXED_ROWS, _tile_of, combine_rows
from dsv2.kernels.triton.launch import on_device, precision
from dsv2.shapes import ShapeError


@dataclass(frozen=True)
class QuantTiles:
    """How a product is cut; none of it changes what is computed.

    Attributes:
        rows: rows of a tile.
        columns: columns of a tile.
        warps: warps per program.
        stages: steps in flight.
        turned: whether weights are the left factor, of which the matrix units take 64 at a time.
        group: tiles that walk over the columns together, so that weights come from the L2 cache.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    turned: bool = True
    group: int = 8


TILES = {
    16: QuantTiles(16, 64, 4, 3, turned=False),
    32: QuantTiles(32, 64, 4, 3),
    64: QuantTiles(64, 64, 4, 3),
    128: QuantTiles(128, 128, 8, 3),
}
"""By the rows of a tile. The best of some 50 each on an H200 at the widths of V2-Lite."""
SLIM = {
    16: QuantTiles(16, 32, 4, 3, turned=False),
    64: QuantTiles(64, 32, 4, 3, turned=False),
}
"""Where one matrix of up to :data:`SLIM_WIDTH` rows would keep too few multiprocessors busy."""
SLIM_WIDTH = 8192
DEPTH = 128
"""Numbers multiplied per step: whole groups of every format, and the block of fp8."""


def _word(levels: tuple[int, ...]) -> int:
    """Four levels as the bytes of an int32."""
    return int.from_bytes(bytes(level & 255 for level in levels), "little", signed=True)


_WORDS = [tl.constexpr(_word(CODEBOOK[start : start + 4])) for start in range(0, 16, 4)]
_WORD_0, _WORD_1, _WORD_2, _WORD_3 = _WORDS


def _scaled_levels() -> str:
    """PTX that turns four bytes of two 4-bit codes each into their levels in bf16, scaled.

    ``prmt`` looks four codes up at once: a nibble chooses one of eight bytes. Levels in bf16 have
    two bytes, each from a table of 16, so two look-ups and a choice by the codes' high bits; the
    last four put the bytes of even and of odd codes together. 3.1 instructions per weight, where
    selecting takes 12, which is more than the memory leaves time for.
    """
    raw = torch.tensor(CODEBOOK, dtype=torch.bfloat16).view(torch.int16).tolist()
    lines = [
        "mov.b32 nil, 0x80008000;",
        "and.b32 low, $4, 0x77777777;",
        "and.b32 pick, $4, 0x88888888;",
        "shr.b32 pick, pick, 1;",
        "or.b32 pick, pick, 0x32103210;",
    ]
    for half in range(2):
        if half:
            lines += ["shr.b32 low, low, 16;", "shr.b32 pick, pick, 16;"]
        for byte in range(2):
            table = [level >> 8 * byte & 255 for level in raw]
            words = [
                hex(int.from_bytes(bytes(table[start : start + 4]), "little"))
                for start in range(0, 16, 4)
            ]
            for name, place in (("a", 0), ("b", 2)):
                lines += [
                    f"mov.b32 left, {words[place]};",
                    f"mov.b32 right, {words[place + 1]};",
                    f"prmt.b32 {name}, left, right, low;",
                ]
            lines.append(f"prmt.b32 byte{byte}, a, b, pick;")
        for out, order in ((half, "0x6240"), (2 + half, "0x7351")):
            lines += [
                f"prmt.b32 a, byte0, byte1, {order};",
                f"fma.rn.bf16x2 ${out}, a, ${5 + half}, nil;",  # a product: -0 is added
            ]
    registers = ".reg .b32 low, pick, left, right, a, b, byte0, byte1, nil;"
    return "{ " + registers + " " + " ".join(lines) + " }"


def _scaled_bytes() -> str:
    """PTX that turns four 8-bit codes into bf16, scaled: 2.5 instructions per weight.

    The bytes 0x43 and 128 + n are the bf16 number 256 + 2 n at best, but its first seven bits are
    exact: with 0x43 above it, a code without its sign is 128 more than it is, and the sign alone is
    128 or 256, which is to be taken away.
    """
    lines = [
        "mov.b32 nil, 0x80008000;", "mov.b32 top, 0x43434343;", "mov.b32 minus, 0xBF80BF80;",
    ]  # fmt: skip
    for half, order in enumerate(("0x4140", "0x4342")):
        lines += [
            f"prmt.b32 both, $2, top, {order};",
            "and.b32 low, both, 0xFF7FFF7F;",
            "and.b32 sign, both, 0xFF80FF80;",
            "fma.rn.bf16x2 low, sign, minus, low;",
            f"fma.rn.bf16x2 ${half}, low, ${3 + half}, nil;",
        ]
    return "{ .reg .b32 both, low, sign, nil, top, minus; " + " ".join(lines) + " }"


_SCALED_LEVELS, _SCALED_BYTES = tl.constexpr(_scaled_levels()), tl.constexpr(_scaled_bytes())


@triton.jit
def _levels_of(code):
    """The levels of 4-bit codes: one of four words by the high bits, its byte by the low ones."""
    code = code.to(tl.int32)
    upper = (code & 4) != 0
    first = tl.where(upper, _WORD_1, _WORD_0)
    second = tl.where(upper, _WORD_3, _WORD_2)
    word = tl.where((code & 8) != 0, second, first)
    return (word >> ((code & 3) * 8)).to(tl.int8)


@triton.jit
def _weights(
    codes, scale, begin, line, start, like, DEPTH_SIZE: tl.constexpr, BITS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EACH: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Weights but for the scales of rows, ``[COLUMNS, DEPTH]``, in the dtype of ``like``.

    ``scale`` ``[COLUMNS, EACH]`` is that of each group.
    """
    BYTES: tl.constexpr = DEPTH * BITS // 8
    ROW: tl.constexpr = DEPTH_SIZE * BITS // 8
    at = start * BITS // 8 + tl.arange(0, BYTES)
    where = codes + begin * BITS // 8 + line[:, None] * ROW + at[None, :]
    floats: tl.constexpr = codes.dtype.element_ty.is_floating()
    if DEPTH_SIZE % DEPTH == 0:
        code = tl.load(where)
    else:
        code = tl.load(where, mask=(at < ROW)[None, :], other=0.0 if floats else 0)
    # A block's scale of fp8 is fp32, the others are integers that every dtype has.
    factor = scale if floats else scale.to(like.dtype)
    factor = tl.broadcast_to(factor[:, :, None], (COLUMNS, EACH, BYTES // EACH))
    factor = tl.reshape(factor, (COLUMNS, BYTES))
    if floats:
        number = (code.to(tl.float32) * factor).to(like.dtype)
    elif BITS == 4:
        if NATIVE:
            even, odd = tl.inline_asm_elementwise(
                _SCALED_LEVELS, "=r,=r,=r,=r,r,r,r", [code, factor],
                dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
            )  # fmt: skip
        else:
            even = _levels_of(code & 15).to(like.dtype) * factor
            odd = _levels_of(code >> 4).to(like.dtype) * factor
        number = tl.interleave(even, odd)
    elif NATIVE:
        number = tl.inline_asm_elementwise(
            _SCALED_BYTES, "=r,=r,r,r,r", [code, factor], dtype=tl.bfloat16, is_pure=True, pack=4
        )
    else:
        number = code.to(like.dtype) * factor
    return number


@triton.jit
def _scales(scales, line, step, EACH: tl.constexpr, GROUPS: tl.constexpr):
    """The scales ``[COLUMNS, EACH]`` of a step's groups, GROUPS a line; behind the last zeros."""
    group = step * EACH + tl.arange(0, EACH)
    where = scales + line[:, None] * GROUPS + group[None, :]
    return tl.load(where, mask=(group < GROUPS)[None, :], other=0)


@triton.jit
def _product(
    x, codes, scales, row_scales, gate_codes, gate_scales, gate_row_scales, out,
    order, tile_expert, tile_first, tile_end, tiles, repeats, rows,
    DEPTH_SIZE: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
    GROUPED: tl.constexpr, GATHER: tl.constexpr, GATED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EACH: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr, TURNED: tl.constexpr, PRECISION: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """``out[row] = x[row] weight^T``, or, GATED, that times silu of ``x[row] gate^T``.

    GROUPED takes rows and the matrix of each tile from an order of experts, else there is one
    matrix and tile i has the rows from i ROWS on. BLOCK of 1 means scales per line and row scales.
    TURNED computes the transpose. NATIVE reads codes with instructions of NVIDIA's GPUs.
    """
    tile, block = _tile_of(tl.program_id(0), tiles, tl.cdiv(WIDTH, COLUMNS), GROUP)
    if GROUPED:
        expert = tl.load(tile_expert + tile).to(tl.int64)
        place = tl.load(tile_first + tile) + tl.arange(0, ROWS)
        real = place < tl.load(tile_end + tile)
    else:
        expert = tl.zeros([], dtype=tl.int64)
        place = tile * ROWS + tl.arange(0, ROWS)
        real = place < rows
    if expert >= 0:
        if GATHER:
            source = tl.load(order + place, mask=real, other=0) // repeats
        else:
            source = tl.where(real, place, 0)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        line = tl.minimum(column, WIDTH - 1)
        scale_line = expert * ((WIDTH + BLOCK - 1) // BLOCK) + line // BLOCK
        depth = tl.arange(0, DEPTH)
        begin = expert * (WIDTH * DEPTH_SIZE)
        x_at = x + source.to(tl.int64)[:, None] * DEPTH_SIZE + depth[None, :]
        steps: tl.constexpr = (DEPTH_SIZE + DEPTH - 1) // DEPTH
        acc = tl.zeros([COLUMNS, ROWS] if TURNED else [ROWS, COLUMNS], dtype=tl.float32)
        gate = tl.zeros([COLUMNS, ROWS] if TURNED else [ROWS, COLUMNS], dtype=tl.float32)
        # Too narrow to be copied ahead like the codes: they are read a step early.
        scale = _scales(scales, scale_line, 0, EACH, GROUPS)
        gate_scale = scale
        if GATED:
            gate_scale = _scales(gate_scales, scale_line, 0, EACH, GROUPS)
        for step in range(steps):
            start = step * DEPTH
            if DEPTH_SIZE % DEPTH == 0:
                a = tl.load(x_at + start)
            else:
                a = tl.load(x_at + start, mask=(start + depth < DEPTH_SIZE)[None, :], other=0.0)
            b = _weights(
                codes, scale, begin, line, start, a, DEPTH_SIZE, BITS, COLUMNS, DEPTH, EACH, NATIVE
            )
            scale = _scales(scales, scale_line, step + 1, EACH, GROUPS)
            if TURNED:
                acc = tl.dot(b, tl.trans(a), acc, input_precision=PRECISION)
            else:
                acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
            if GATED:
                b = _weights(
                    gate_codes, gate_scale, begin, line, start, a, DEPTH_SIZE, BITS, COLUMNS, DEPTH,
                    EACH, NATIVE,
                )  # fmt: skip
                gate_scale = _scales(gate_scales, scale_line, step + 1, EACH, GROUPS)
                if TURNED:
                    gate = tl.dot(b, tl.trans(a), gate, input_precision=PRECISION)
                else:
                    gate = tl.dot(a, tl.trans(b), gate, input_precision=PRECISION)
        if TURNED:
            acc, gate = tl.trans(acc), tl.trans(gate)
        inside = column < WIDTH
        if BLOCK == 1:
            at = expert * WIDTH + column
            acc *= tl.load(row_scales + at, mask=inside, other=0.0)[None, :]
            if GATED:
                gate *= tl.load(gate_row_scales + at, mask=inside, other=0.0)[None, :]
        if GATED:
            acc = gate * tl.sigmoid(gate) * acc
        where = out + place.to(tl.int64)[:, None] * WIDTH + column[None, :]
        tl.store(where, acc.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])


def _parts(weight: Coded) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and row scales, contiguous; fp8 has no row scales and passes its scales."""
    if isinstance(weight, BlockTensor):
        scales = weight.scales.contiguous()
        return weight.codes.contiguous(), scales, scales
    codes = weight.codes.contiguous()
    if SCHEMES[weight.scheme].bits == 8:
        codes = codes.view(torch.int8)
    return codes, weight.scales.contiguous(), weight.row_scales.contiguous()


def _launch(
    x: Tensor, weight: Coded, gate: Coded | None, out: Tensor, tiles: QuantTiles,
    order: ExpertOrder | None, repeats: int,
) -> None:  # fmt: skip
    width, depth = weight.shape[-2:]
    if x.shape[-1] != depth:
        raise ShapeError(f"x has {x.shape[-1]} columns, the weight {depth}")
    if gate is not None and (gate.shape != weight.shape or kind_of(gate) != kind_of(weight)):
        raise ShapeError(
            f"gate is {kind_of(gate)} {list(gate.shape)}, the weight {kind_of(weight)} "
            f"{list(weight.shape)}"
        )
    blocks = isinstance(weight, BlockTensor)
    bits = 8 if isinstance(weight, BlockTensor) else SCHEMES[weight.scheme].bits
    group = FP8_BLOCK if isinstance(weight, BlockTensor) else SCHEMES[weight.scheme].group
    parts = _parts(weight)
    rows = out.shape[0]
    if order is None:
        count = -(-rows // tiles.rows)
        places = (x, x, x, x)
    else:
        count = order.tile_expert.shape[0]
        places = (order.order, order.tile_expert, order.tile_first, order.tile_end)
    with on_device(x):
        _product[(count * -(-width // tiles.columns),)](
            x, *parts, *(parts if gate is None else _parts(gate)), out, *places,
            count, max(1, repeats), rows,
            DEPTH_SIZE=depth, WIDTH=width, BITS=bits, BLOCK=FP8_BLOCK if blocks else 1,
            GROUPED=order is not None, GATHER=repeats > 0, GATED=gate is not None,
            ROWS=tiles.rows, COLUMNS=tiles.columns, DEPTH=DEPTH, EACH=DEPTH // group,
            GROUPS=-(-depth // group), GROUP=tiles.group, TURNED=tiles.turned,
            PRECISION=precision(x.dtype),
            NATIVE=x.is_cuda and torch.version.hip is None and x.dtype == torch.bfloat16,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip


def kind_of(weight: Coded) -> str:
    """The name of a weight's format."""
    return "fp8" if isinstance(weight, BlockTensor) else weight.scheme


def quant_tiles(rows: int, deterministic: bool = False, width: int | None = None) -> QuantTiles:
    """The tiles for ``rows`` rows per matrix; ``deterministic`` fixes them.

    ``width`` is that of a matrix which is the only one.
    """
    wanted = FIXED_ROWS if deterministic else rows
    if width is not None and width <= SLIM_WIDTH:
        for size, tiles in SLIM.items():
            if size >= wanted:
                return tiles
    return TILES[next((size for size in TILES if size >= wanted), max(TILES))]


def quant_product(
    x: Tensor, weight: Coded, *, gate: Coded | None = None, dtype: torch.dtype | None = None,
    deterministic: bool = False, tiles: QuantTiles | None = None,
) -> Tensor:  # fmt: skip
    """``x weight^T``, or with ``gate`` that times silu of ``x gate^T``.

    Args:
        x: ``[T, A]``.
        weight: ``[W, A]``.
        gate: likewise, of the same format.
        dtype: of the result; that of ``x`` by default.
        deterministic: fixed tiles: a row's bits depend on its own numbers alone.
        tiles: how to cut the work, chosen by default.

    Returns:
        ``[T, W]``.

    Raises:
        ShapeError: the shapes or formats do not fit.
    """
    out = torch.empty((x.shape[0], weight.shape[-2]), dtype=dtype or x.dtype, device=x.device)
    if x.shape[0]:
        tiles = tiles or quant_tiles(x.shape[0], deterministic, weight.shape[-2])
        _launch(x.contiguous(), weight, gate, out, tiles, None, 0)
    return out


def grouped_quant_product(
    x: Tensor, weight: Coded, order: ExpertOrder, tiles: QuantTiles, *,
    gate: Coded | None = None, repeats: int = 0,
) -> Tensor:  # fmt: skip
    """:func:`dsv2.kernels.triton.grouped_gemm.grouped_product` with coded matrices."""
    out = torch.empty((order.order.shape[0], weight.shape[-2]), dtype=x.dtype, device=x.device)
    _launch(x.contiguous(), weight, gate, out, tiles, order, repeats)
    return out


def run_quant_experts(
    x: Tensor, ids: Tensor, weights: Tensor, experts: Mlp[Weight], *, deterministic: bool = False
) -> Tensor:
    """:meth:`Ops.experts` with coded experts; nothing is read from the device.

    Args:
        x: ``[T, D]``.
        ids: ``[T, K]``.
        weights: ``[T, K]`` fp32.
        experts: coded stacks of E.
        deterministic: fixed tiles: a row's bits depend on its own numbers alone.

    Returns:
        ``[T, D]`` of the dtype of ``x``.
    """
    if not ids.numel():
        return torch.zeros_like(x)
    count = experts.w_gate.shape[0]
    tiles = quant_tiles(-(-ids.numel() // count), deterministic)
    order = order_by_expert(ids.contiguous(), count, tiles.rows)
    gate, up, down = (coded(part) for part in (experts.w_gate, experts.w_up, experts.w_down))
    gated = grouped_quant_product(x, up, order, tiles, gate=gate, repeats=ids.shape[1])
    results = grouped_quant_product(gated, down, order, tiles)
    return combine_rows(results, weights.contiguous(), order)


def coded(weight: Weight) -> Coded:
    """The weight, which must be coded.

    Raises:
        TypeError: it is a plain tensor.
    """
    if isinstance(weight, Tensor):
        raise TypeError(f"a coded weight is needed, got a tensor of {weight.dtype}")
    return weight
