"""Hours of traffic: rarer kills, a disk that is full now and then, and memory that must be flat."""

from __future__ import annotations

import time

from benchmarks.soak.resources import Sample, look, trend
from benchmarks.soak.run import Outcome, Run

CALM = 1 / 3
"""Share of the time, at the end, in which nothing is killed."""
_AFTER_FULL = 3.0
"""Seconds in which is settled what could not be written, before the next kill: what neither the
database nor the outbox took dies with its process."""


async def soak(run: Run, seconds: float) -> Outcome:
    """Let a platform bear everything for so long.

    Args:
        run: of the platform.
        seconds: of traffic.
    """
    async with run:
        begun = time.monotonic()
        calm_from = begun + seconds * (1 - CALM)
        end = begun + seconds
        between = min(120.0, max(2.0, seconds / 60))
        samples: list[Sample] = []
        period = min(5.0, max(0.5, seconds / 600))
        run.begin(_sample(run, samples, calm_from, period))
        while (now := time.monotonic()) < end:
            pause = min(run.dice.expovariate(1 / between), end - now)
            await run.wait(pause)
            if now + pause < end:
                await _happen(run, between, is_calm=time.monotonic() >= calm_from)
        outcome = await run.end()
    for kind in ("api", "engine"):
        outcome.trends.append(trend([one for one in samples if one.kind == kind]))
        outcome.problems += outcome.trends[-1].problems
    return outcome


async def _happen(run: Run, between: float, *, is_calm: bool) -> None:
    """Something that the dice choose."""
    what = "full" if is_calm else run.dice.choices(["api", "engine", "full"], [4, 2, 3])[0]
    if what != "full":
        await run.kill(what)
        return
    run.platform.fill_disk(is_full=True)
    try:
        await run.wait(run.dice.uniform(0.1, min(3.0, between)))
    finally:
        run.platform.fill_disk(is_full=False)
    run.outcome.full += 1
    await run.wait(_AFTER_FULL)
    await run.check()


async def _sample(run: Run, samples: list[Sample], since: float, period: float) -> None:
    """Look at both processes while nothing is killed."""
    while not await run.is_over(period):
        now = time.monotonic()
        if now >= since:
            samples += [look(now, kind, pid) for kind, pid in run.platform.pids.items()]
