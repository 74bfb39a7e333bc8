"""Requests and tokens per minute, requests at a time, and attempts."""

from __future__ import annotations

import pytest

from dsv2.service.platform.rates import Limiter, Throttle, duration
from dsv2.service.serving import Rates
from dsv2.service.web.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def refusal(limiter: Limiter, rates: Rates, tokens: int = 1, name: str = "key_1") -> ApiError:
    with pytest.raises(ApiError) as caught:
        limiter.enter({name: rates}, tokens)
    return caught.value


def test_requests_per_minute_come_back_evenly(limiter: Limiter, clock: Clock) -> None:
    rates = Rates(requests_per_minute=6)
    for _ in range(6):
        limiter.enter({"key_1": rates}, 1)
    error = refusal(limiter, rates)
    assert error.status == 429
    assert str(error).startswith("Rate limit reached for this key: 6 requests per minute")
    assert error.headers["Retry-After"] == "10"
    clock.now += 9.9
    refusal(limiter, rates)
    clock.now += 0.2
    limiter.enter({"key_1": rates}, 1)
    clock.now += 3600
    for _ in range(6):
        limiter.enter({"key_1": rates}, 1)
    refusal(limiter, rates)


def test_tokens_count_as_asked_for_and_afterwards_as_taken(limiter: Limiter, clock: Clock) -> None:
    rates = Rates(tokens_per_minute=600)
    passage = limiter.enter({"key_1": rates}, 500)
    error = refusal(limiter, rates, 200)
    assert error.headers["Retry-After"] == "10"
    assert error.headers["x-ratelimit-remaining-tokens"] == "100"
    limiter.leave(passage, 50)
    limiter.enter({"key_1": rates}, 550)
    refusal(limiter, rates, 1)
    clock.now += 1
    limiter.enter({"key_1": rates}, 10)


def test_a_request_larger_than_a_minutes_tokens_needs_a_whole_minute(
    limiter: Limiter, clock: Clock
) -> None:
    rates = Rates(tokens_per_minute=600)
    passage = limiter.enter({"key_1": rates}, 10_000)
    assert refusal(limiter, rates, 10_000).headers["Retry-After"] == "60"
    limiter.leave(passage, 1200)  # it really took two minutes' worth
    clock.now += 60
    refusal(limiter, rates, 1)
    clock.now += 60
    limiter.enter({"key_1": rates}, 10_000)


def test_requests_at_a_time(limiter: Limiter) -> None:
    rates = Rates(max_concurrent=2)
    first, _ = (limiter.enter({"key_1": rates}, 1) for _ in range(2))
    error = refusal(limiter, rates)
    assert error.headers["Retry-After"] == "1" and "2 concurrent requests" in str(error)
    limiter.leave(first, 1)
    limiter.enter({"key_1": rates}, 1)


def test_a_refused_request_takes_nothing_of_any_limit(limiter: Limiter) -> None:
    account, key = Rates(requests_per_minute=10), Rates(max_concurrent=1)
    limits = {"acct_1": account, "key_1": key}
    passage = limiter.enter(limits, 1)
    assert passage.headers["x-ratelimit-remaining-requests"] == "9"
    for _ in range(5):
        with pytest.raises(ApiError):
            limiter.enter(limits, 1)
    limiter.leave(passage, 1)
    assert limiter.enter(limits, 1).headers["x-ratelimit-remaining-requests"] == "8"


def test_an_undone_request_never_was(limiter: Limiter) -> None:
    rates = Rates(1, 100, 1)
    for _ in range(3):
        limiter.undo(limiter.enter({"key_1": rates}, 100))
    limiter.enter({"key_1": rates}, 100)


def test_the_headers_are_openais_and_of_the_limit_with_least_left(limiter: Limiter) -> None:
    limits = {"acct_1": Rates(60, 1000), "key_1": Rates(6, None)}
    assert limiter.enter(limits, 100).headers == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "6s",
    }
    assert limiter.enter({"acct_2": Rates()}, 1).headers == {}


def test_another_limit_holds_at_once_and_what_was_taken_stays_taken(limiter: Limiter) -> None:
    for _ in range(5):
        limiter.enter({"key_1": Rates(requests_per_minute=6)}, 1)
    limiter.enter({"key_1": Rates(requests_per_minute=10)}, 1)
    refusal(limiter, Rates(requests_per_minute=6))


def test_the_idle_are_forgotten_and_the_busy_are_not(limiter: Limiter, clock: Clock) -> None:
    rates = Rates(6, 600, 2)
    passage = limiter.enter({"key_1": rates}, 1)
    limiter.leave(limiter.enter({"key_2": rates}, 1), 1)
    limiter.forget_idle()
    assert set(limiter._scopes) == {"key_1", "key_2"}
    clock.now += 60
    limiter.forget_idle()
    assert set(limiter._scopes) == {"key_1"}
    limiter.leave(passage, 1)
    assert limiter.running == 0


def test_attempts_are_counted_by_name(clock: Clock) -> None:
    throttle = Throttle(3, 60, clock)
    assert [throttle.take("a") for _ in range(4)] == [0, 0, 0, 20]
    assert throttle.take("b") == 0
    throttle.give_back("a")
    assert throttle.take("a") == 0
    clock.now += 20
    assert throttle.take("a") == 0


def test_a_throttle_forgets_those_who_tried_least(clock: Clock) -> None:
    throttle = Throttle(3, 60, clock, most=10)
    for _ in range(3):
        throttle.take("guesser")
    for i in range(100):
        throttle.take(f"u{i}")
    assert len(throttle._buckets) <= 10
    assert throttle.take("guesser") > 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0ms"), (0.12, "120ms"), (1.5, "1.5s"), (59, "59s"), (360, "6m0s"), (3599.5, "60m0s")],
)
def test_times_as_openai_writes_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
