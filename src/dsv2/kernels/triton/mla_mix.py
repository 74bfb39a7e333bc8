"""Splits of a sequence's keys, mixed by their share of the softmax sum, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from dsv2.kernels.triton.launch import wait


@triton.jit
def mix_splits(
    parts, lse, row, c, part_stride, num_splits,
    C: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Columns ``c`` of one row's splits, mixed by their share of the softmax sum, in fp32.

    GROUP splits at a time, in order. AHEAD reads a split before it is known to have keys: sooner,
    but of many empty ones too much.
    """
    g = tl.arange(0, GROUP)
    acc = tl.zeros([COLUMNS], dtype=tl.float32)
    mass = 0.0
    top = float("-inf")
    for start in range(0, num_splits, GROUP):
        split = start + g
        level = tl.load(
            lse + split.to(tl.int64) * part_stride + row, mask=split < num_splits,
            other=float("-inf"),
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(level, 0))
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        share = tl.exp2(level - safe)  # GROUP
        fade = tl.exp2(top - safe)
        where = (split.to(tl.int64) * part_stride + row)[:, None] * C + c[None, :]
        some = (level > float("-inf"))[:, None]
        mask = (c < C)[None, :]
        if AHEAD:
            part = tl.load(parts + where, mask=mask & (split < num_splits)[:, None], other=0.0)
            part = tl.where(some, part, 0.0)  # what was never written may be NaN
        else:
            part = tl.load(parts + where, mask=mask & some, other=0.0)  # GROUP COLUMNS
        acc = acc * fade + tl.sum(part * share[:, None], 0)
        mass = mass * fade + tl.sum(share, 0)
        top = new_top
    return tl.where(mass > 0, acc / tl.where(mass > 0, mass, 1.0), 0.0)


@triton.jit
def combine_splits(
    parts, lse, out, part_stride, num_splits,
    C: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """COLUMNS columns of one row's result ``out`` ``[T, H, C]``."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if EARLY:
        wait()
    result = mix_splits(parts, lse, row, c, part_stride, num_splits, C, COLUMNS, GROUP, False)
    tl.store(out + row * C + c, result.to(out.dtype.element_ty), mask=c < C)
