"""Results of kernels, each beside the roof of its device."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from dsv2.kernels.timing import Roof, kernel_seconds

Tiles = TypeVar("Tiles")

TOLERANCE = 2e-2
"""Largest error against the reference, relative to its largest number."""
HERE, ELSEWHERE = "FlashInfer in this run", "FlashInfer on an H200"
"""What a peer's time is called: measured beside ours, or one that was measured there."""


@dataclass(frozen=True)
class Result:
    """A line of the output; ``fraction`` is of the nearer of the two roofs."""

    kernel: str
    case: str
    variant: str
    microseconds: float = 0.0
    gigabytes_s: float = 0.0
    teraflops: float = 0.0
    fraction: float = 0.0
    error: float | None = None
    peer: str = ""
    peer_us: float | None = None
    failure: str = ""


@dataclass
class KernelBench:
    """The roofs and what was measured under them."""

    device: torch.device
    roof: Roof
    tiny: bool = False
    tune: bool = False
    quiet: bool = False
    results: list[Result] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """bf16; Triton's interpreter multiplies none, and has fp16."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float16

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers of that dtype and device."""
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def record(
        self, kernel: str, case: str, variant: str, calls: Sequence[Callable[[], object]],
        moved: float, flops: float, error: float | None = None, peer: str = "",
        peer_us: float | None = None,
    ) -> float:  # fmt: skip
        """Time ``calls`` and print the line; the seconds."""
        took = kernel_seconds(calls, self.device)
        nearest = self.roof.limit(moved, flops) / took
        self.add(Result(
            kernel, case, variant, took * 1e6, moved / took / 1e9, flops / took / 1e12, nearest,
            error, peer, peer_us,
        ))  # fmt: skip
        return took

    def add(self, result: Result) -> None:
        """Keep a result, and print it unless told to be quiet."""
        self.results.append(result)
        if self.quiet:
            return
        if result.failure:
            print(f"{result.kernel:<20} {result.case:<26} {result.variant:<34} {result.failure}")
            return
        error = "" if result.error is None else f" error {result.error:.1e}"
        wrong = "" if result.error is None or result.error < TOLERANCE else " WRONG"
        peer = f" {result.peer} {result.peer_us:.1f} us" if result.peer_us else ""
        print(
            f"{result.kernel:<20} {result.case:<26} {result.variant:<34} "
            f"{result.microseconds:9.1f} us {result.gigabytes_s:7.0f} GB/s "
            f"{result.teraflops:6.1f} TFLOP/s {result.fraction:6.1%} of the roof"
            f"{error}{wrong}{peer}",
            flush=True,
        )

    def attempt(self, kernel: str, case: str, variant: str, run: Callable[[], object]) -> None:
        """Run, or print the traceback and go on."""
        try:
            run()
        except Exception as failure:
            traceback.print_exc()
            text = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            self.add(Result(kernel, case, variant, failure=text))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def microseconds(self, kernel: str, case: str, variant: str) -> float | None:
        """Of the result of these names; None where there is none."""
        for one in self.results:
            if (one.kernel, one.case, one.variant, one.failure) == (kernel, case, variant, ""):
                return one.microseconds
        return None

    def failed(self) -> list[Result]:
        """Results that are failures, or wrong."""
        return [one for one in self.results if one.failure or (one.error or 0) > TOLERANCE]

    def others(self, tiles: Sequence[Tiles]) -> Sequence[Tiles]:
        """The default tiles, and the rest where tiles are to be tuned."""
        return tiles if self.tune else tiles[:1]


def relative(ours: Tensor, expected: Tensor) -> float:
    """The largest error over the largest number."""
    expected = expected.float()
    return float((ours.float() - expected).abs().max() / expected.abs().max())


def describe(tiles: object) -> str:
    """The numbers of tiles, for people."""
    return " ".join(str(value) for value in asdict(tiles).values())  # type: ignore[call-overload]
