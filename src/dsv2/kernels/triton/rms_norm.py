"""RMSNorm with its gradient, in Triton.

With r = 1 / sqrt(mean(x^2) + eps) and n = x r, the gradients for ``grad`` g are

    dx = r (g w - n mean(g w n)),    dw = sum over tokens of g n.

The forward pass keeps r. In the backward pass each program sums dw over rows of its own, in their
order, and torch adds up the programs' sums.

Bytes: 4 D per token forward, 6 D backward in half precision.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.registry import implements
from dsv2.kernels.triton.launch import multiprocessors, on_device, padded

_PROGRAMS = 4
"""Programs of the backward pass per multiprocessor."""


@triton.jit
def _norm_forward(
    x, weight, out, scales, eps, stride, D: tl.constexpr, D_PAD: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, D_PAD)
    inside = column < D
    row = tl.load(x + token * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(row * row, 0) / D + eps)
    tl.store(scales + token, scale)
    kind = out.dtype.element_ty
    # The cast comes before the weight, as published.
    row = (row * scale).to(kind).to(tl.float32)
    row *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + column, row.to(kind), mask=inside)


@triton.jit
def _norm_backward(
    x, weight, grad, scales, grad_x, sums, tokens, per, stride,
    D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Rows ``per`` at a time, one after another; ``sums`` ``[programs, D]`` fp32."""
    program = tl.program_id(0)
    column = tl.arange(0, D_PAD)
    inside = column < D
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([D_PAD], dtype=tl.float32)
    first = program.to(tl.int64) * per
    for step in range(0, tl.minimum(per, tokens - program * per)):
        row = first + step
        scale = tl.load(scales + row)
        n = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32) * scale
        g = tl.load(grad + row * D + column, mask=inside, other=0.0).to(tl.float32)
        total += g * n
        g *= w
        g = scale * (g - n * (tl.sum(g * n, 0) / D))
        tl.store(grad_x + row * D + column, g.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(sums + program * D + column, total, mask=inside)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        tokens, width = x.shape
        out = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
        scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
        with on_device(x):
            _norm_forward[(tokens,)](
                x, weight, out, scales, eps, x.stride(0), D=width, D_PAD=padded(width), num_warps=4
            )
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        tokens, width = x.shape
        grad_x = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
        per = -(-tokens // (_PROGRAMS * multiprocessors(x.device)))
        programs = -(-tokens // per)
        sums = torch.empty((programs, width), dtype=torch.float32, device=x.device)
        with on_device(x):
            _norm_backward[(programs,)](
                x, weight, grads[0].contiguous(), scales, grad_x, sums, tokens, per, x.stride(0),
                D=width, D_PAD=padded(width), num_warps=4,
            )  # fmt: skip
        return grad_x, sums.sum(0).to(weight.dtype), None


@implements("rms_norm", "triton", ("cuda",))
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """One launch forward and one backward; rows may lie at any stride."""
    rows = x.reshape(-1, x.shape[-1])
    if not rows.numel():
        return x * weight
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out: Tensor = _RmsNorm.apply(rows, weight.contiguous(), eps)
    return out.view(x.shape)
