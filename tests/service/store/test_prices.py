"""The arithmetic of money, without a database, and the table of prices."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2.service.store import Store, prices
from dsv2.service.store.errors import FieldError, NotFoundError
from dsv2.service.store.prices import Price, Usage, cost, split, worst_cost
from tests.service.store.make import NOW

COUNTS = st.integers(0, 10**9)


@st.composite
def some_price(draw: st.DrawFn) -> Price:
    full = draw(st.integers(0, 10**12))
    return Price(1, "m", 1, full, draw(st.integers(0, full)), draw(st.integers(0, 10**12)))


@st.composite
def some_usage(draw: st.DrawFn) -> Usage:
    prompt = draw(COUNTS)
    return Usage(prompt, draw(st.integers(0, prompt)), draw(COUNTS))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(), 0),
        (Usage(1, 0, 0), 0),  # 0.14 of a micro-unit
        (Usage(3, 0, 0), 0),  # 0.42
        (Usage(0, 0, 1), 0),  # 0.28
        (Usage(0, 0, 2), 1),  # 0.56
        (Usage(1, 0, 1), 0),  # 0.14 + 0.28: the parts are not rounded
        (Usage(2, 0, 1), 1),  # 0.28 + 0.28
        (Usage(25, 0, 0), 4),  # 3.5 goes up
        (Usage(1_000_000, 0, 1_000_000), 420_000),
        (Usage(1_000_000, 1_000_000, 0), 14_000),
        (Usage(128, 64, 10), 13),  # 8.96 + 0.896 + 2.8
    ],
)
def test_the_published_prices(usage: Usage, expected: int) -> None:
    """0.14 a million prompt tokens, a tenth of it for hits, 0.28 for generated ones."""
    assert cost(Price(1, "deepseek-chat", 1, 140_000, 14_000, 280_000), usage) == expected


@given(some_price(), some_usage())
def test_a_cost_is_the_exact_one_rounded_half_up_once(price: Price, usage: Usage) -> None:
    exact = Fraction(
        (usage.prompt_tokens - usage.cached_tokens) * price.input
        + usage.cached_tokens * price.cached_input
        + usage.completion_tokens * price.output,
        1_000_000,
    )
    found = cost(price, usage)
    assert isinstance(found, int)
    assert -Fraction(1, 2) < found - exact <= Fraction(1, 2)


@given(some_price(), some_usage(), COUNTS, COUNTS)
def test_no_request_costs_more_than_its_worst_case(
    price: Price, usage: Usage, prompt: int, answer: int
) -> None:
    prompt = max(prompt, usage.prompt_tokens)
    answer = max(answer, usage.completion_tokens)
    assert cost(price, usage) <= worst_cost(price, prompt, answer)


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_granted_money_goes_first_and_nothing_is_lost(charge: int, granted: int) -> None:
    from_granted, from_paid = split(charge, granted)
    assert from_granted + from_paid == charge
    assert 0 <= from_granted <= granted
    assert from_paid == 0 or from_granted == granted


@pytest.mark.parametrize(
    ("counts", "field"),
    [
        ((-1, 0, 0), "prompt_tokens"),
        ((5, 6, 0), "cached_tokens"),
        ((5, -1, 0), "cached_tokens"),
        ((0, 0, 10**9 + 1), "completion_tokens"),
        ((0, 0, 1.0), "completion_tokens"),
        ((True, 0, 0), "prompt_tokens"),
    ],
)
def test_counts_that_cannot_be(counts: tuple[int, int, int], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        Usage(*counts)
    assert caught.value.field == field


def test_prices_are_followed_and_never_changed(store: Store) -> None:
    options = {"actor": "admin", "now": NOW}
    with store.write() as db:
        first = prices.set_price(db, "m", input=100, cached_input=10, output=200, **options)
        second = prices.set_price(db, "m", input=90, cached_input=90, output=0, **options)
        other = prices.set_price(db, "n", input=0, cached_input=0, output=0, **options)
        assert [one.version for one in (first, second, other)] == [1, 2, 1]
        assert prices.current_price(db, "m") == second
        assert prices.price_by_id(db, first.id) == first
        assert prices.list_prices(db) == [first, second, other]
        with pytest.raises(NotFoundError, match="no price for the model 'x'"):
            prices.current_price(db, "x")
        with pytest.raises(FieldError, match="cached_input is 101, allowed is from 0 to"):
            prices.set_price(db, "m", input=100, cached_input=101, output=0, **options)
