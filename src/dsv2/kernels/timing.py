"""How long calls take, and what the device that they run on could do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

ROUNDS = 5
"""Measurements of a kernel, of which the median counts."""


@dataclass(frozen=True)
class Roof:
    """What the machine can do, measured on the spot.

    Attributes:
        read: bytes per second from memory; of a GPU those of a copy, read and written.
        multiply: operations per second of a matrix product in the weights' format.
    """

    read: float
    multiply: float

    def limit(self, moved: float, operations: float) -> float:
        """Least seconds for so many bytes and operations: the larger of both times."""
        return max(moved / self.read, operations / self.multiply)


def wait(device: torch.device) -> None:
    """Return once the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(run: Callable[[int], object], repeats: int, device: torch.device) -> float:
    """Median seconds of ``run(1)`` to ``run(repeats)`` after ``run(0)``, which does not count.

    The device is waited for before and after each, so what the host does to launch it counts.
    """
    run(0)
    found = []
    for turn in range(1, repeats + 1):
        wait(device)
        start = time.perf_counter()
        run(turn)
        wait(device)
        found.append(time.perf_counter() - start)
    return median(found)


def kernel_seconds(
    calls: Sequence[Callable[[], object]], device: torch.device, budget: float = 0.1
) -> float:
    """Mean seconds of one of ``calls``, which take turns; the median of five rounds.

    On a GPU they run within a CUDA graph, without what a launch costs the host. Elsewhere, in
    Triton's interpreter, one call is timed once.

    Args:
        calls: the same work on different memory, so that none finds its input in a cache.
        device: that computes.
        budget: seconds to spend, about.
    """
    for call in calls[:2]:
        call()
    if device.type != "cuda":
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start
    wait(device)
    start = time.perf_counter()
    calls[0]()
    wait(device)
    once = max(time.perf_counter() - start, 1e-5)
    repeats = max(1, min(20, int(budget / ROUNDS / once / len(calls))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # in a server, others go on
        for _ in range(repeats):
            for call in calls:
                call()
    graph.replay()
    found = []
    for _ in range(ROUNDS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        wait(device)
        found.append(first.elapsed_time(last) / 1e3 / repeats / len(calls))
    return median(found)


def _row_seconds(call: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Mean seconds of a call among many in a row, launched one by one; the median of five rounds.

    For calls that are long, and for copies, which take half as long again within a CUDA graph.
    """
    if device.type != "cuda":
        return kernel_seconds([call], device)
    found = []
    for _ in range(ROUNDS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        wait(device)
        found.append(first.elapsed_time(last) / 1e3 / repeats)
    return median(found)


def measure_device(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> Roof:
    """The roof of a device: a copy of 2 GiB, and a product of side 8192 in ``dtype``.

    Both are smaller where that does not fit beside what is loaded. The product is with a transposed
    matrix, as weights are stored.

    Args:
        device: that computes.
        dtype: of the product.
        tiny: sizes for a CPU, which show nothing but that it runs.
    """
    numbers, side = (1 << 16, 256) if tiny else (1 << 30, 8192)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        while numbers > 1 << 24 and 8 * numbers > free:  # both take half of it at most
            numbers //= 2
        while side > 1024 and 3 * side**2 * 4 > free // 2:  # drawn in fp32
            side //= 2
    source = torch.empty(numbers, dtype=torch.int16, device=device)
    target = torch.empty_like(source)
    read = 2 * source.nbytes / _row_seconds(lambda: target.copy_(source), device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    multiply = 2 * side**3 / _row_seconds(lambda: a @ b.T, device)
    return Roof(read, multiply)
