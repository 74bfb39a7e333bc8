"""What processes hold, and whether it grows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from benchmarks.peers.server import resident_bytes

MIB = 2**20
GROWTH = 20.0
"""MiB that a process may grow by while nothing is killed, however short that is: caches fill."""
SLOPE = 0.25
"""MiB per minute that it may grow by for ever; more is a leak."""
HANDLES = 16
"""Files and sockets by which the most of the end may exceed the most of the beginning."""
_MOST = 400
"""Samples that a slope is taken from: it looks at every two of them."""


@dataclass(frozen=True)
class Sample:
    """One look at a process.

    Attributes:
        seconds: when.
        kind: of the process.
        pid: which one.
        memory: MiB resident.
        handles: files and sockets that are open.
    """

    seconds: float
    kind: str
    pid: int
    memory: float
    handles: int


def look(seconds: float, kind: str, pid: int) -> Sample:
    """Look at a process that runs."""
    handles = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(seconds, kind, pid, resident_bytes(pid) / MIB, handles)


def slope(samples: Sequence[Sample]) -> float:
    """MiB per minute: the median over all pairs (Theil and Sen), which no outlier moves."""
    step = max(1, len(samples) // _MOST)
    chosen = samples[::step]
    return 60 * median(
        (b.memory - a.memory) / (b.seconds - a.seconds) for a, b in combinations(chosen, 2)
    )


@dataclass(frozen=True)
class Trend:
    """What became of a process while nothing was killed.

    Attributes:
        kind: of the process.
        minutes: that it was looked at.
        memory: MiB at the end.
        slope: MiB per minute.
        handles: the most in the first third, and in the last.
    """

    kind: str
    minutes: float
    memory: float
    slope: float
    handles: tuple[int, int]

    @property
    def problems(self) -> list[str]:
        """What is too much; none where all is flat."""
        found = []
        allowed = max(SLOPE, GROWTH / self.minutes)
        if self.slope > allowed:
            found.append(
                f"the {self.kind} grows by {self.slope:.2f} MiB a minute, allowed is {allowed:.2f}"
            )
        first, last = self.handles
        if last > first + HANDLES:
            found.append(f"the {self.kind} had {first} handles open, and then {last}")
        return found


def trend(samples: Sequence[Sample]) -> Trend:
    """The trend of one process; the first third of its samples fills caches.

    Raises:
        ValueError: there are too few to say anything.
    """
    if len(samples) < 6:
        raise ValueError(f"{len(samples)} samples are too few for a trend, needed are 6")
    third = len(samples) // 3
    handles = [sample.handles for sample in samples]
    minutes = (samples[-1].seconds - samples[0].seconds) / 60
    return Trend(
        samples[0].kind, minutes, samples[-1].memory, slope(samples[third:]),
        (max(handles[:third]), max(handles[-third:])),
    )  # fmt: skip
