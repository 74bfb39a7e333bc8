"""Products of a token or two with weights in 4 and 8 bits, from memory's speed, in Triton.

Beside so few rows matrix units have nothing to do, and turning codes into floats takes longer than
reading them. So inputs become integers of 16 bits, with a scale per group of weights: levels times
their two bytes are added up four at a time (``dp4a``), exactly, and scaled once a group. A group is
32 bytes of codes in both formats (64 inputs of 4 bits, 32 of 8). Several tokens go to
:mod:`dsv2.kernels.triton.quant_product`.

Bytes: 4.125 or 8.25 bits per weight, once for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.formats import CODEBOOK, SCHEMES, QuantTensor
from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.kernels.triton.quant_product import _levels_of

_UNIT = tl.constexpr(32)
"""Bytes of a group."""
_MOST = tl.constexpr(127 * 256)
"""The largest integer of an input: its upper byte must hold the rounding of the lower one."""


def _multiply(bits: int) -> str:
    """PTX: a word of codes times the upper and lower bytes of its inputs, added up.

    In 4 bits ``prmt`` looks four levels up at once: a nibble chooses one of eight bytes, so a table
    of 16 takes two look-ups and a choice by the codes' high bits.
    """
    if bits == 8:
        return (
            "{ .reg .s32 h, l; dp4a.s32.s32 h, $1, $2, 0; dp4a.s32.s32 l, $1, $3, 0;"
            " mad.lo.s32 $0, h, 256, l; }"
        )
    words = [
        hex(int.from_bytes(bytes(level & 255 for level in CODEBOOK[start : start + 4]), "little"))
        for start in range(0, 16, 4)
    ]
    lines = [
        "and.b32 low, $1, 0x77777777;", "shr.b32 pick, $1, 1;",
        "and.b32 pick, pick, 0x44444444;", "or.b32 pick, pick, 0x32103210;",
        *(f"mov.b32 t{place}, {word};" for place, word in enumerate(words)),
        "mov.s32 h, 0;", "mov.s32 l, 0;",
    ]  # fmt: skip
    for half in range(2):
        if half:
            lines += ["shr.b32 low, low, 16;", "shr.b32 pick, pick, 16;"]
        lines += [
            "prmt.b32 a, t0, t1, low;", "prmt.b32 b, t2, t3, low;", "prmt.b32 a, a, b, pick;",
            f"dp4a.s32.s32 h, a, ${2 + half}, h;", f"dp4a.s32.s32 l, a, ${4 + half}, l;",
        ]  # fmt: skip
    lines.append("mad.lo.s32 $0, h, 256, l;")
    return "{ .reg .b32 low, pick, a, b, t0, t1, t2, t3; .reg .s32 h, l; " + " ".join(lines) + " }"


_MULTIPLY_4, _MULTIPLY_8 = tl.constexpr(_multiply(4)), tl.constexpr(_multiply(8))


@triton.jit
def _split(
    x, out, scales, A: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, EARLY: tl.constexpr
):
    """The upper bytes ``out[t, 0]`` and the lower ones ``out[t, 1]`` of a few groups' inputs."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    mask = (group < A // GROUP)[:, None]
    where = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    if EARLY:
        wait()
    row = tl.load(x + token * A + where, mask=mask, other=0.0).to(tl.float32)
    top = tl.max(tl.abs(row), 1)
    scale = top / _MOST
    number = row / tl.where(top == 0, 1.0, scale)[:, None]
    number = tl.where(number < 0, number - 0.5, number + 0.5).to(tl.int32)
    upper = (number + 128) >> 8
    target = out + token * 2 * A + where
    tl.store(target, upper.to(tl.int8), mask=mask)
    tl.store(target + A, (number - upper * 256).to(tl.int8), mask=mask)
    # A row of which a number is none has sums that are none.
    scale = tl.where(tl.sum(tl.where(row == row, 0, 1), 1) == 0, scale, float("nan"))
    tl.store(scales + token * (A // GROUP) + group, scale, mask=group < A // GROUP)


@triton.jit
def _inputs(
    x, first, GROUPS: tl.constexpr, BITS: tl.constexpr, ALL: tl.constexpr, NATIVE: tl.constexpr
):
    """Inputs of groups from ``first`` on, as :func:`_sums` takes them.

    ``[GROUPS, 8]`` words of upper bytes, of those of every second four inputs, and of lower bytes
    alike; not NATIVE ``[GROUPS, 32]`` numbers of even inputs and of odd ones. In 8 bits there are
    no second ones. ALL is the number of groups of ``x``.
    """
    group = first + tl.arange(0, GROUPS)
    mask = (group < ALL)[:, None]
    half: tl.constexpr = ALL * _UNIT * 8 // BITS
    step: tl.constexpr = 8 // BITS
    if NATIVE:
        words = x.to(tl.pointer_type(tl.int32))
        place = words + (group[:, None] * 8 + tl.arange(0, 8)[None, :]) * step
        a = tl.load(place, mask=mask, other=0)
        c = tl.load(place + half // 4, mask=mask, other=0)
        b, d = a, c
        if BITS == 4:
            b = tl.load(place + 1, mask=mask, other=0)
            d = tl.load(place + 1 + half // 4, mask=mask, other=0)
    else:
        place = x + (group[:, None] * _UNIT + tl.arange(0, _UNIT)[None, :]) * step
        a = tl.load(place, mask=mask, other=0).to(tl.int32) * 256
        a += tl.load(place + half, mask=mask, other=0)
        b = tl.load(place + step - 1, mask=mask, other=0).to(tl.int32) * 256
        b += tl.load(place + step - 1 + half, mask=mask, other=0)
        c, d = a, b
    return a, b, c, d


@triton.jit
def _codes(
    codes, line, real, first, row_groups, GROUPS: tl.constexpr, ALL: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """``[COLUMNS, GROUPS, 8]`` words, or 32 bytes, of some lines of a matrix from a group on."""
    group = first + tl.arange(0, GROUPS)
    begin = (line[:, None] * row_groups + group[None, :])[:, :, None]
    mask = (real[:, None] & (group < ALL)[None, :])[:, :, None]
    if NATIVE:
        where = begin * 8 + tl.arange(0, 8)[None, None, :]
        code = tl.load(codes.to(tl.pointer_type(tl.int32)) + where, mask=mask, other=0)
    else:
        where = begin * _UNIT + tl.arange(0, _UNIT)[None, None, :]
        code = tl.load(codes + where, mask=mask, other=0)
    return code


@triton.jit
def _sums(code, a, b, c, d, BITS: tl.constexpr, NATIVE: tl.constexpr):
    """Sums of levels times inputs of each group, ``[COLUMNS, GROUPS]`` int32."""
    a, b, c, d = a[None, :, :], b[None, :, :], c[None, :, :], d[None, :, :]
    if NATIVE:
        if BITS == 4:
            part = tl.inline_asm_elementwise(
                _MULTIPLY_4, "=r,r,r,r,r,r", [code, a, b, c, d], dtype=tl.int32, is_pure=True,
                pack=1,
            )  # fmt: skip
        else:
            part = tl.inline_asm_elementwise(
                _MULTIPLY_8, "=r,r,r,r", [code, a, c], dtype=tl.int32, is_pure=True, pack=1
            )
    elif BITS == 4:
        part = _levels_of(code & 15).to(tl.int32) * a + _levels_of(code >> 4).to(tl.int32) * b
    else:
        part = code.to(tl.int8, bitcast=True).to(tl.int32) * a
    return tl.sum(part, 2)


@triton.jit
def _scaled(
    code, scales, line, real, x, x_scales, first, row_groups,
    GROUPS: tl.constexpr, BITS: tl.constexpr, ALL: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Products of a tile with the inputs, ``[COLUMNS]``, but for the scales of lines."""
    a, b, c, d = _inputs(x, first, GROUPS, BITS, ALL, NATIVE)
    sums = _sums(code, a, b, c, d, BITS, NATIVE).to(tl.float32)
    group = first + tl.arange(0, GROUPS)
    inside = group < ALL
    where = scales + line[:, None] * row_groups + group[None, :]
    scale = tl.load(where, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
    scale *= tl.load(x_scales + group, mask=inside, other=0.0)[None, :]
    return tl.sum(sums * scale, 1)


@triton.jit
def _vector(
    x, x_scales, codes, scales, row_scales, out,
    WIDTH: tl.constexpr, ALL: tl.constexpr, BITS: tl.constexpr,
    COLUMNS: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr, NATIVE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``out[t] (+)= weight x[t]`` of one token and a few columns; lines have ALL groups."""
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real = column < WIDTH
    line = column.to(tl.int64)
    # Weights are nobody's result: they are on their way while the kernel before ends.
    code = _codes(codes, line, real, 0, ALL, GROUPS, ALL, NATIVE)
    if EARLY:
        wait()
    x += token * (ALL * _UNIT * 16 // BITS)
    x_scales += token * ALL
    acc = _scaled(code, scales, line, real, x, x_scales, 0, ALL, GROUPS, BITS, ALL, NATIVE)
    for first in range(GROUPS, ALL, GROUPS):
        code = _codes(codes, line, real, first, ALL, GROUPS, ALL, NATIVE)
        acc += _scaled(code, scales, line, real, x, x_scales, first, ALL, GROUPS, BITS, ALL, NATIVE)
    acc *= tl.load(row_scales + column, mask=real, other=0.0)
    target = out + token * WIDTH + column
    if ADD:
        acc += tl.load(target, mask=real, other=0.0)
    tl.store(target, acc.to(out.dtype.element_ty), mask=real)


@dataclass(frozen=True)
class Cut:
    """Columns of a program, its warps, and groups at a time."""

    columns: int
    warps: int
    groups: int


DENSE = Cut(8, 4, 16)
"""Of some 30 that were tried on an H200, at the widths of V2-Lite and of V2."""


def is_native(x: Tensor) -> bool:
    """Whether instructions of NVIDIA's GPUs multiply the codes."""
    return x.is_cuda and torch.version.hip is None


def split_inputs(x: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """Inputs as integers of 16 bits, a scale per group of a scheme.

    Args:
        x: ``[T, A]``.
        scheme: a name of :data:`dsv2.kernels.formats.SCHEMES`.

    Returns:
        int8 ``[T, 2, A]``, upper and lower bytes (the number is 256 times the one and the other),
        and fp32 ``[T, A / group]``.
    """
    (tokens, width), group = x.shape, SCHEMES[scheme].group
    x = x.contiguous()
    halves = torch.empty((tokens, 2, width), dtype=torch.int8, device=x.device)
    scales = torch.empty((tokens, width // group), dtype=torch.float32, device=x.device)
    groups = 512 // group
    with on_device(x):
        _split[(tokens, -(-width // (group * groups)))](
            x, halves, scales, A=width, GROUP=group, GROUPS=groups, num_warps=2, **overlaps(x)
        )
    return halves, scales


def vector_product(
    x: Tensor, weight: QuantTensor, *, dtype: torch.dtype | None = None,
    into: Tensor | None = None, cut: Cut = DENSE,
) -> Tensor:  # fmt: skip
    """``x weight^T`` of a few tokens.

    Args:
        x: ``[T, A]``.
        weight: ``[W, A]``.
        dtype: of the result; that of ``x`` by default.
        into: ``[T, W]`` fp32 that the result is added to, or None for a new tensor.
        cut: how the work is cut.

    Returns:
        ``[T, W]``.
    """
    width = weight.shape[-2]
    out = into
    if out is None:
        out = torch.empty((x.shape[0], width), dtype=dtype or x.dtype, device=x.device)
    every = weight.scales.shape[-1]
    halves, x_scales = split_inputs(x, weight.scheme)
    with on_device(x):
        _vector[(-(-width // cut.columns), x.shape[0])](
            halves, x_scales, weight.codes, weight.scales, weight.row_scales, out,
            WIDTH=width, ALL=every, BITS=SCHEMES[weight.scheme].bits, COLUMNS=cut.columns,
            GROUPS=min(cut.groups, padded(every)), ADD=into is not None, NATIVE=is_native(x),
            num_warps=cut.warps, **overlaps(x),
        )  # fmt: skip
    return out
