"""Between host and device without waiting: one buffer each way, however many tensors it holds."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

Section = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor within a buffer."""

_ALIGNMENT = 16
"""Bytes that every section begins at a multiple of: kernels read vectors of so many."""


def buffer_bytes(sections: Sequence[Section]) -> int:
    """Bytes of a buffer that holds the sections."""
    return sum(_padded(section) for section in sections)


def views(buffer: Tensor, sections: Sequence[Section]) -> list[Tensor]:
    """The sections of a uint8 ``buffer`` as tensors, which share its memory."""
    found, start = [], 0
    for dtype, shape in sections:
        part = buffer[start : start + prod(shape) * dtype.itemsize]
        found.append(part.view(dtype).view(shape))
        start += _padded((dtype, shape))
    return found


def _padded(section: Section) -> int:
    dtype, shape = section
    return -(-prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def host_buffer(size: int, device: torch.device) -> Tensor:
    """``size`` bytes on the host from which ``device`` copies without making the host wait.

    torch does not hand out pinned memory again before the copies from it are done, so a buffer may
    be dropped as soon as its copy was asked for.
    """
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of ``values`` on ``device``; the host does not wait for the copy."""
    if device.type == "cpu":
        return torch.as_tensor(values, dtype=dtype)
    host = torch.as_tensor(values, dtype=dtype).pin_memory()
    return host.to(device, non_blocking=True)


class Arrival:
    """A tensor on its way to the host; the copy begins at once and :meth:`take` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def take(self) -> Tensor:
        """The tensor on the host, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
