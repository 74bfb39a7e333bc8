"""Expanded attention of whole sequences with its gradient, in Triton (equations 9-19).

Between the projections, which are cuBLAS's, stand one launch that rotates the queries where they
lie and joins keys, the attention of :mod:`mla_prefill`, and in the backward pass one that takes
both apart again. Values are read, and their gradient is written, beside the keys of their product.

Bytes besides attention: 2 H (2N + 3R) per token in half precision, forward and backward each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.composites import compose_attention
from dsv2.kernels.ops import AttentionShape, AttentionWeights
from dsv2.kernels.registry import implements
from dsv2.kernels.triton.first_products import _turn
from dsv2.kernels.triton.launch import bounds, on_device, padded
from dsv2.kernels.triton.mla_prefill import attend_ragged
from dsv2.kernels.triton.mla_prefill_grad import attend_ragged_backward
from dsv2.kernels.triton.rms_norm import rms_norm
from dsv2.ragged import RaggedBatch

implements("rope", "triton", ("cuda",))(reference.rope)
implements("write_latent", "triton", ("cuda",))(reference.write_latent)


@triton.jit
def _angles(cos, sin, token, R: tl.constexpr, R_PAD: tl.constexpr):
    pair = tl.arange(0, R_PAD // 2)
    real = pair < R // 2
    c = tl.load(cos + token * (R // 2) + pair, mask=real, other=0.0)
    s = tl.load(sin + token * (R // 2) + pair, mask=real, other=0.0)
    return c, s


@triton.jit
def _turned(x, c, s, LINES: tl.constexpr, R_PAD: tl.constexpr):
    """``x`` ``[LINES, R_PAD]`` with its neighbouring pairs rotated, in fp32."""
    pairs = tl.reshape(x.to(tl.float32), [LINES, R_PAD // 2, 2])
    even, odd = tl.split(pairs)
    even, odd = _turn(even, odd, c[None, :], s[None, :])
    return tl.reshape(tl.join(even, odd), [LINES, R_PAD])


@triton.jit
def _turn_heads(
    q, c, s, token, H: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    H_PAD: tl.constexpr, R_PAD: tl.constexpr,
):  # fmt: skip
    """Rotate the last R numbers of each head of a token in place."""
    head = tl.arange(0, H_PAD)
    column = tl.arange(0, R_PAD)
    mask = (head < H)[:, None] & (column < R)[None, :]
    at = q + (token * H + head[:, None]) * (N + R) + N + column[None, :]
    turned = _turned(tl.load(at, mask=mask, other=0.0), c, s, H_PAD, R_PAD)
    tl.store(at, turned.to(q.dtype.element_ty), mask=mask)


@triton.jit
def _join_heads(
    q, kv, k_rope, cos, sin, k, rope_stride,
    H: tl.constexpr, N: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    H_PAD: tl.constexpr, N_PAD: tl.constexpr, R_PAD: tl.constexpr,
):  # fmt: skip
    """A token's queries rotated in place, and its keys: each head's own part, the shared turned."""
    token = tl.program_id(0).to(tl.int64)
    c, s = _angles(cos, sin, token, R, R_PAD)
    _turn_heads(q, c, s, token, H, N, R, H_PAD, R_PAD)
    head = tl.arange(0, H_PAD)
    column = tl.arange(0, N_PAD)
    mask = (head < H)[:, None] & (column < N)[None, :]
    own = tl.load(kv + (token * H + head[:, None]) * (N + V) + column[None, :], mask=mask)
    place = k + (token * H + head[:, None]) * (N + R)
    tl.store(place + column[None, :], own, mask=mask)
    column = tl.arange(0, R_PAD)
    # The same numbers for every head: read, and turned, once for each.
    mask = (head < H)[:, None] & (column < R)[None, :]
    shared = k_rope + token * rope_stride + column[None, :] + head[:, None] * 0
    turned = _turned(tl.load(shared, mask=mask, other=0.0), c, s, H_PAD, R_PAD)
    tl.store(place + N + column[None, :], turned.to(k.dtype.element_ty), mask=mask)


@triton.jit
def _part_heads(
    grad_q, grad_k, cos, sin, grad_kv, grad_rope,
    H: tl.constexpr, N: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    H_PAD: tl.constexpr, N_PAD: tl.constexpr, R_PAD: tl.constexpr,
):  # fmt: skip
    """A token's gradients of queries turned back in place, and those of the joined keys' parts."""
    token = tl.program_id(0).to(tl.int64)
    c, s = _angles(cos, sin, token, R, R_PAD)
    _turn_heads(grad_q, c, -s, token, H, N, R, H_PAD, R_PAD)
    head = tl.arange(0, H_PAD)
    column = tl.arange(0, N_PAD)
    mask = (head < H)[:, None] & (column < N)[None, :]
    place = grad_k + (token * H + head[:, None]) * (N + R)
    own = tl.load(place + column[None, :], mask=mask)
    tl.store(grad_kv + (token * H + head[:, None]) * (N + V) + column[None, :], own, mask=mask)
    column = tl.arange(0, R_PAD)
    mask = (head < H)[:, None] & (column < R)[None, :]
    heads = tl.load(place + N + column[None, :], mask=mask, other=0.0).to(tl.float32)
    turned = tl.sum(_turned(heads, c, -s, H_PAD, R_PAD), 0)
    where = grad_rope + token * R + column
    tl.store(where, turned.to(grad_rope.dtype.element_ty), mask=column < R)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, cu: Tensor,
        longest: int, shape: AttentionShape,
    ) -> Tensor:  # fmt: skip
        tokens, heads = q.shape[:2]
        k = torch.empty_like(q)
        sizes: dict[str, Any] = {
            "H": heads, "N": shape.nope, "R": shape.rope, "V": shape.value, "H_PAD": padded(heads),
            "N_PAD": padded(shape.nope), "R_PAD": padded(shape.rope),
        }  # fmt: skip
        with on_device(q):
            _join_heads[(tokens,)](q, kv, k_rope, cos, sin, k, k_rope.stride(0), **sizes)
        v = kv[..., shape.nope :]
        out, lse = attend_ragged(q, k, v, cu, cu, longest, shape.scale)
        ctx.save_for_backward(q, k, kv, out, lse, cos, sin, cu)
        ctx.rest = (longest, shape, sizes)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, kv, out, lse, cos, sin, cu = ctx.saved_tensors
        longest, shape, sizes = ctx.rest
        v, grad_kv = kv[..., shape.nope :], torch.empty_like(kv)
        grad_q, grad_k, _ = attend_ragged_backward(
            grads[0], q, k, v, out, lse, cu, cu, longest, longest, shape.scale,
            grad_v=grad_kv[..., shape.nope :],
        )  # fmt: skip
        grad_rope = torch.empty((q.shape[0], shape.rope), dtype=q.dtype, device=q.device)
        with on_device(q):
            _part_heads[(q.shape[0],)](grad_q, grad_k, cos, sin, grad_kv, grad_rope, **sizes)
        return grad_q, grad_kv, grad_rope, None, None, None, None, None


def attend_sequences(
    q: Tensor, kv: Tensor, k_rope: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...],
    shape: AttentionShape,
) -> Tensor:  # fmt: skip
    """Rotation and causal attention within each sequence, with a gradient.

    Args:
        q: ``[T, H, N+R]`` contiguous, not rotated yet; it is OVERWRITTEN by the rotated queries.
        kv: ``[T, H, N+V]`` contiguous, keys' own parts and values.
        k_rope: ``[T, R]``, the keys' shared part, not rotated yet.
        cos: ``[T, R/2]`` fp32.
        sin: likewise.
        lengths: tokens of each sequence.
        shape: sizes and scale.

    Returns:
        ``[T, H, V]``.
    """
    cu = bounds(lengths, q.device)
    out: Tensor = _Attend.apply(q, kv, k_rope, cos, sin, cu, max(lengths), shape)
    return out


@implements("attention_block", "triton", ("cuda",))
def attention_block(
    x: Tensor, weights: AttentionWeights, shape: AttentionShape, cos: Tensor, sin: Tensor,
    batch: RaggedBatch, cache: Tensor | None,
) -> Tensor:  # fmt: skip
    """Whole sequences by :func:`attend_sequences`; with a cache the composition of this backend."""
    if cache is not None or shape.form == "absorbed" or not x.shape[0]:
        return compose_attention(x, weights, shape, cos, sin, batch, cache, "triton")
    if weights.wq is not None:
        q = F.linear(x, weights.wq)
    else:
        assert weights.wq_a is not None and weights.q_norm is not None and weights.wq_b is not None
        q = F.linear(rms_norm(F.linear(x, weights.wq_a), weights.q_norm, shape.eps), weights.wq_b)
    c_kv, k_rope = F.linear(x, weights.wkv_a).split((weights.kv_norm.shape[0], shape.rope), -1)
    kv = F.linear(rms_norm(c_kv, weights.kv_norm, shape.eps), weights.wkv_b)
    q, kv = (part.unflatten(-1, (shape.heads, -1)) for part in (q, kv))  # T H .
    out = attend_sequences(q, kv, k_rope, cos, sin, batch.query_lengths(), shape)
    return F.linear(out.flatten(1), weights.wo)  # T D
