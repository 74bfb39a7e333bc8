"""Which kernel attends in captured steps: Triton's, or FlashInfer's where it is installed.

With 16 heads both read the latent at the speed of memory; with 128 products bind, and FlashInfer's
can be the faster one. So both are timed, once for each size of a step.
"""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from dsv2.kernels.flashinfer import DTYPES, LATENT, ROPE, MlaDecode, faster
from dsv2.kernels.registry import available
from dsv2.kernels.timing import kernel_seconds
from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.linear import VECTOR_TOKENS
from dsv2.kernels.triton.mla_decode import decode_latent
from dsv2.shapes import BLOCK_SIZE

logger = logging.getLogger(__name__)

_BUDGET = 0.02
"""Seconds to time a kernel for."""
_TABLES = 4
"""Block tables that take turns, so that little of what is read is in a cache."""

_chosen: dict[tuple[object, ...], str] = {}
"""The backend by device, heads, scale, dtype, rows and width."""
_broken: set[torch.device] = set()
"""Where FlashInfer has failed: it is not tried again."""


def planned_decode(
    cache: Tensor, rows: int, width: int, *, heads: int, scale: float, dtype: torch.dtype
) -> MlaDecode | None:
    """FlashInfer's decode for steps of one size where it is the faster one, else None.

    What is chosen is logged; that FlashInfer is installed but fails is a warning.

    Args:
        cache: ``[P, 64, C+R]`` of a layer; it is read.
        rows: sequences of a step.
        width: of its block table.
        heads: H.
        scale: of the scores.
        dtype: of the queries.
    """
    device = cache.device
    if not available("flashinfer") or device in _broken or not _fits(cache, rows, dtype):
        return None
    make = partial(MlaDecode, device, heads=heads, scale=scale, dtype=dtype)
    key = (device, heads, scale, dtype, rows, width)
    try:
        if key not in _chosen:
            seconds = _measure(make, cache, rows, width, heads, scale, dtype)
            _chosen[key] = faster(seconds)
            said = ", ".join(f"{name} {one * 1e6:.0f} us" for name, one in seconds.items())
            logger.info(
                "attention of %d sequences of up to %d tokens: %s (%s)",
                rows, width * BLOCK_SIZE, _chosen[key], said,
            )  # fmt: skip
        return make(graph=(rows, rows * width)) if _chosen[key] == "flashinfer" else None
    except torch.OutOfMemoryError:
        logger.warning("no memory for FlashInfer beside the model; Triton's kernel attends")
    except Exception:
        # It compiles on the user's machine, with the user's tools: whatever goes wrong there is
        # said, and costs speed alone.
        _broken.add(device)
        logger.warning("FlashInfer is installed but fails; Triton's kernel attends", exc_info=True)
    return None


def _fits(cache: Tensor, rows: int, dtype: torch.dtype) -> bool:
    """Whether FlashInfer has a kernel for it. Few tokens have kernels here that do more at once."""
    return (
        rows > VECTOR_TOKENS
        and dtype in DTYPES
        and cache.dtype == dtype
        and cache.shape[-1] == LATENT + ROPE
        and cache.numel() < 1 << 32  # it counts numbers of a cache in 32 bits
    )


def _measure(
    make: partial[MlaDecode], cache: Tensor, rows: int, width: int, heads: int, scale: float,
    dtype: torch.dtype,
) -> dict[str, float]:  # fmt: skip
    """Seconds of a call by backend, on blocks that lie anywhere in the cache."""
    device = cache.device
    q_latent = torch.zeros(rows, heads, LATENT, dtype=dtype, device=device)
    q_rope = torch.zeros(rows, heads, ROPE, dtype=dtype, device=device)
    cu_q = bounds((1,) * rows, device)
    # Three quarters of what there is room for: about the mean.
    length = max(1, width * BLOCK_SIZE * 3 // 4)
    kv_len = torch.full((rows,), length, dtype=torch.int32)
    on_device = kv_len.to(device)
    ours, theirs = [], []
    for seed in range(_TABLES):
        table = _table(rows, width, cache.shape[0], seed)
        plan = make()
        plan.plan(table, kv_len)
        theirs.append(partial(plan.run, q_latent, q_rope, cache))
        own = table.to(device)
        ours.append(partial(decode_latent, q_latent, q_rope, cache, own, on_device, cu_q, 1, scale))
    return {
        name: kernel_seconds(calls, device, _BUDGET)
        for name, calls in (("triton", ours), ("flashinfer", theirs))
    }


def _table(rows: int, width: int, blocks: int, seed: int) -> Tensor:
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    return order.repeat(-(-rows * width // blocks))[: rows * width].view(rows, width)
