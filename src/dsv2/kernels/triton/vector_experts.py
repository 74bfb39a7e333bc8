"""Routed experts of a few tokens, in Triton: every choice reads its own expert, in two launches.

Programs of a few output columns keep the memory busy; shared experts may come along as further
choices, and the result may be added to the residual stream.

Bytes: 6 D F per choice in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.ops import ExpertWeights
from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.shapes import check


@triton.jit
def _gate_up_vector(
    x, ids, w_gate, w_up, s_gate, s_up, out,
    D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``out[t, k] = silu(w_gate x) * (w_up x)`` of one choice and a few columns of its expert.

    The last SHARED choices of every token are the shared experts, F columns each.
    """
    token = tl.program_id(0) // (K + SHARED)
    k = tl.program_id(0) % (K + SHARED)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if EARLY:
        wait()
    if k < K:
        first = tl.load(ids + token * K + k).to(tl.int64) * (F * D)
        gate_at = w_gate + first
        up_at = w_up + first
    else:
        first = (k - K).to(tl.int64) * (F * D)
        gate_at = s_gate + first
        up_at = s_up + first
    gate = tl.zeros([COLUMNS], dtype=tl.float32)
    up = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(0, D, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        where = column[:, None] * D + depth[None, :]
        mask = (column < F)[:, None] & (depth < D)[None, :]
        b = tl.load(gate_at + where, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(up_at + where, mask=mask, other=0.0).to(tl.float32)
        a = tl.load(x + token * D + depth, mask=depth < D, other=0.0).to(tl.float32)
        gate += tl.sum(b * a[None, :], 1)
        up += tl.sum(c * a[None, :], 1)
    gated = gate * tl.sigmoid(gate) * up
    target = out + tl.program_id(0) * F + column
    tl.store(target, gated.to(out.dtype.element_ty), mask=column < F)


@triton.jit
def _down_tile(
    ids, w_down, s_down, token, k: tl.constexpr, column, depth,
    D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """A tile ``[columns, depth]`` of choice ``k``'s expert; nothing beyond the last choice."""
    line = F
    at = w_down
    if k < K:
        at = w_down + tl.load(ids + token * K + k).to(tl.int64) * (D * F)
    else:
        at = s_down + (k - K) * F
        line = SHARED * F
    inside = depth < F
    if k >= K + SHARED:
        inside = depth < 0
    mask = (column < D)[:, None] & inside[None, :]
    return tl.load(at + column[:, None] * line + depth[None, :], mask=mask, other=0.0)


@triton.jit
def _down_part(
    b, gated, weights, token, k: tl.constexpr, depth,
    F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """A tile times the choice's gated numbers and its weight, not yet summed over ``depth``."""
    inside = depth < F
    if k >= K + SHARED:
        inside = depth < 0
    a = tl.load(gated + (token * (K + SHARED) + k) * F + depth, mask=inside, other=0.0)
    part = b.to(tl.float32) * a.to(tl.float32)[None, :]
    if k < K:
        weight = tl.load(weights + token * K + k)
        part = tl.where(weight == 0, 0.0, part * weight)  # what is taken out may be NaN
    return part


@triton.jit
def _down_vector(
    gated, ids, weights, w_down, s_down, out,
    D: tl.constexpr, F: tl.constexpr, K: tl.constexpr, SHARED: tl.constexpr, ADD: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A few columns of one token's result: its experts one after another, summed once, in fp32.

    Two experts' weights are on their way while the kernel before ends: the choice of experts is
    older than that one. Four at once would leave fewer programs at a time, and took longer.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    b_0 = _down_tile(ids, w_down, s_down, token, 0, column, depth, D, F, K, SHARED)
    b_1 = _down_tile(ids, w_down, s_down, token, 1, column, depth, D, F, K, SHARED)
    if EARLY:
        wait()
    acc = _down_part(b_0, gated, weights, token, 0, depth, F, K, SHARED)
    acc += _down_part(b_1, gated, weights, token, 1, depth, F, K, SHARED)
    for k in tl.static_range(2, K + SHARED):
        b = _down_tile(ids, w_down, s_down, token, k, column, depth, D, F, K, SHARED)
        acc += _down_part(b, gated, weights, token, k, depth, F, K, SHARED)
    for start in range(DEPTH, F, DEPTH):
        for k in tl.static_range(K + SHARED):
            b = _down_tile(ids, w_down, s_down, token, k, column, start + depth, D, F, K, SHARED)
            acc += _down_part(b, gated, weights, token, k, start + depth, F, K, SHARED)
    result = tl.sum(acc, 1)
    target = out + token * D + column
    if ADD:
        result += tl.load(target, mask=column < D, other=0.0)
    tl.store(target, result.to(out.dtype.element_ty), mask=column < D)


@dataclass(frozen=True)
class VectorTiles:
    """Columns of a program and its warps, for the two products of a few choices.

    Of 19 and 17 that were tried on an H200 these took 35.7 us a layer of V2-Lite, the others up to
    44.
    """

    gate_up: int = 1
    gate_up_warps: int = 1
    down: int = 4
    down_warps: int = 8


def experts_vector(
    x: Tensor, ids: Tensor, weights: Tensor, experts: ExpertWeights,
    tiles: VectorTiles = VectorTiles(), *, shared: ExpertWeights | None = None,
    into: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """:meth:`Ops.experts` for a few tokens: every choice reads its expert, in two launches.

    Args:
        x: ``[T, D]``.
        ids: ``[T, K]``.
        weights: ``[T, K]`` fp32.
        experts: stacks of E.
        tiles: how to cut the work.
        shared: experts that every token takes, as one ``[1, nF, D]``, or None.
        into: ``[T, D]`` fp32 that the result is added to, or None for a new tensor.
    """
    sizes = check((x, "T D"), (ids, "T K"), (weights, "T K"), (experts.w_gate, "E F D"))
    tokens, width, repeats, inner = (sizes[letter] for letter in "TDKF")
    extra = 0 if shared is None else shared.w_up.shape[1] // inner
    beside = experts if shared is None else shared
    pairs = tokens * (repeats + extra)
    gated = torch.empty((pairs, inner), dtype=x.dtype, device=x.device)
    out = torch.empty_like(x) if into is None else into
    with on_device(x):
        _gate_up_vector[(pairs, -(-inner // tiles.gate_up))](
            x, ids, experts.w_gate, experts.w_up, beside.w_gate, beside.w_up, gated,
            D=width, F=inner, K=repeats, SHARED=extra, COLUMNS=tiles.gate_up,
            DEPTH=min(2048, padded(width)), num_warps=tiles.gate_up_warps, **overlaps(x),
        )  # fmt: skip
        _down_vector[(tokens, -(-width // tiles.down))](
            gated, ids, weights, experts.w_down, beside.w_down, out,
            D=width, F=inner, K=repeats, SHARED=extra, ADD=into is not None, COLUMNS=tiles.down,
            DEPTH=min(2048, padded(inner)), num_warps=tiles.down_warps, **overlaps(x),
        )  # fmt: skip
    return out
