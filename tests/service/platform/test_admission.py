"""Limits and money of requests: F41, F50."""

from __future__ import annotations

import asyncio

import pytest

from dsv2.service.platform.admission import StoreAdmission
from dsv2.service.serving import Rates
from dsv2.service.store import Store, keys, ledger, users
from dsv2.service.web.errors import ApiError
from tests.service.platform.admitting import (
    HOLD,
    admit,
    balance,
    caller_of,
    check_books,
    refused,
    reservation,
)
from tests.service.platform.site import add_person


def test_a_request_costs_what_it_took(admission: StoreAdmission, store: Store) -> None:
    person = add_person(store, paid=1000)

    async def work() -> None:
        ticket = await admit(admission, person)
        assert balance(store, person).held == HOLD
        for completed in (1, 2, 3):
            ticket.note(10, 4, completed)
        await ticket.close("stop")
        ticket.note(10, 0, 5)
        await ticket.close("again")

    asyncio.run(work())
    ended = reservation(store)
    assert (ended.state, ended.finish, ended.charge) == ("settled", "stop", 6 * 10 + 4 + 3 * 20)
    assert balance(store, person).paid == 1000 - 124
    check_books(store, person)
    assert admission.open == {} and admission.limiter.running == 0


def test_a_request_that_did_nothing_costs_nothing(admission: StoreAdmission, store: Store) -> None:
    person = add_person(store, paid=1000)

    async def work() -> None:
        await (await admit(admission, person)).close("rejected")

    asyncio.run(work())
    assert reservation(store).state == "released"
    assert balance(store, person).total == 1000
    check_books(store, person)


def test_two_hundred_at_a_time_get_what_the_balance_is_for(
    admission: StoreAdmission, store: Store
) -> None:
    """F41."""
    person = add_person(store, paid=3 * HOLD + HOLD - 1)

    async def one(number: int) -> int:
        try:
            ticket = await admit(admission, person, f"r{number}")
        except ApiError as error:
            return error.status
        await all_tried.wait()
        ticket.note(10, 0, 5)
        await ticket.close("length")
        return 200

    async def work() -> list[int]:
        nonlocal all_tried
        all_tried = asyncio.Event()
        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        while sum(task.done() for task in tasks) < 197:
            await asyncio.sleep(0.01)
        all_tried.set()
        return await asyncio.gather(*tasks)

    all_tried = asyncio.Event()
    statuses = asyncio.run(work())
    assert sorted(statuses) == [200] * 3 + [402] * 197
    assert balance(store, person).paid == HOLD - 1
    check_books(store, person)


def test_no_money_no_budget_no_model(admission: StoreAdmission, store: Store) -> None:
    poor = add_person(store, paid=HOLD - 1)
    thrifty = add_person(store, "b@example.org", paid=1000, limits=keys.KeyLimits(budget=HOLD - 1))
    error = refused(admit(admission, poor))
    assert (error.status, error.code) == (402, "insufficient_balance")
    assert str(error).startswith("Insufficient Balance")
    error = refused(admit(admission, thrifty))
    assert (error.status, error.code) == (402, "budget_exceeded")
    error = refused(admit(admission, thrifty, models=("other",)))
    assert (error.status, error.param) == (403, "model")
    check_books(store, poor, thrifty)
    assert admission.limiter.running == 0


def test_a_model_without_a_price_is_not_given_away(admission: StoreAdmission, store: Store) -> None:
    person = add_person(store, paid=1000)
    asked = admission.admit(
        caller_of(person), request_id="r1", model="new", prompt_tokens=1, completion_tokens=1
    )
    assert refused(asked).status == 503


@pytest.mark.parametrize("what", ["key", "user", "account"])
def test_what_ended_since_it_was_identified_begins_nothing(
    admission: StoreAdmission, store: Store, what: str
) -> None:
    """F50."""
    person = add_person(store, paid=1000)
    with store.write() as db:
        if what == "key":
            keys.revoke_key(db, person.account_id, person.key_id, actor="test", now=2)
        elif what == "user":
            users.set_status(db, person.id, "suspended", actor="test", now=2)
        else:
            ledger.set_status(db, person.account_id, "suspended", actor="test", now=2)
    assert refused(admit(admission, person)).status == 401
    check_books(store, person)


def test_what_is_under_way_is_paid_for_when_its_key_ends(
    admission: StoreAdmission, store: Store
) -> None:
    """F50."""
    person = add_person(store, paid=1000)

    async def work() -> None:
        ticket = await admit(admission, person)
        with store.write() as db:
            keys.revoke_key(db, person.account_id, person.key_id, actor="test", now=2)
            ledger.set_status(db, person.account_id, "suspended", actor="test", now=2)
        ticket.note(10, 0, 5)
        await ticket.close("stop")

    asyncio.run(work())
    assert balance(store, person).spent == HOLD
    check_books(store, person)


def test_limits_of_key_and_account_hold_before_money_does(
    admission: StoreAdmission, store: Store
) -> None:
    person = add_person(store, paid=10_000)
    admission.account_rates = Rates(max_concurrent=2)

    async def work() -> None:
        limited = Rates(requests_per_minute=1)
        ticket = await admit(admission, person, rates=limited)
        assert ticket.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(ApiError, match="Rate limit reached for this key"):
            await admit(admission, person, "r2", rates=limited)
        second = await admit(admission, person, "r3")
        with pytest.raises(ApiError, match="Rate limit reached for this account") as caught:
            await admit(admission, person, "r4")
        assert caught.value.headers["Retry-After"] == "1"
        await ticket.close("stop")
        third = await admit(admission, person, "r5")
        await second.close("stop")
        await third.close("stop")

    asyncio.run(work())
    check_books(store, person)


def test_refused_for_money_counts_for_no_limit(admission: StoreAdmission, store: Store) -> None:
    person = add_person(store)
    for number in range(3):
        error = refused(admit(admission, person, f"r{number}", rates=Rates(requests_per_minute=1)))
        assert error.status == 402
