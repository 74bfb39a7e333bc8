"""The loss over a vocabulary together with its gradients, in Triton and cuBLAS.

Some rows' logits at a time are a product by cuBLAS. One program per row then takes the softmax's
sum in one walk over them and puts the logits' gradient in their place in another, which mostly
finds them in the L2 cache; two more products make of it the gradients of both operands.

Bytes: 4 per logit, read and written once. Arithmetic: 6 D per logit, all of it cuBLAS's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.registry import implements
from dsv2.kernels.triton.launch import on_device, padded
from dsv2.shapes import check

CHUNK = 8192
"""Rows whose logits exist at once: in bf16 those of a vocabulary of 102,400 are 1.7 GB. Fewer would
add up gradients of the whole matrix more often, which costs 8 bytes of each of its numbers."""


@triton.jit
def _loss_rows(
    logits, targets, weights, losses, V: tl.constexpr, COLUMNS: tl.constexpr, GRAD: tl.constexpr
):
    """One row's weighted loss; with GRAD its logits become their gradient."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * V
    target = tl.load(targets + row)
    weight = tl.load(weights + row)
    column = tl.arange(0, COLUMNS)
    # Each lane keeps a top and a mass of its own, so that the walk needs no sum across lanes.
    top = tl.full([COLUMNS], -1e30, dtype=tl.float32)
    mass = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(0, V, COLUMNS):
        inside = start + column < V
        x = tl.load(logits + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        mass = mass * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    whole = tl.max(top, 0)
    total = tl.sum(mass * tl.exp(top - whole), 0)
    level = whole + tl.log(total)
    own = tl.load(logits + target).to(tl.float32)
    tl.store(losses + row, (level - own) * weight)
    if GRAD:
        tl.debug_barrier()  # the target's logit is read before it is overwritten
        for start in range(0, V, COLUMNS):
            inside = start + column < V
            x = tl.load(logits + start + column, mask=inside, other=float("-inf")).to(tl.float32)
            grad = tl.exp(x - level) - tl.where(start + column == target, 1.0, 0.0)
            grad = (grad * weight).to(logits.dtype.element_ty)
            tl.store(logits + start + column, grad, mask=inside)


def loss_rows(logits: Tensor, targets: Tensor, weights: Tensor, *, gradient: bool) -> Tensor:
    """``[T]`` fp32: each row's negative log-likelihood times its weight.

    Args:
        logits: ``[T, vocabulary]`` contiguous; with ``gradient`` overwritten by their gradient.
        targets: ``[T]`` integer.
        weights: ``[T]`` fp32.
        gradient: whether it is wanted.
    """
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    with on_device(logits):
        _loss_rows[(rows,)](
            logits, targets, weights, losses, V=width, COLUMNS=min(8192, padded(width)),
            GRAD=gradient, num_warps=16,
        )  # fmt: skip
    return losses


@triton.jit
def _loss_scale(x, factor, out, numbers, COLUMNS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    own = tl.load(x + place, mask=place < numbers, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(out + place, own.to(out.dtype.element_ty), mask=place < numbers)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` times an fp32 scalar, which torch would round to ``x``'s dtype first."""
    out, columns = torch.empty_like(x), 4096
    with on_device(x):
        _loss_scale[(-(-x.numel() // columns),)](x, factor, out, x.numel(), COLUMNS=columns)
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are taken in the forward pass, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses, g_hidden, g_weight = [], [], None
        for start in range(0, hidden.shape[0], CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = F.linear(hidden[chunk], weight)  # chunk vocabulary
            losses.append(loss_rows(logits, targets[chunk], weights[chunk], gradient=wanted))
            if not wanted:
                continue
            g_hidden.append(logits @ weight)
            own = logits.T @ hidden[chunk]
            # One chunk alone needs no sum in fp32.
            g_weight = own if g_weight is None else g_weight.float().add_(own)
        if g_weight is not None:
            ctx.save_for_backward(torch.cat(g_hidden), g_weight.to(weight.dtype))
        return torch.cat(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        g_hidden, g_weight = ctx.saved_tensors
        return _scaled(g_hidden, grads[0]), _scaled(g_weight, grads[0]), None, None


@implements("linear_cross_entropy", "triton", ("cuda",))
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Some rows at a time, with the gradients computed in the forward pass."""
    check((hidden, "T D"), (weight, "W D"), (targets, "T"), (weights, "T"))
    if not hidden.shape[0]:
        return reference.linear_cross_entropy(hidden, weight, targets, weights)
    own = (part.contiguous() for part in (hidden, weight, targets, weights))
    total: Tensor = _LinearCrossEntropy.apply(*own)
    return total
