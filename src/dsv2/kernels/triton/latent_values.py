"""From the splits of a few tokens' attention to values: mixed, and multiplied with W^UV, at once.

Every program of a head mixes the splits anew, which is less than a launch where splits and tokens
are few (:data:`MOST_SPLITS`). Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.kernels.triton.mla_decode import Splits
from dsv2.kernels.triton.mla_mix import mix_splits

MOST_SPLITS = 64
"""Up to so many splits are worth mixing more than once."""
_COLUMNS, _GROUP = 32, 8
"""8, 16, 32 and 64 columns, and 4, 8 and 16 splits at once, were tried on an H200."""


@triton.jit
def _values(
    parts, lse, w_uv, out, part_stride, num_splits,
    H: tl.constexpr, C: tl.constexpr, V: tl.constexpr, C_PAD: tl.constexpr,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, MIXED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """``out[t, h] = w_uv[h] attention[t, h]`` of one token, one head and a few columns."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.arange(0, C_PAD)
    mask = (column < V)[:, None] & (c < C)[None, :]
    lines = (row % H * V + column)[:, None] * C
    weight = tl.load(w_uv + lines + c[None, :], mask=mask, other=0.0)
    if EARLY:
        wait()
    if MIXED:
        latent = mix_splits(parts, lse, row, c, part_stride, num_splits, C, C_PAD, GROUP, True)
        latent = latent.to(out.dtype.element_ty)
    else:
        latent = tl.load(parts + row * C + c, mask=c < C, other=0.0)
    found = tl.sum(weight.to(tl.float32) * latent.to(tl.float32)[None, :], 1)
    tl.store(out + row * V + column, found.to(out.dtype.element_ty), mask=column < V)


def split_values(splits: Splits, w_uv: Tensor) -> Tensor:
    """Values of the mixed attention.

    Args:
        splits: of :func:`dsv2.kernels.triton.mla_decode.decode_splits`.
        w_uv: ``[H, V, C]``.

    Returns:
        ``[T, H, V]`` of the dtype of ``w_uv``.
    """
    tokens, heads, latent = splits.parts.shape[-3:]
    width = w_uv.shape[1]
    out = torch.empty((tokens, heads, width), dtype=w_uv.dtype, device=w_uv.device)
    mixed = splits.lse is not None
    if tokens:
        with on_device(out):
            _values[(tokens * heads, -(-width // _COLUMNS))](
                splits.parts, splits.parts if splits.lse is None else splits.lse, w_uv, out,
                tokens * heads, splits.parts.shape[0] if mixed else 1,
                H=heads, C=latent, V=width, C_PAD=padded(latent), COLUMNS=_COLUMNS, GROUP=_GROUP,
                MIXED=mixed, num_warps=4, **overlaps(out),
            )  # fmt: skip
    return out
