"""The likeliest token of each row of logits, read once, in Triton.

Programs of a row's parts find their best; one program a row takes the best of these. Bytes: 4 per
logit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.registry import implements
from dsv2.kernels.triton.launch import on_device, overlaps, padded, wait
from dsv2.shapes import check

_COLUMNS = 2048
"""Of a part: 50 programs for a row of the published vocabulary."""
_NONE = tl.constexpr(2**31 - 1)


@triton.jit
def _best_of_parts(
    logits, values, places, stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A part's largest number and its first place, or -1 where a number is not finite."""
    part = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    if EARLY:
        wait()
    x = tl.load(logits + row * stride + column, mask=inside, other=float("-inf"))
    finite = (x > float("-inf")) & (x < float("inf"))
    broken = tl.max((inside & (finite == 0)).to(tl.int32), 0)
    best = tl.max(x, 0)
    place = tl.min(tl.where(x == best, column, _NONE), 0)
    target = row * tl.num_programs(0) + part
    tl.store(values + target, best)
    tl.store(places + target, tl.where(broken > 0, -1, place))


@triton.jit
def _best_of_row(
    values, places, tokens, PARTS: tl.constexpr, PARTS_PAD: tl.constexpr, EARLY: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS_PAD)
    inside = part < PARTS
    if EARLY:
        wait()
    value = tl.load(values + row * PARTS + part, mask=inside, other=float("-inf"))
    place = tl.load(places + row * PARTS + part, mask=inside, other=_NONE)
    broken = tl.min(place, 0) < 0
    token = tl.min(tl.where(value == tl.max(value, 0), place, _NONE), 0)
    tl.store(tokens + row, tl.where(broken, -1, token).to(tl.int64))


@implements("greedy_tokens", "triton", ("cuda",))
def greedy_tokens(logits: Tensor) -> Tensor:
    """See :meth:`dsv2.kernels.ops.Ops.greedy_tokens`; two launches, which a CUDA graph may hold.

    Raises:
        ShapeError: the logits are no matrix.
    """
    sizes = check((logits, "L V"))
    rows, width = sizes["L"], sizes["V"]
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    parts = -(-width // _COLUMNS)
    values = torch.empty((rows, parts), dtype=torch.float32, device=logits.device)
    places = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    if rows:
        with on_device(logits):
            _best_of_parts[(parts, rows)](
                logits, values, places, logits.stride(0), WIDTH=width, COLUMNS=_COLUMNS,
                num_warps=4, **overlaps(logits),
            )  # fmt: skip
            _best_of_row[(rows,)](
                values, places, tokens, PARTS=parts, PARTS_PAD=padded(parts), num_warps=1,
                **overlaps(logits),
            )  # fmt: skip
    return tokens
