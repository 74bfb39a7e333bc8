"""Requests sent one after another by some users, or as they come whatever the server does."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from dsv2.service.load.arrivals import arrivals
from dsv2.service.load.client import NO_CONNECTION, Ask, Client
from dsv2.service.load.record import Record
from dsv2.service.web import event_loop

T = TypeVar("T")

_PREPARED = 2048
"""Bodies made before the clock runs, so that making them delays no request."""

_PAUSE = 0.05
"""Seconds that a user waits who found no server, lest thousands of failures a second pile up."""


@dataclass(frozen=True)
class Run:
    """What was measured.

    Attributes:
        records: one per request that was sent, in the order of sending.
        start: when the clock began to run.
        cpu_seconds: that the client itself computed meanwhile.
    """

    records: list[Record]
    start: float
    cpu_seconds: float

    @property
    def duration(self) -> float:
        """Seconds from the first request's sending to the last answer's end."""
        if not self.records:
            return 0.0
        first = min(record.started for record in self.records)
        return max(record.ended for record in self.records) - first


async def closed_loop(
    client: Client,
    ask: Ask,
    prompts: Iterator[dict[str, Any]],
    *,
    concurrency: int,
    requests: int | None = None,
    seconds: float | None = None,
) -> Run:
    """So many users, each of whom asks anew as soon as the last answer has ended.

    Args:
        client: of the server.
        ask: what the requests have in common.
        prompts: one is taken per request.
        concurrency: users.
        requests: in all.
        seconds: after which none is sent; answers under way are waited for.
    """
    bodies, numbers = _bodies(ask, prompts, requests), _numbers(requests)
    records: list[Record] = []
    start, cpu = time.perf_counter(), time.process_time()

    async def user() -> None:
        for number in numbers:
            now = time.perf_counter()
            if seconds is not None and now - start >= seconds:
                return
            record = await client.ask(ask.endpoint, next(bodies), number, now)
            records.append(record)
            if record.failure == NO_CONNECTION:
                await asyncio.sleep(_PAUSE)

    users = min(concurrency, requests) if requests is not None else concurrency
    await asyncio.gather(*(user() for _ in range(users)))
    return _run(records, start, cpu)


async def open_loop(
    client: Client,
    ask: Ask,
    prompts: Iterator[dict[str, Any]],
    *,
    rate: float,
    seed: int = 0,
    requests: int | None = None,
    seconds: float | None = None,
) -> Run:
    """Requests that come by themselves and wait for no answer; see :func:`closed_loop`.

    Args:
        client: of the server.
        ask: what the requests have in common.
        prompts: one is taken per request.
        rate: requests per second on average; infinite for all at once.
        seed: of their times.
        requests: in all.
        seconds: after which none is sent; answers under way are waited for.

    Raises:
        ValueError: the rate is no rate, or nothing ends the run.
    """
    if requests is None and (seconds is None or math.isinf(rate)):
        raise ValueError("rate inf needs a number of requests")
    bodies, times = _bodies(ask, prompts, requests), arrivals(rate, seed)
    under_way: list[asyncio.Task[Record]] = []
    start, cpu = time.perf_counter(), time.process_time()
    for number, offset in zip(_numbers(requests), times, strict=False):
        if seconds is not None and offset >= seconds:
            break
        due = start + offset
        if math.isfinite(rate):
            # Also when it is late: the loop must get to those under way.
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(client.ask(ask.endpoint, next(bodies), number, due)))
    return _run(await asyncio.gather(*under_way), start, cpu)


def run_fast(main: Callable[[], Coroutine[Any, Any, T]], streams: int = 0) -> T:
    """Run a coroutine in the fastest event loop that is installed.

    Args:
        main: makes the coroutine.
        streams: connections that it will have open at once, for which files are allowed.
    """
    _allow_files(streams + 64)
    return event_loop.run(main())


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files as far as needed and allowed."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit.
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _bodies(ask: Ask, prompts: Iterator[dict[str, Any]], requests: int | None) -> Iterator[bytes]:
    every = (ask.body(prompt) for prompt in prompts)
    ready = min(_PREPARED, requests if requests is not None else 64)
    return itertools.chain(list(itertools.islice(every, ready)), every)


def _numbers(requests: int | None) -> Iterator[int]:
    return iter(range(requests)) if requests is not None else itertools.count()


def _run(records: list[Record], start: float, cpu: float) -> Run:
    spent = time.process_time() - cpu
    return Run(sorted(records, key=lambda record: record.number), start, spent)
