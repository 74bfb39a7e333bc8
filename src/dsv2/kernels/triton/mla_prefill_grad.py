"""Gradients of causal attention over packed sequences, in Triton (equation 18).

The probabilities are taken anew from the log-sum-exp that the forward pass leaves. One kernel keeps
a block of keys and walks over the queries that see it, another keeps queries and walks over keys:
sums have a fixed order, without atomics, and two of the five products are taken twice for it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.registry import implements
from dsv2.kernels.triton.launch import bounds, on_device, padded
from dsv2.kernels.triton.mla_prefill import (
    WIDE,
    PrefillTiles,
    attend_ragged,
    put_rows,
    rows_of,
    strides,
    widths_of,
)

BACKWARD_KEYS = PrefillTiles(rows=32, keys=64, warps=4, stages=2)
"""For the gradients of keys and values, which keep a block of keys and walk over queries."""
BACKWARD_QUERIES = PrefillTiles(rows=128, keys=64, warps=8, stages=3)


@triton.jit
def _delta(
    out, grad, delta, tokens, heads, V: tl.constexpr, V_PAD: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """``delta[h, t] = sum_v grad * out``, which the gradient of a softmax subtracts."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # of [T, H]
    real = row < tokens * heads
    left = rows_of(out, row, V, 0, real, V, V_PAD).to(tl.float32)
    right = rows_of(grad, row, V, 0, real, V, V_PAD).to(tl.float32)
    where = (row % heads).to(tl.int64) * tokens + row // heads
    tl.store(delta + where, tl.sum(left * right, 1), mask=real)


