"""Traffic, kills and the books: everything at once, by one seed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak.books import Heard, check_books, check_ended, count_open, totals
from benchmarks.soak.platform import Platform
from benchmarks.soak.resources import Trend
from benchmarks.soak.traffic import Traffic

PLENTY = 10**12
_SETTLING = 30
"""Seconds in which what clients have left, and what waits in the outbox, is settled."""


@dataclass
class Outcome:
    """What a run has found.

    Attributes:
        seed: of it.
        problems: what must not be; none where all is well.
        heard: what clients were told.
        kills: by kind.
        full: times that the disk was full.
        endings: requests by state and by how they ended.
        trends: of both processes, while nothing was killed.
        seconds: it took.
    """

    seed: int
    heard: Heard
    problems: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    full: int = 0
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    trends: list[Trend] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """A platform under traffic.

    Args:
        platform: that runs.
        seed: of all dice.
        clients: that ask plainly; three others ask carefully, and one moves money.
    """

    def __init__(self, platform: Platform, seed: int, clients: int = 6) -> None:
        self.platform, self.seed, self._clients = platform, seed, clients
        self.dice = random.Random(seed)
        self.outcome = Outcome(seed, Heard())
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Run:
        self._began = time.monotonic()
        platform = self.platform
        rich = [platform.account(name, paid=PLENTY) for name in ("ann", "ben")]
        poor = platform.account("poor", paid=1000)
        self._careful = platform.account("careful", paid=PLENTY)
        admin = platform.account("root", role="admin")
        traffic = self._traffic = Traffic(platform.url, self.seed, self.outcome.heard, self._stop)
        work: list[Coroutine[Any, Any, None]] = [
            *(traffic.plain(rich[n % 2], f"plain {n}") for n in range(self._clients - 1)),
            traffic.plain(poor, "poor"),
            *(traffic.careful(self._careful, f"careful {n}") for n in range(3)),
            traffic.banker(admin, poor),
            traffic.canary(rich[0], 1.0),
        ]
        for one in work:
            self.begin(one)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop.set()
        if error[0] is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=error[0] is not None)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something go on beside, until the run is over."""
        self._tasks.append(asyncio.create_task(work))

    async def is_over(self, seconds: float) -> bool:
        """Wait, and say whether nothing new shall begin."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    async def wait(self, seconds: float) -> None:
        """Let the traffic flow."""
        done, _ = await asyncio.wait(
            self._tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()

    async def kill(self, kind: str) -> None:
        """Kill a process, begin the next one and look at the books."""
        platform, outcome = self.platform, self.outcome
        if kind == "api":
            self._traffic.is_up.clear()
        status = await asyncio.to_thread(platform.kill, kind)
        if status != -9:
            outcome.problems.append(f"the {kind} had ended before it was killed: {status}")
        outcome.kills[kind] += 1
        await asyncio.to_thread(platform.begin, kind)
        self._traffic.is_up.set()
        await self.check()

    async def check(self) -> None:
        """Look at the books while requests are under way."""
        platform = self.platform
        self.outcome.problems += await asyncio.to_thread(check_books, platform.store, platform.born)

    async def _settled(self) -> None:
        """Wait until nothing is held, or for so long that something never will be let go."""
        for _ in range(_SETTLING):
            await asyncio.sleep(1.0)
            if not await asyncio.to_thread(count_open, self.platform.store):
                return

    async def end(self) -> Outcome:
        """Let everything come to its end, and compare what clients were told with the books."""
        outcome, platform = self.outcome, self.platform
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._settled()
        await self.check()
        outcome.problems += outcome.heard.problems
        if (waiting := platform.outbox()) != []:
            outcome.problems.append(f"settlements are left over in the outbox: {waiting}")
        outcome.problems += check_ended(platform.store, outcome.heard, self._careful)
        outcome.endings = totals(platform.store)
        outcome.seconds = time.monotonic() - self._began
        return outcome


async def kill_often(run: Run, kills: int, pause: tuple[float, float]) -> Outcome:
    """Kill at random moments, the engine once in twenty times, and look after each.

    Args:
        run: of the platform.
        kills: in all.
        pause: shortest and longest life of a process.
    """
    async with run:
        await run.wait(1.0)
        for _ in range(kills):
            await run.wait(run.dice.uniform(*pause))
            await run.kill("engine" if run.dice.random() < 0.05 else "api")
        await run.wait(1.0)
        return await run.end()
