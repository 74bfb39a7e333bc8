"""Products with a matrix of weights: one row from memory's speed, many from the matrix units.

A single token reads every weight once: programs of a few output columns each keep the memory busy
where a general product would not. Several tokens go to cuBLAS, whose order of sums depends on their
number; where results may not, they take the grouped product of :mod:`grouped_gemm` with fixed
tiles, each matrix of a stack as an expert of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.formats import QuantTensor, Weight
from dsv2.kernels.triton.grouped_gemm import FIXED_ROWS, expert_tiles, grouped_product
from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.kernels.triton.quant_product import quant_product
from dsv2.kernels.triton.quant_vector import vector_product

VECTOR_TOKENS = 2
"""Up to this many tokens take the vector product."""
_CUT = (2, 4, 2048)
"""Output columns of a program, its warps, and inputs at a time: the best of 29 on an H200."""
_NORMED_CUT = (8, 4, 1024)
"""Likewise where each program norms the token, which many are too many to do, and columns are many.
"""


@triton.jit
def _normed(a, root, gain, normed, where, mask, KEEP: tl.constexpr):
    rounded = (a / root * gain).to(normed.dtype.element_ty)
    if KEEP:
        if tl.program_id(0) == 0:
            tl.store(normed + where, rounded, mask=mask)
    return rounded.to(tl.float32)


@triton.jit
def _vector(
    x, weight, out, norm, normed, x_stride, eps, D: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr,
    KEEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``out[t] (+)= weight x[t]`` of one token and a few columns, summed in fp32.

    NORM takes RMSNorm of ``x`` in place of ``x``, rounded to the dtype of ``normed``, where KEEP
    leaves it. Every program norms the token anew, which is less than a launch.
    """
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    lines = column.to(tl.int64)[:, None] * D
    real = column < WIDTH
    depth = tl.arange(0, DEPTH)
    # Weights are nobody's result: they are on their way while the kernel before ends.
    b = tl.load(
        weight + lines + depth[None, :], mask=real[:, None] & (depth < D)[None, :], other=0.0
    )
    if NORM:
        gain = tl.load(norm + depth, mask=depth < D, other=0.0)
    if EARLY:
        wait()
    a = tl.load(x + token * x_stride + depth, mask=depth < D, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(a * a, 0)
        for start in range(DEPTH, D, DEPTH):
            further = start + depth
            c = tl.load(x + token * x_stride + further, mask=further < D, other=0.0).to(tl.float32)
            square += tl.sum(c * c, 0)
        root = tl.sqrt(square / D + eps)
        a = _normed(a, root, gain, normed, token * D + depth, depth < D, KEEP)
    acc = tl.sum(b.to(tl.float32) * a[None, :], 1)
    for start in range(DEPTH, D, DEPTH):
        further = start + depth
        a = tl.load(x + token * x_stride + further, mask=further < D, other=0.0).to(tl.float32)
        if NORM:
            gain = tl.load(norm + further, mask=further < D, other=0.0)
            a = _normed(a, root, gain, normed, token * D + further, further < D, KEEP)
        mask = real[:, None] & (further < D)[None, :]
        b = tl.load(weight + lines + further[None, :], mask=mask, other=0.0)
        acc += tl.sum(b.to(tl.float32) * a[None, :], 1)
    target = out + token * WIDTH + column
    if ADD:
        acc += tl.load(target, mask=real, other=0.0)
    tl.store(target, acc.to(out.dtype.element_ty), mask=real)


def _vector_product(
    x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False, norm: Tensor | None = None,
    eps: float = 0.0, normed: Tensor | None = None,
) -> None:  # fmt: skip
    width, depth = weight.shape
    columns, warps, most = _NORMED_CUT if norm is not None and width >= 1024 else _CUT
    with on_device(x):
        _vector[(-(-width // columns), x.shape[0])](
            x, weight, out, x if norm is None else norm, out if normed is None else normed,
            x.stride(0), eps, D=depth, WIDTH=width, COLUMNS=columns,
            DEPTH=min(most, padded(depth)), ADD=add, NORM=norm is not None,
            KEEP=normed is not None, num_warps=warps, **overlaps(x),
        )  # fmt: skip


def normed_vector_product(
    x: Tensor, norm: Tensor, eps: float, weight: Tensor, normed: Tensor | None = None
) -> Tensor:
    """The product of at most :data:`VECTOR_TOKENS` tokens' RMSNorm with a matrix, in one launch.

    Args:
        x: ``[T, D]`` fp32.
        norm: ``[D]`` fp32.
        eps: of the norm.
        weight: ``[F, D]``.
        normed: ``[T, D]``, takes the norm's result; its dtype is what that is rounded to, and that
            of ``weight`` where there is none.

    Returns:
        ``[T, F]`` of the dtype of ``weight``.
    """
    out = torch.empty((x.shape[0], weight.shape[0]), dtype=weight.dtype, device=x.device)
    _vector_product(x, weight, out, norm=norm, eps=eps, normed=normed)
    return out


def stacked_product(
    x: Tensor, weight: Tensor, gate: Tensor | None = None, *, deterministic: bool = False
) -> Tensor:
    """``x[e] weight[e]^T``, or silu of ``x[e] gate[e]^T`` times it.

    ``x`` ``[E, T, D]`` contiguous, ``weight`` and ``gate`` ``[E, F, D]`` -> ``[E, T, F]``.
    """
    count, rows, depth = x.shape
    if not rows:
        return x.new_empty(count, 0, weight.shape[1])
    tiles = expert_tiles((FIXED_ROWS if deterministic else rows) * count, count, x.dtype)
    own = tiles.down if gate is None else tiles.gate_up
    out = grouped_product(x.view(count * rows, depth), weight, rows, own, gate=gate)
    return out.view(count, rows, -1)


def product(x: Tensor, weight: Weight, *, deterministic: bool = False) -> Tensor:
    """``x weight^T``: ``[T, D]`` and ``[F, D]`` -> ``[T, F]`` of ``x``'s dtype."""
    if not isinstance(weight, Tensor):
        if isinstance(weight, QuantTensor) and _is_few(x, deterministic):
            return vector_product(x, weight)
        return quant_product(x, weight, deterministic=deterministic)
    if deterministic:
        stack = x.contiguous().unsqueeze(0)
        return stacked_product(stack, weight.unsqueeze(0), deterministic=True)[0]
    if _is_few(x, deterministic):
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
        _vector_product(x, weight, out)
        return out
    return F.linear(x, weight)


def _is_few(x: Tensor, deterministic: bool) -> bool:
    return 0 < x.shape[0] <= VECTOR_TOKENS and not deterministic


def add_product(into: Tensor, x: Tensor, weight: Weight, *, deterministic: bool = False) -> None:
    """``into += x weight^T``, ``into`` ``[T, F]`` fp32."""
    if not _is_few(x, deterministic) or not isinstance(weight, Tensor | QuantTensor):
        into += product(x, weight, deterministic=deterministic)
    elif isinstance(weight, Tensor):
        _vector_product(x, weight, into, add=True)
    else:
        vector_product(x, weight, into=into)


def wide_product(x: Tensor, weight: Weight, *, deterministic: bool = False) -> Tensor:
    """``x weight^T`` in fp32: logits of a vocabulary, or, with ``weight`` in fp32, of a router."""
    if not isinstance(weight, Tensor):
        if isinstance(weight, QuantTensor) and _is_few(x, deterministic):
            return vector_product(x, weight, dtype=torch.float32)
        return quant_product(x, weight, dtype=torch.float32, deterministic=deterministic)
    if _is_few(x, deterministic):
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=torch.float32, device=x.device)
        _vector_product(x, weight, out)
        return out
    return product(x.to(weight.dtype), weight, deterministic=deterministic).float()


def gated_product(x: Tensor, up: Weight, gate: Weight, *, deterministic: bool = False) -> Tensor:
    """silu of ``x gate^T`` times ``x up^T``: ``[T, D]`` and ``[F, D]`` -> ``[T, F]``.

    Both weights have one format.
    """
    if isinstance(up, Tensor) and isinstance(gate, Tensor):
        stack = x.unsqueeze(0)
        return stacked_product(
            stack, up.unsqueeze(0), gate.unsqueeze(0), deterministic=deterministic
        )[0]
    assert not isinstance(up, Tensor) and not isinstance(gate, Tensor)
    return quant_product(x, up, gate=gate, deterministic=deterministic)