@triton.jit
def _walk_queries(
    gk_1, gk_2, gv, k_1, k_2, value, q, grad, lse, delta, q_stride, grad_stride, begin, end, q_len,
    first_seen, qk_scale,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    ROWS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    """Sums over the queries ``begin:end``; ``first_seen`` is the first query that sees each key."""
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        real = row < q_len
        q_1 = rows_of(q, row, q_stride, 0, real, A, A_1)
        scores = tl.dot(k_1, tl.trans(q_1), input_precision=PRECISION)  # KEYS ROWS
        q_2 = q_1
        if A_2:
            q_2 = rows_of(q, row, q_stride, A_1, real, A, A_2)
            scores = tl.dot(k_2, tl.trans(q_2), scores, input_precision=PRECISION)
        g = rows_of(grad, row, grad_stride, 0, real, V, V_PAD)
        g_weights = tl.dot(value, tl.trans(g), input_precision=PRECISION)  # KEYS ROWS
        # Queries beyond the end have weights of zero; keys beyond it are not stored.
        level = tl.load(lse + row, mask=real, other=float("inf")) * LOG2_E
        mean = tl.load(delta + row, mask=real, other=0.0)
        weights = tl.exp2(scores * qk_scale - level[None, :])
        if MASKED:
            weights = tl.where(row[None, :] >= first_seen[:, None], weights, 0.0)
        gv = tl.dot(weights.to(g.dtype), g, gv, input_precision=PRECISION)
        g_scores = (weights * (g_weights - mean[None, :])).to(q_1.dtype)
        gk_1 = tl.dot(g_scores, q_1, gk_1, input_precision=PRECISION)
        if A_2:
            gk_2 = tl.dot(g_scores, q_2, gk_2, input_precision=PRECISION)
    return gk_1, gk_2, gv


@triton.jit
def _backward_keys(
    q, k, v, grad, lse, delta, grad_k, grad_v, cu_q, cu_k, scale, tokens,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, grad_stride, gk_stride, gk_head,
    gv_stride, gv_head,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values: over all queries that see it."""
    block = tl.program_id(0)  # the first block of keys is seen by the most queries
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    q_first = tl.load(cu_q + sequence)
    q_len = tl.load(cu_q + sequence + 1) - q_first
    k_first = tl.load(cu_k + sequence)
    k_len = tl.load(cu_k + sequence + 1) - k_first
    if block * KEYS < k_len:
        key = block * KEYS + tl.arange(0, KEYS)
        inside = key < k_len
        q += q_first.to(tl.int64) * q_stride + head * q_head
        k += k_first.to(tl.int64) * k_stride + head * k_head
        v += k_first.to(tl.int64) * v_stride + head * v_head
        grad += q_first.to(tl.int64) * grad_stride + head * V
        lse += head.to(tl.int64) * tokens + q_first
        delta += head.to(tl.int64) * tokens + q_first
        k_1 = rows_of(k, key, k_stride, 0, inside, A, A_1)
        k_2 = k_1
        gk_1 = tl.zeros([KEYS, A_1], dtype=tl.float32)
        gk_2 = tl.zeros([KEYS, 16], dtype=tl.float32)
        if A_2:
            k_2 = rows_of(k, key, k_stride, A_1, inside, A, A_2)
            gk_2 = tl.zeros([KEYS, A_2], dtype=tl.float32)
        value = rows_of(v, key, v_stride, 0, inside, V, V_PAD)
        gv = tl.zeros([KEYS, V_PAD], dtype=tl.float32)
        first_seen = key - (k_len - q_len)
        first = tl.maximum(block * KEYS - (k_len - q_len), 0) // ROWS * ROWS
        # Queries that see the block's last key need no mask.
        clear = tl.maximum(block * KEYS + KEYS - 1 - (k_len - q_len), 0)
        clear = tl.minimum(tl.cdiv(clear, ROWS) * ROWS, q_len)
        gk_1, gk_2, gv = _walk_queries(
            gk_1, gk_2, gv, k_1, k_2, value, q, grad, lse, delta, q_stride, grad_stride,
            first, clear, q_len, first_seen, scale * LOG2_E,
            A, A_1, A_2, V, V_PAD, ROWS, True, PRECISION, LOG2_E,
        )  # fmt: skip
        gk_1, gk_2, gv = _walk_queries(
            gk_1, gk_2, gv, k_1, k_2, value, q, grad, lse, delta, q_stride, grad_stride,
            clear, q_len, q_len, first_seen, scale * LOG2_E,
            A, A_1, A_2, V, V_PAD, ROWS, False, PRECISION, LOG2_E,
        )  # fmt: skip
        grad_k += k_first.to(tl.int64) * gk_stride + head * gk_head
        grad_v += k_first.to(tl.int64) * gv_stride + head * gv_head
        put_rows(grad_k, key, gk_stride, 0, inside, gk_1 * scale, A, A_1)
        if A_2:
            put_rows(grad_k, key, gk_stride, A_1, inside, gk_2 * scale, A, A_2)
        put_rows(grad_v, key, gv_stride, 0, inside, gv, V, V_PAD)


@triton.jit
def _walk_keys(
    gq_1, gq_2, q_1, q_2, g, level, mean, k, v, k_stride, v_stride, begin, end, last_seen, qk_scale,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums over the keys ``begin:end``; ``last_seen`` is each row's last key."""
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = key < end
        k_1 = rows_of(k, key, k_stride, 0, inside, A, A_1)
        scores = tl.dot(q_1, tl.trans(k_1), input_precision=PRECISION)  # ROWS KEYS
        k_2 = k_1
        if A_2:
            k_2 = rows_of(k, key, k_stride, A_1, inside, A, A_2)
            scores = tl.dot(q_2, tl.trans(k_2), scores, input_precision=PRECISION)
        value = rows_of(v, key, v_stride, 0, inside, V, V_PAD)
        g_weights = tl.dot(g, tl.trans(value), input_precision=PRECISION)  # ROWS KEYS
        weights = tl.exp2(scores * qk_scale - level[:, None])
        if MASKED:
            seen = inside[None, :] & (key[None, :] <= last_seen[:, None])
            weights = tl.where(seen, weights, 0.0)
        g_scores = (weights * (g_weights - mean[:, None])).to(k_1.dtype)
        gq_1 = tl.dot(g_scores, k_1, gq_1, input_precision=PRECISION)
        if A_2:
            gq_2 = tl.dot(g_scores, k_2, gq_2, input_precision=PRECISION)
    return gq_1, gq_2


@triton.jit
def _backward_queries(
    q, k, v, grad, lse, delta, grad_q, cu_q, cu_k, scale, tokens,
    q_stride, q_head, k_stride, k_head, v_stride, v_head, grad_stride, gq_stride,
    A: tl.constexpr, A_1: tl.constexpr, A_2: tl.constexpr, V: tl.constexpr, V_PAD: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of queries: over all keys that it sees."""
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
        grad += q_first.to(tl.int64) * grad_stride + head * V
        first = head.to(tl.int64) * tokens + q_first
        level = tl.load(lse + first + row, mask=real, other=float("inf")) * LOG2_E
        mean = tl.load(delta + first + row, mask=real, other=0.0)
        g = rows_of(grad, row, grad_stride, 0, real, V, V_PAD)
        q_1 = rows_of(q, row, q_stride, 0, real, A, A_1)
        q_2 = q_1
        gq_1 = tl.zeros([ROWS, A_1], dtype=tl.float32)
        gq_2 = tl.zeros([ROWS, 16], dtype=tl.float32)
        if A_2:
            q_2 = rows_of(q, row, q_stride, A_1, real, A, A_2)
            gq_2 = tl.zeros([ROWS, A_2], dtype=tl.float32)
        ahead = k_len - q_len
        end = tl.minimum(block * ROWS + ROWS + ahead, k_len)
        # Keys that the block's first query sees need no mask.
        clear = tl.minimum(block * ROWS + ahead + 1, end) // KEYS * KEYS
        gq_1, gq_2 = _walk_keys(
            gq_1, gq_2, q_1, q_2, g, level, mean, k, v, k_stride, v_stride, 0, clear, row + ahead,
            scale * LOG2_E, A, A_1, A_2, V, V_PAD, KEYS, False, PRECISION,
        )  # fmt: skip
        gq_1, gq_2 = _walk_keys(
            gq_1, gq_2, q_1, q_2, g, level, mean, k, v, k_stride, v_stride, clear, end, row + ahead,
            scale * LOG2_E, A, A_1, A_2, V, V_PAD, KEYS, True, PRECISION,
        )  # fmt: skip
        grad_q += q_first.to(tl.int64) * gq_stride + head * A
        put_rows(grad_q, row, gq_stride, 0, real, gq_1 * scale, A, A_1)
        if A_2:
            put_rows(grad_q, row, gq_stride, A_1, real, gq_2 * scale, A, A_2)


def attend_ragged_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor,
    cu_k: Tensor, max_q: int, max_k: int, scale: float,
    tiles: tuple[PrefillTiles, PrefillTiles] = (BACKWARD_KEYS, BACKWARD_QUERIES), *,
    grad_v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of ``q``, ``k`` and ``v`` for ``grad`` ``[T, H, V]``; see :func:`attend_ragged`.

    That of ``v`` goes to ``grad_v`` where it is given: ``[S, H, V]`` with any strides but 1 in the
    last axis.
    """
    grad = grad.contiguous()
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tokens, heads, width = grad.shape
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k)]
    if grad_v is None:
        grad_v = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    grads.append(grad_v)
    delta = torch.empty_like(lse)
    wide = q.dtype == torch.float32
    by_keys, by_queries = (WIDE, WIDE) if wide else tiles
    widths = widths_of(q, v)
    with on_device(q):
        _delta[(-(-tokens * heads // 32),)](
            out, grad, delta, tokens, heads, V=width, V_PAD=padded(width), ROWS=32, num_warps=4
        )
        _backward_keys[(-(-max_k // by_keys.keys), heads, cu_q.shape[0] - 1)](
            q, k, v, grad, lse, delta, grads[1], grads[2], cu_q, cu_k, scale, tokens,
            *strides(q, k, v), heads * width, *strides(grads[1], grads[2]),
            **widths, ROWS=by_keys.rows, KEYS=by_keys.keys,
            num_warps=by_keys.warps, num_stages=by_keys.stages,
        )  # fmt: skip
        _backward_queries[(-(-max_q // by_queries.rows), heads, cu_q.shape[0] - 1)](
            q, k, v, grad, lse, delta, grads[0], cu_q, cu_k, scale, tokens,
            *strides(q, k, v), heads * width, heads * q.shape[-1],
            **widths, ROWS=by_queries.rows, KEYS=by_queries.keys,
            num_warps=by_queries.warps, num_stages=by_queries.stages,
        )  # fmt: skip
    return grads[0], grads[1], grads[2]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int,
        max_k: int, scale: float,
    ) -> Tensor:  # fmt: skip
        out, lse = attend_ragged(q, k, v, cu_q, cu_k, max_q, scale)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)
        ctx.sizes = (max_q, max_k, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        own = attend_ragged_backward(grads[0], *ctx.saved_tensors, *ctx.sizes)
        return (*own, None, None, None, None, None)


@implements("attend_expanded", "triton", ("cuda",))
def attend_expanded(
    q: Tensor, k: Tensor, v: Tensor, q_lens: tuple[int, ...], kv_lens: tuple[int, ...], scale: float
) -> Tensor:
    """All sequences in one launch, with a gradient."""
    cu_q = bounds(q_lens, q.device)
    cu_k = cu_q if q_lens == kv_lens else bounds(kv_lens, q.device)
    longest = (max(q_lens, default=0), max(kv_lens, default=0))
    out: Tensor = _Attend.apply(q, k, v, cu_q, cu_k, *longest, scale)
    return out
