"""How fast may be asked: requests and tokens per minute, and requests at a time.

Kept in this process and forgotten with it. A minute's limit is a bucket that holds as much and
fills up within a minute, so that after a pause a whole minute's worth may come at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dsv2.service.serving import Rates
from dsv2.service.web.errors import ApiError

MINUTE = 60.0

Clock = Callable[[], float]


@dataclass
class Bucket:
    """Something of which only so much may be taken per time.

    Attributes:
        capacity: most that it holds; what it holds at first.
        seconds: how long it takes to fill up.
        level: what it holds; below zero after a correction.
        at: when it held that.
    """

    capacity: float
    seconds: float
    level: float
    at: float

    def fill(self, now: float) -> float:
        """Add what has come in since, and return the level."""
        grown = self.level + (now - self.at) * self.capacity / self.seconds
        self.level, self.at = min(self.capacity, grown), now
        return self.level

    def resize(self, capacity: float) -> None:
        """Another limit: what was taken stays taken."""
        self.level += capacity - self.capacity
        self.capacity = capacity

    def wait(self, amount: float) -> float:
        """Seconds until so much is in it; 0 if it is. More than it can hold counts as all of it."""
        missing = min(amount, self.capacity) - self.level
        return max(0.0, missing * self.seconds / self.capacity)


class Throttle:
    """So many attempts per time for each name, such as an address.

    Args:
        attempts: at once, or in ``seconds``.
        seconds: in which they come back.
        clock: monotonic seconds.
        most: names that are remembered; beyond them the ones with most attempts left are forgotten.
    """

    def __init__(
        self, attempts: int, seconds: float, clock: Clock = time.monotonic, most: int = 100_000
    ) -> None:
        self.attempts, self.seconds, self.most = attempts, seconds, most
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def take(self, name: str) -> float:
        """Count an attempt; 0 if it is allowed, else the seconds until one will be."""
        now = self._clock()
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self.most:
                self._forget(now)
            bucket = Bucket(self.attempts, self.seconds, self.attempts, now)
            self._buckets[name] = bucket
        bucket.fill(now)
        if wait := bucket.wait(1):
            return wait
        bucket.level -= 1
        return 0.0

    def give_back(self, name: str) -> None:
        """Let an attempt not count after all."""
        if (bucket := self._buckets.get(name)) is not None:
            bucket.level = min(bucket.capacity, bucket.level + 1)

    def _forget(self, now: float) -> None:
        by_level = sorted(self._buckets, key=lambda name: self._buckets[name].fill(now))
        for name in by_level[len(by_level) // 2 :]:
            del self._buckets[name]


@dataclass
class _Scope:
    """A key or an account."""

    rates: Rates
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0


@dataclass
class Passage:
    """A request that the limits let through, until :meth:`Limiter.leave`."""

    names: tuple[str, ...]
    tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)


class Limiter:
    """Counts what keys and accounts take. Only one event loop may use it: no call waits.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._scopes: dict[str, _Scope] = {}

    def enter(self, limits: Mapping[str, Rates], tokens: int) -> Passage:
        """Let a request through all its limits, or through none.

        Args:
            limits: by the name of the key or account.
            tokens: most that it may take, of prompt and answers.

        Raises:
            ApiError: 429 with ``Retry-After`` and the rate-limit headers.
        """
        now = self._clock()
        scopes = {name: self._scope(name, rates, now) for name, rates in limits.items()}
        for name, scope in scopes.items():
            waits = {
                "requests": scope.requests.wait(1) if scope.requests else 0.0,
                "tokens": scope.tokens.wait(tokens) if scope.tokens else 0.0,
            }
            most = scope.rates.max_concurrent
            if most is not None and scope.running >= most:
                raise self._refuse(scopes, name, f"{most} concurrent requests", 1.0)
            worst = max(waits, key=lambda what: waits[what])
            if waits[worst]:
                bucket = scope.requests if worst == "requests" else scope.tokens
                assert bucket is not None
                words = f"{bucket.capacity:.0f} {worst} per minute"
                raise self._refuse(scopes, name, words, waits[worst])
        for scope in scopes.values():
            scope.running += 1
            _take(scope.requests, 1)
            _take(scope.tokens, tokens)
        return Passage(tuple(limits), tokens, headers_of(scopes.values()))

    def leave(self, passage: Passage, tokens: int) -> None:
        """A request has ended, having taken so many tokens; the others count no longer."""
        for name in passage.names:
            if (scope := self._scopes.get(name)) is not None:
                scope.running -= 1
                if scope.tokens:
                    _give(scope.tokens, min(passage.tokens, scope.tokens.capacity) - tokens)

    def undo(self, passage: Passage) -> None:
        """A request was let through and did not begin."""
        self.leave(passage, 0)
        for name in passage.names:
            if (scope := self._scopes.get(name)) is not None and scope.requests:
                _give(scope.requests, 1)

    @property
    def running(self) -> int:
        """Requests that were let through and have not left, counted once for each scope."""
        return sum(scope.running for scope in self._scopes.values())

    def forget_idle(self) -> None:
        """Drop keys and accounts of which nothing need be remembered."""
        now = self._clock()
        for name, scope in list(self._scopes.items()):
            buckets = [one for one in (scope.requests, scope.tokens) if one is not None]
            if not scope.running and all(one.fill(now) >= one.capacity for one in buckets):
                del self._scopes[name]

    def _scope(self, name: str, rates: Rates, now: float) -> _Scope:
        scope = self._scopes.setdefault(name, _Scope(rates))
        scope.rates = rates
        scope.requests = _bucket(scope.requests, rates.requests_per_minute, now)
        scope.tokens = _bucket(scope.tokens, rates.tokens_per_minute, now)
        return scope

    def _refuse(self, scopes: Mapping[str, _Scope], name: str, limit: str, wait: float) -> ApiError:
        kind = name.partition("_")[0].replace("acct", "account")
        headers = {"Retry-After": str(max(1, math.ceil(wait))), **headers_of(scopes.values())}
        message = f"Rate limit reached for this {kind}: {limit}. Try again in {duration(wait)}."
        return ApiError(429, message, code="rate_limit_exceeded", headers=headers)


def headers_of(scopes: Iterable[_Scope]) -> dict[str, str]:
    """What OpenAI's clients read: for requests and tokens, the limit with least of it left."""
    headers: dict[str, str] = {}
    for what in ("requests", "tokens"):
        buckets = [one for scope in scopes if (one := getattr(scope, what)) is not None]
        if buckets:
            least = min(buckets, key=lambda one: one.level)
            headers[f"x-ratelimit-limit-{what}"] = f"{least.capacity:.0f}"
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(least.level)))
            headers[f"x-ratelimit-reset-{what}"] = duration(least.wait(least.capacity))
    return headers


def duration(seconds: float) -> str:
    """A time as OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < MINUTE:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _bucket(known: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    if known is None:
        return Bucket(limit, MINUTE, limit, now)
    known.fill(now)
    if known.capacity != limit:
        known.resize(limit)
    return known


def _take(bucket: Bucket | None, amount: float) -> None:
    if bucket is not None:
        bucket.level -= min(amount, bucket.capacity)


def _give(bucket: Bucket, amount: float) -> None:
    bucket.level = min(bucket.capacity, bucket.level + amount)
