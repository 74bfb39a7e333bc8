"""The norm before a layer: the fp32 residual stream to the activations' dtype, in Triton.

Bytes: 4 D read and the output written per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait


@triton.jit
def _norm(x, weight, out, eps, D: tl.constexpr, D_PAD: tl.constexpr, EARLY: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, D_PAD)
    inside = column < D
    scale = tl.load(weight + column, mask=inside, other=0.0)
    if EARLY:
        wait()
    row = tl.load(x + token * D + column, mask=inside, other=0.0).to(tl.float32)
    row = row / tl.sqrt(tl.sum(row * row, 0) / D + eps)
    tl.store(out + token * D + column, (row * scale).to(out.dtype.element_ty), mask=inside)


def norm_rows(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm of ``x`` ``[T, D]`` by ``weight`` ``[D]`` fp32, computed in fp32, as ``dtype``."""
    tokens, width = x.shape
    out = torch.empty((tokens, width), dtype=dtype, device=x.device)
    if tokens:
        with on_device(x):
            _norm[(tokens,)](
                x, weight, out, eps, D=width, D_PAD=padded(width), num_warps=4, **overlaps(x)
            )
    return out
