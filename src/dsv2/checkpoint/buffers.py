"""Memory for what is read from files, which is used again when the tensors in it are gone."""

from __future__ import annotations

import math
import mmap
import weakref
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_HUGE = 4 << 20
"""Bytes from which huge pages, and keeping the memory, are worth it."""
_PAGE = 2 << 20


class Buffers:
    """Gives memory to tensors and takes it back when they are gone, as long as it lives itself.

    Layers follow each other with tensors of the same sizes. New memory for each of them would be
    cleared by the kernel first, which takes longer than reading a file from the page cache. Idle
    memory is kept until something of another size is asked for.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the CPU; large ones are in huge pages where there are some."""
        size = math.prod(shape) * dtype.itemsize
        if size < _HUGE:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        # Multiples of pages, so that sizes that differ little share memory.
        pages = -(-size // _PAGE) * _PAGE
        free = self._free[pages]
        if not free:
            # What comes now differs from what has been: nothing lies idle beside new memory.
            for idle in self._free.values():
                idle.clear()
        memory = free.pop() if free else _map(pages)
        # The tensor's storage keeps the view, and nothing else does.
        view = memoryview(memory)[:size]
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.frombuffer(view, dtype=dtype).view(tuple(shape))


def _map(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a refusal costs speed only
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
