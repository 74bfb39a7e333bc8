"""AdamW on fp32 weights with the rounded weights beside them, in one walk (Triton).

Bytes: of each weight 4 in fp32 and 8 of moments read and written, the gradient read and the model's
own weight written: 28 with gradient and weight in half precision. Scaling the gradient and rounding
the weights in walks of their own would take as much again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.ops import AdamWFactors
from dsv2.kernels.registry import implements
from dsv2.kernels.triton.launch import on_device

_NUMBERS = 2048
"""Numbers of a program."""


@triton.jit
def _adamw(
    weight, master, gradient, mean, square, scale, numbers, keep, rate, beta1, rest1, beta2, rest2,
    root, eps, NUMBERS: tl.constexpr,
):  # fmt: skip
    """``keep`` is what decay leaves; ``rate`` and ``root`` correct the moments' bias."""
    place = tl.program_id(0).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS)
    mask = place < numbers
    g = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32) * tl.load(scale)
    m = tl.load(mean + place, mask=mask, other=0.0)
    v = tl.load(square + place, mask=mask, other=0.0)
    w = tl.load(master + place, mask=mask, other=0.0)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    w = w * keep - rate * m / (tl.sqrt(v) * root + eps)
    tl.store(mean + place, m, mask=mask)
    tl.store(square + place, v, mask=mask)
    tl.store(master + place, w, mask=mask)
    tl.store(weight + place, w.to(weight.dtype.element_ty), mask=mask)


@implements("adamw", "triton", ("cuda",))
def adamw(
    weight: Tensor, master: Tensor, gradient: Tensor, mean: Tensor, square: Tensor,
    factors: AdamWFactors, step: int, scale: Tensor,
) -> None:  # fmt: skip
    """One launch; all tensors are contiguous but perhaps the gradient."""
    if not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous, has strides {weight.stride()}")
    numbers = weight.numel()
    with on_device(weight):
        _adamw[(-(-numbers // _NUMBERS),)](
            weight, master, gradient.contiguous(), mean, square, scale, numbers,
            1 - factors.rate * factors.decay, factors.rate / (1 - factors.beta1**step),
            factors.beta1, 1 - factors.beta1, factors.beta2, 1 - factors.beta2,
            (1 - factors.beta2**step) ** -0.5, factors.eps, NUMBERS=_NUMBERS, num_warps=8,
        )  # fmt: skip
