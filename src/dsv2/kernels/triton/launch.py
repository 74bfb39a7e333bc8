"""What every launch needs: padded widths, the device in use, precision of products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import accumulate

import torch
import triton
from torch import Tensor
from triton.language.extra import cuda as tl_cuda

LOG2_E = 1.4426950408889634
"""The exponent is taken to base 2, which the hardware has; scores are scaled by this."""
_LEAST = 16
"""The least side of a matrix product in Triton."""


def padded(width: int) -> int:
    """The power of two that holds ``width`` columns, at least 16."""
    return max(_LEAST, 1 << (width - 1).bit_length())


def precision(dtype: torch.dtype) -> str:
    """How products are taken: fp32 as fp32, never rounded to TF32."""
    return "ieee" if dtype == torch.float32 else "tf32"


@cache
def _count(index: int | None) -> int:
    return torch.cuda.get_device_properties(index or 0).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 4 for Triton's interpreter on a CPU."""
    return _count(device.index) if device.type == "cuda" else 4


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index or 0)


def hopper(device: torch.device) -> bool:
    """Whether it is a GPU of compute capability 9, whose matrix instructions no other has."""
    return device.type == "cuda" and _capability(device.index)[0] == 9


def overlaps(tensor: Tensor) -> dict[str, bool]:
    """Arguments of a launch that may begin while the kernel before it ends (:func:`wait`)."""
    early = tensor.is_cuda and _capability(tensor.device.index) >= (9, 0)
    return {"EARLY": early, "launch_pdl": early}


@triton.jit
def wait():
    """Wait for the kernel before this one, then let the next one begin.

    In this order a kernel that has begun knows that all but the one before it are complete: what
    those wrote, and weights, may be read before it waits.
    """
    tl_cuda.gdc_wait()
    tl_cuda.gdc_launch_dependents()


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the tensor's GPU, whichever is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """``[B+1]`` int32: where each of B sequences of these lengths begins and the last ends.

    Equal lengths are counted on the device, which a CUDA graph may hold; others are copied there
    without waiting.
    """
    if lengths and min(lengths) == max(lengths):
        count, each = len(lengths), lengths[0]
        return torch.arange(count + 1, dtype=torch.int32, device=device) * each
    host = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
