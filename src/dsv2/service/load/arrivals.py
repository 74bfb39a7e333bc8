"""When requests are sent that do not wait for one another."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due, without end.

    Independent users send as a Poisson process does: the gaps are exponential, so that bursts and
    lulls come as they come in life. The first request is due after a gap like all others.

    Args:
        rate: requests per second on average; infinite for all at once.
        seed: makes the times repeatable.

    Raises:
        ValueError: the rate is no positive number.
    """
    if not rate > 0:
        raise ValueError(f"rate is {rate}, allowed is a positive number of requests/s, or inf")
    return _arrivals(rate, seed)


def _arrivals(rate: float, seed: int) -> Iterator[float]:
    draw, due = random.Random(seed), 0.0
    while True:
        if math.isfinite(rate):
            due += draw.expovariate(rate)
        yield due
