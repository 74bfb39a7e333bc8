"""From the first projections to what attention takes, in one launch (equations 9 and 13-15).

For each token: norm of the latent, rotation of the key's and the queries' rotated parts, and the
write into the paged cache. For a few generated tokens the queries are absorbed by programs of the
same launch. Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait


@triton.jit
def _turn(even, odd, cos, sin):
    """Neighbouring pairs, as the weights are stored."""
    return even * cos - odd * sin, even * sin + odd * cos


_COLUMNS = 32
"""Columns of the latent of a program that absorbs a query."""


@triton.jit
def _absorb(
    q, w_uk, q_latent, token, part, q_stride,
    H: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr, N_PAD: tl.constexpr,
    COLUMNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``q_latent[t, h] = w_uk[h] q[t, h]`` of one token, one head and a few columns."""
    head = part // tl.cdiv(C, COLUMNS)
    column = part % tl.cdiv(C, COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    n = tl.arange(0, N_PAD)
    mask = (column < C)[:, None] & (n < N)[None, :]
    weight = tl.load(w_uk + (head * C + column)[:, None] * N + n[None, :], mask=mask, other=0.0)
    if EARLY:
        wait()
    own = tl.load(q + token * q_stride + head * (N + R) + n, mask=n < N, other=0.0)
    found = tl.sum(weight.to(tl.float32) * own.to(tl.float32)[None, :], 1)
    target = q_latent + (token * H + head) * C + column
    tl.store(target, found.to(q_latent.dtype.element_ty), mask=column < C)


@triton.jit
def _prepare(
    q, kv, kv_norm, cos, sin, slots, cache, q_rope, w_uk, q_latent, q_stride, kv_stride, eps,
    H: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    H_PAD: tl.constexpr, HALF: tl.constexpr, C_PAD: tl.constexpr, N_PAD: tl.constexpr,
    ABSORBED: tl.constexpr, COLUMNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if ABSORBED:
        if tl.program_id(1) > 0:
            part = tl.program_id(1) - 1
            _absorb(
                q, w_uk, q_latent, token, part, q_stride, H, N, R, C, N_PAD, COLUMNS, EARLY
            )  # fmt: skip
        else:
            _write(
                q, kv, kv_norm, cos, sin, slots, cache, q_rope, token, q_stride, kv_stride, eps,
                H, N, R, C, H_PAD, HALF, C_PAD, EARLY,
            )  # fmt: skip
    else:
        _write(
            q, kv, kv_norm, cos, sin, slots, cache, q_rope, token, q_stride, kv_stride, eps,
            H, N, R, C, H_PAD, HALF, C_PAD, EARLY,
        )  # fmt: skip


@triton.jit
def _write(
    q, kv, kv_norm, cos, sin, slots, cache, q_rope, token, q_stride, kv_stride, eps,
    H: tl.constexpr, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
    H_PAD: tl.constexpr, HALF: tl.constexpr, C_PAD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        wait()
    slot = tl.load(slots + token).to(tl.int64)
    pair = tl.arange(0, HALF)
    real = pair < R // 2
    c = tl.load(cos + token * (R // 2) + pair, mask=real, other=0.0)
    s = tl.load(sin + token * (R // 2) + pair, mask=real, other=0.0)

    column = tl.arange(0, C_PAD)
    inside = column < C
    latent = tl.load(kv + token * kv_stride + column, mask=inside, other=0.0).to(tl.float32)
    latent = latent / tl.sqrt(tl.sum(latent * latent, 0) / C + eps)
    latent = latent * tl.load(kv_norm + column, mask=inside, other=0.0)
    place = cache + slot * (C + R)
    tl.store(place + column, latent.to(cache.dtype.element_ty), mask=inside)

    key = kv + token * kv_stride + C + 2 * pair
    even = tl.load(key, mask=real, other=0.0).to(tl.float32)
    odd = tl.load(key + 1, mask=real, other=0.0).to(tl.float32)
    even, odd = _turn(even, odd, c, s)
    tl.store(place + C + 2 * pair, even.to(cache.dtype.element_ty), mask=real)
    tl.store(place + C + 2 * pair + 1, odd.to(cache.dtype.element_ty), mask=real)

    head = tl.arange(0, H_PAD)
    mask = (head < H)[:, None] & real[None, :]
    query = q + token * q_stride + head[:, None] * (N + R) + N + 2 * pair[None, :]
    even = tl.load(query, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(query + 1, mask=mask, other=0.0).to(tl.float32)
    even, odd = _turn(even, odd, c[None, :], s[None, :])
    target = q_rope + (token * H + head[:, None]) * R + 2 * pair[None, :]
    tl.store(target, even.to(q_rope.dtype.element_ty), mask=mask)
    tl.store(target + 1, odd.to(q_rope.dtype.element_ty), mask=mask)


def write_and_rotate(
    q: Tensor, kv: Tensor, kv_norm: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, cache: Tensor,
    heads: int, nope: int, rope: int, eps: float, w_uk: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Write each token's latent and rotated key to the cache; return what queries have of it.

    Args:
        q: ``[T, H(N+R)]``, rows at any stride.
        kv: ``[T, C+R]``, W^DKV's and W^KR's products, rows at any stride.
        kv_norm: ``[C]`` fp32.
        cos: ``[T, R/2]`` fp32, and ``sin`` alike.
        sin: see ``cos``.
        slots: ``[T]`` int32.
        cache: ``[P, 64, C+R]`` of a floating dtype.
        heads: H.
        nope: N.
        rope: R.
        eps: of the latent's norm.
        w_uk: ``[H, C, N]``, W^UK transposed, to absorb it into the queries; meant for few tokens,
            since every token reads all of it.

    Returns:
        The queries' rotated parts ``[T, H, R]``, and with ``w_uk`` the absorbed ones
        ``[T, H, C]``, both of the queries' dtype.
    """
    tokens, latent = q.shape[0], kv_norm.shape[0]
    q_rope = torch.empty((tokens, heads, rope), dtype=q.dtype, device=q.device)
    q_latent, parts = None, 1
    if w_uk is not None:
        q_latent = torch.empty((tokens, heads, latent), dtype=q.dtype, device=q.device)
        parts += heads * -(-latent // _COLUMNS)
    if tokens:
        with on_device(q):
            _prepare[(tokens, parts)](
                q, kv, kv_norm, cos, sin, slots, cache, q_rope, q if w_uk is None else w_uk,
                q_rope if q_latent is None else q_latent, q.stride(0), kv.stride(0), eps,
                H=heads, N=nope, R=rope, C=latent, H_PAD=padded(heads), HALF=padded(rope // 2),
                C_PAD=padded(latent), N_PAD=padded(nope), ABSORBED=w_uk is not None,
                COLUMNS=_COLUMNS, num_warps=4, **overlaps(q),
            )  # fmt: skip
    return q_rope, q_latent
