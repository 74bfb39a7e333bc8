"""Causal attention over packed sequences with keys wider than values, in Triton (equation 18).

Sequences lie one after another without padding; keys may be more than queries, of which the last
sees all. The forward pass keeps a block of queries, walks over the keys with a running softmax and
leaves the log-sum-exp of each query, with which results over disjoint keys can be merged. The
gradients are in :mod:`mla_prefill_grad`.

Widths that are no power of two are two products: 192 columns are 128 and 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.launch import LOG2_E, on_device, padded, precision
from dsv2.shapes import check


@dataclass(frozen=True)
class PrefillTiles:
    """Queries and keys per tile, warps per program, tiles in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


FORWARD = PrefillTiles(rows=128, keys=64, warps=8, stages=3)
WIDE = PrefillTiles(rows=32, keys=32, warps=4, stages=1)
"""For fp32, whose products do not use the matrix units."""


def halves(width: int) -> tuple[int, int]:
    """Columns of the two products: a power of two, and the padded rest or 0."""
    first = max(16, 1 << (width.bit_length() - 1))
    return first, padded(width - first) if width > first else 0


@triton.jit
def rows_of(base, row, stride, begin: tl.constexpr, real, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """A tile ``[rows, PAD]`` from column ``begin`` of ``WIDTH``; zero where nothing is."""
    column = begin + tl.arange(0, PAD)
    mask = real[:, None]
    if begin + PAD > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(
        base + row.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0
    )


@triton.jit
def put_rows(
    base, row, stride, begin: tl.constexpr, real, tile, WIDTH: tl.constexpr, PAD: tl.constexpr
):
    """Store a tile where :func:`rows_of` would read it."""
    column = begin + tl.arange(0, PAD)
    mask = real[:, None]
    if begin + PAD > WIDTH:
        mask = mask & (column < WIDTH)[None, :]
    where = base + row.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(where, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _walk(
    acc, mass, top, q_1, q_2, k, v, k_stride, v_stride, begin, end, last_seen, qk_scale,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The running softmax over the keys ``begin:end``; ``last_seen`` is each row's last key."""
    n = tl.arange(0, KEYS)
    for start in range(begin, end, KEYS):
        key = start + n
        inside = key < end
        k_1 = rows_of(k, key, k_stride, 0, inside, A, A_1)
        scores = tl.dot(q_1, tl.trans(k_1), input_precision=PRECISION)  # ROWS KEYS
        if A_2:
            k_2 = rows_of(k, key, k_stride, A_1, inside, A, A_2)
            scores = tl.dot(q_2, tl.trans(k_2), scores, input_precision=PRECISION)
        if MASKED:
            seen = inside[None, :] & (key[None, :] <= last_seen[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        # The same rounding with and without a mask, which a compiler would not promise for a
        # product and a difference: a key's bits must not depend on how a prompt is cut.
        new_top = tl.maximum(top, tl.max(scores, 1) * qk_scale)
        weights = tl.exp2(tl.fma(scores, qk_scale, -new_top[:, None]))
        fade = tl.exp2(top - new_top)
        mass = mass * fade + tl.sum(weights, 1)
        value = rows_of(v, key, v_stride, 0, inside, V, V_PAD)
        acc = tl.dot(weights.to(value.dtype), value, acc * fade[:, None], input_precision=PRECISION)
        top = new_top
    return acc, mass, top


@triton.jit
def _forward(
    q, k, v, out, lse, cu_q, cu_k, qk_scale, tokens,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, out_stride,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    LOG2_E: tl.constexpr,
):  # fmt: skip
    # The last block of queries sees the most keys: it goes first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    q_first = tl.load(cu_q + sequence)
    q_len = tl.load(cu_q + sequence + 1) - q_first
    k_first = tl.load(cu_k + sequence)
    k_len = tl.load(cu_k + sequence + 1) - k_first
    if block * ROWS < q_len:
        row = block * ROWS + tl.arange(0, ROWS)
        real = row < q_len
        q += q_first.to(tl.int64) * q_stride + head * q_head
        k += k_first.to(tl.int64) * k_stride + head * k_head
        v += k_first.to(tl.int64) * v_stride + head * v_head
        q_1 = rows_of(q, row, q_stride, 0, real, A, A_1)
        q_2 = q_1
        if A_2:
            q_2 = rows_of(q, row, q_stride, A_1, real, A, A_2)
        acc = tl.zeros([ROWS, V_PAD], dtype=tl.float32)
        mass = tl.zeros([ROWS], dtype=tl.float32)
        top = tl.full([ROWS], float("-inf"), dtype=tl.float32)
        ahead = k_len
        if CAUSAL:
            ahead = k_len - q_len
        last_seen = row + ahead
        end = tl.minimum(block * ROWS + ROWS + ahead, k_len)
        # Keys that the block's first query sees need no mask.
        clear = tl.minimum(block * ROWS + ahead + 1, end) // KEYS * KEYS
        acc, mass, top = _walk(
            acc, mass, top, q_1, q_2, k, v, k_stride, v_stride, 0, clear, last_seen, qk_scale,
            A, A_1, A_2, V, V_PAD, KEYS, False, PRECISION,
        )  # fmt: skip
        acc, mass, top = _walk(
            acc, mass, top, q_1, q_2, k, v, k_stride, v_stride, clear, end, last_seen, qk_scale,
            A, A_1, A_2, V, V_PAD, KEYS, True, PRECISION,
        )  # fmt: skip
        out += q_first.to(tl.int64) * out_stride + head * V
        put_rows(out, row, out_stride, 0, real, acc / mass[:, None], V, V_PAD)
        level = (top + tl.log2(mass)) / LOG2_E
        tl.store(lse + head.to(tl.int64) * tokens + q_first + row, level, mask=real)


def strides(*tensors: Tensor) -> list[int]:
    """Of each tensor those of its rows and of its heads."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def widths_of(q: Tensor, v: Tensor) -> dict[str, Any]:
    """What every kernel is compiled for."""
    first, second = halves(q.shape[-1])
    return {
        "A": q.shape[-1], "A_1": first, "A_2": second, "V": v.shape[-1],
        "V_PAD": padded(v.shape[-1]), "PRECISION": precision(q.dtype), "LOG2_E": LOG2_E,
    }  # fmt: skip


def attend_ragged(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, scale: float,
    tiles: PrefillTiles = FORWARD, *, causal: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention and its log-sum-exp, without a gradient.

    Args:
        q: ``[T, H, N+R]``; like ``k`` and ``v`` with any strides but 1 in the last axis.
        k: ``[S, H, N+R]``.
        v: ``[S, H, V]``.
        cu_q: ``[B+1]`` int32, bounds of the sequences' queries.
        cu_k: ``[B+1]`` int32, bounds of their keys, at least as many as queries where causal.
        max_q: at least the largest number of queries of a sequence.
        scale: of the scores.
        tiles: how to cut the work.
        causal: the last query of a sequence sees all its keys, the one before all but the last,
            and so on; else every query sees every key.

    Returns:
        ``[T, H, V]``, and fp32 ``[H, T]``, the natural logarithm of each query's softmax sum.
    """
    check((q, "T H A"), (k, "S H A"), (v, "S H V"), (cu_q, "b"), (cu_k, "b"))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tokens, heads, width = q.shape[0], q.shape[1], v.shape[-1]
    out = torch.empty((tokens, heads, width), dtype=v.dtype, device=v.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    if not tokens:
        return out, lse
    tiles = WIDE if q.dtype == torch.float32 else tiles
    with on_device(q):
        _forward[(-(-max_q // tiles.rows), heads, cu_q.shape[0] - 1)](
            q, k, v, out, lse, cu_q, cu_k, scale * LOG2_E, tokens,
            *strides(q, k, v), heads * width,
            **widths_of(q, v), ROWS=tiles.rows, KEYS=tiles.keys, CAUSAL=causal,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out, lse


def merge_attention(
    out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys.

    ``out`` and ``other`` ``[T, H, V]``, each with its log-sum-exp ``[H, T]``.
    """
    total = torch.logaddexp(lse, other_lse)  # H T
    left, right = ((part - total).exp().T.unsqueeze(-1) for part in (lse, other_lse))
    return (out.float() * left + other.float() * right).to(out.dtype), total
