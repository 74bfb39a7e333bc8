"""Which kernel attends in captured steps: Triton's, or FlashInfer's where it is installed.

With 16 heads both read the latent at the speed of memory; with 128 products bind, and FlashInfer's
can be the faster one. So both are timed on the shape that is to be captured, once.
"""

from __future__ import annotations

import logging
from functools import cache as once

import torch
from torch import Tensor

from dsv2.kernels.flashinfer import DTYPES, LATENT, ROPE, MlaDecode, faster
from dsv2.kernels.registry import available
from dsv2.kernels.timing import kernel_seconds
from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.mla_decode import decode_latent
from dsv2.shapes import BLOCK_SIZE

logger = logging.getLogger(__name__)

_BUDGET = 0.02
"""Seconds to time a kernel for."""


def planned_decode(
    cache: Tensor, rows: int, width: int, *, heads: int, scale: float, dtype: torch.dtype
) -> MlaDecode | None:
    """FlashInfer's decode for steps of one shape where it is the faster one, else None.

    What is chosen is logged; that FlashInfer is installed but fails is a warning.

    Args:
        cache: ``[P, 64, C+R]`` of a layer; it is read.
        rows: sequences of a step.
        width: of its block table.
        heads: H.
        scale: of the scores.
        dtype: of the queries.
    """
    if cache.device.type != "cuda" or not available("flashinfer"):
        return None
    if dtype not in DTYPES or cache.dtype != dtype or cache.shape[-1] != LATENT + ROPE:
        return None
    if not _runs(cache.device, heads, scale, dtype):
        return None
    decode = MlaDecode(
        cache.device, heads=heads, scale=scale, dtype=dtype, graph=(rows, rows * width)
    )
    seconds = _measure(decode, cache, rows, width, heads, scale, dtype)
    chosen = faster(seconds)
    logger.info(
        "attention of %d sequences of up to %d tokens: %s (%s)", rows, width * BLOCK_SIZE, chosen,
        ", ".join(f"{name} {one * 1e6:.0f} us" for name, one in seconds.items()),
    )  # fmt: skip
    return decode if chosen == "flashinfer" else None


@once
def _runs(device: torch.device, heads: int, scale: float, dtype: torch.dtype) -> bool:
    """Whether FlashInfer's kernel can be had; the first time it compiles, for about a minute."""
    logger.info("FlashInfer is installed: its kernel is loaded or compiled")
    try:
        decode = MlaDecode(device, heads=heads, scale=scale, dtype=dtype)
        decode.plan(*_places(1, 1, 1, torch.device("cpu")))
        queries = torch.zeros(1, heads, LATENT + ROPE, dtype=dtype, device=device)
        cache = torch.zeros(1, BLOCK_SIZE, LATENT + ROPE, dtype=dtype, device=device)
        decode.run(queries[..., :LATENT], queries[..., LATENT:], cache)
        torch.cuda.synchronize(device)
    except Exception:
        # It compiles on the user's machine, with the user's tools: whatever goes wrong there is
        # said, and costs speed alone.
        logger.warning(
            "FlashInfer is installed but its kernel cannot be had; Triton's attends", exc_info=True
        )
        return False
    return True


def _measure(
    decode: MlaDecode, cache: Tensor, rows: int, width: int, heads: int, scale: float,
    dtype: torch.dtype,
) -> dict[str, float]:  # fmt: skip
    """Seconds of a call by backend, on blocks that lie anywhere in the cache."""
    device = cache.device
    table, kv_len = _places(rows, width, cache.shape[0], device)
    decode.plan(table, kv_len)
    q_latent = torch.zeros(rows, heads, LATENT, dtype=dtype, device=device)
    q_rope = torch.zeros(rows, heads, ROPE, dtype=dtype, device=device)
    cu_q = bounds((1,) * rows, device)
    calls = {
        "triton": lambda: decode_latent(q_latent, q_rope, cache, table, kv_len, cu_q, 1, scale),
        "flashinfer": lambda: decode.run(q_latent, q_rope, cache),
    }
    return {name: kernel_seconds([call], device, _BUDGET) for name, call in calls.items()}


def _places(rows: int, width: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A block table and lengths of three quarters of what it has room for, about the mean."""
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    repeats = -(-rows * width // blocks)
    table = order.repeat(repeats)[: rows * width].view(rows, width)
    length = max(1, width * BLOCK_SIZE * 3 // 4)
    return table.to(device), torch.full((rows,), length, dtype=torch.int32, device=device)
