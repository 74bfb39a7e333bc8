"""Limits and money of requests: F41, F44, F48, F50."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from dsv2.service.admission import LEASE, StoreAdmission, StoreTicket
from dsv2.service.errors import ApiError
from dsv2.service.keeper import Keeper
from dsv2.service.office import Office
from dsv2.service.serving import Caller, Rates
from dsv2.service.store import Store, keys, ledger, reservations, users
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.reservations import Reservation
from dsv2.service.store.settings import change_setting
from dsv2.service.store.verify import verify_books
from dsv2.service.writer import Writer
from tests.service.platform.site import Person, add_person

# 10 prompt tokens at 10 micro-units and up to 5 more at 20.
HOLD = 200


@pytest.fixture
def admission(office: Office) -> Any:
    yield office.admission
    office.close()


def caller_of(person: Person, **more: Any) -> Caller:
    return Caller(person.id, person.account_id, "user", person.key_id, **more)


async def admit(
    admission: StoreAdmission, person: Person, request_id: str = "r1", **more: Any
) -> StoreTicket:
    return await admission.admit(
        caller_of(person, **more), request_id=request_id, model="tiny", prompt_tokens=10,
        completion_tokens=5,
    )  # fmt: skip


def refused(work: Coroutine[Any, Any, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(work)
    return caught.value


def reservation(store: Store, request_id: str = "r1") -> Reservation:
    with store.read() as db:
        return reservations.reservation(db, request_id)


def balance(store: Store, person: Person) -> ledger.Balance:
    with store.read() as db:
        return ledger.balance(db, person.account_id)


def check_books(store: Store, *people: Person) -> None:
    with store.read() as db:
        assert verify_books(db) == []
    for person in people:
        assert balance(store, person).held == 0


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


# What a client that leaves can interrupt.


def test_leaving_mid_stream_pays_for_what_was_produced(
    admission: StoreAdmission, store: Store
) -> None:
    """F44."""
    person = add_person(store, paid=1000)

    async def stream() -> None:
        ticket = await admit(admission, person)
        try:
            ticket.note(10, 0, 2)
            await asyncio.sleep(60)
        finally:
            await ticket.close("disconnect")

    async def work() -> None:
        task = asyncio.create_task(stream())
        while not admission.open:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())
    assert balance(store, person).spent == 10 * 10 + 2 * 20
    check_books(store, person)


def busy(writer: Writer) -> tuple[Callable[[], None], asyncio.Task[Any]]:
    """Let the writer's thread wait until it is told to go on."""
    leave = threading.Event()
    task = asyncio.create_task(writer.write(lambda db: leave.wait(10)))
    return leave.set, task


def test_leaving_while_it_is_settled_settles_it_once(
    admission: StoreAdmission, store: Store
) -> None:
    """F44."""
    person = add_person(store, paid=1000)

    async def work() -> None:
        ticket = await admit(admission, person)
        ticket.note(10, 0, 2)
        go_on, held_up = busy(admission.writer)
        closing = asyncio.create_task(ticket.close("stop"))
        await asyncio.sleep(0.02)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        go_on()
        await held_up
        await ticket.close("disconnect")

    asyncio.run(work())
    assert reservation(store).finish == "stop"
    assert balance(store, person).spent == 140
    check_books(store, person)


@pytest.mark.parametrize("begun", [False, True])
def test_leaving_while_money_is_held_gives_it_back(
    admission: StoreAdmission, store: Store, begun: bool
) -> None:
    """F44: whether the hold waits for its turn, or is just being made."""
    person = add_person(store, paid=1000)

    async def work() -> None:
        admitting = asyncio.create_task(admit(admission, person))
        go_on, held_up = busy(admission.writer)
        await asyncio.sleep(0.02 if begun else 0)
        admitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await admitting
        go_on()
        await held_up
        await admission.drain()

    asyncio.run(work())
    check_books(store, person)
    assert balance(store, person).total == 1000
    assert admission.open == {} and admission.limiter.running == 0


class Broken:
    """A writer whose database is away."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.store, self.is_away = writer, writer.store, True

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        if self.is_away:
            raise UnavailableError("the database is not available: /secret/path")
        return await self.writer.write(work)


def test_without_the_database_nothing_begins(admission: StoreAdmission, store: Store) -> None:
    """F48."""
    person = add_person(store, paid=1000)
    admission.writer = Broken(admission.writer)  # type: ignore[assignment]
    error = refused(admit(admission, person))
    assert error.status == 503 and error.headers["Retry-After"] == "1"
    assert "secret" not in str(error)
    assert admission.limiter.running == 0


def test_without_the_database_a_settlement_waits_in_the_outbox(
    admission: StoreAdmission, store: Store
) -> None:
    """F48."""
    person = add_person(store, paid=1000)

    async def work() -> None:
        ticket = await admit(admission, person)
        ticket.note(10, 0, 2)
        writer, broken = admission.writer, Broken(admission.writer)
        admission.writer = broken  # type: ignore[assignment]
        await ticket.close("stop")
        assert len(admission.outbox) == 1
        admission.writer = writer
        await Keeper(admission).clear()

    asyncio.run(work())
    assert len(admission.outbox) == 0
    assert reservation(store).finish == "stop"
    check_books(store, person)


def test_without_database_and_outbox_this_process_tries_again(
    admission: StoreAdmission, store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F48."""
    person = add_person(store, paid=1000)
    (folder / "outbox").write_text("not a folder")

    async def work() -> None:
        ticket = await admit(admission, person)
        ticket.note(10, 0, 2)
        broken = Broken(admission.writer)
        admission.writer = broken  # type: ignore[assignment]
        await ticket.close("stop")
        assert set(admission.unsettled) == {"r1"}
        broken.is_away = False
        await Keeper(admission).renew()

    asyncio.run(work())
    assert admission.unsettled == {}
    assert "request r1 is not settled yet" in caplog.text
    assert balance(store, person).spent == 140
    check_books(store, person)


def test_a_crash_costs_what_the_keeper_wrote_down(store: Store, folder: Path) -> None:
    """F44, F49: another process settles it when the lease is over, and not before."""
    person = add_person(store, paid=1000)
    now = 10_000_000
    first = Office(store, folder=folder, clock=lambda: now)
    second = Office(store, folder=folder, clock=lambda: now)

    async def work() -> None:
        nonlocal now
        ticket = await admit(first.admission, person)
        idle = await admit(first.admission, person, "r2")
        ticket.note(10, 0, 2)
        now += LEASE - 1
        await first.keeper.renew()
        ticket.note(10, 0, 5)  # never written down
        now += LEASE - 1
        await second.keeper.clear()
        assert reservation(store).state == "open"
        now += 1
        await second.keeper.clear()
        assert idle.usage.prompt_tokens == 0

    asyncio.run(work())
    assert (reservation(store).state, reservation(store).charge) == ("settled", 140)
    assert reservation(store, "r2").state == "released"
    check_books(store, person)
    first.close()
    second.close()


def test_a_process_does_not_recover_its_own(store: Store, folder: Path) -> None:
    person = add_person(store, paid=1000)
    now = 10_000_000
    office = Office(store, folder=folder, clock=lambda: now)

    async def work() -> None:
        nonlocal now
        ticket = await admit(office.admission, person)
        now += 100 * LEASE  # the clock was set, or the process slept
        await office.keeper.clear()
        assert reservation(store).state == "open"
        ticket.note(10, 0, 5)
        await ticket.close("stop")

    asyncio.run(work())
    assert reservation(store).charge == HOLD
    office.close()


def test_the_keeper_settles_what_is_open_when_it_stops(office: Office, store: Store) -> None:
    person = add_person(store, paid=1000)

    async def work() -> None:
        await office.keeper.start()
        ticket = await admit(office.admission, person)
        ticket.note(10, 0, 1)
        await office.keeper.stop()

    asyncio.run(work())
    office.close()
    assert (reservation(store).finish, reservation(store).charge) == ("shutdown", 120)
    check_books(store, person)


def test_the_keeper_goes_on_after_failures(
    office: Office, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    admission = office.admission
    keeper = Keeper(admission, renew_seconds=0.01, clear_seconds=0.01)
    with store.write() as db:
        change_setting(db, "max_concurrent", 3, actor="test", now=1)

    async def work() -> None:
        await keeper.start()
        assert admission.account_rates == Rates(max_concurrent=3)
        broken = Broken(admission.writer)
        admission.writer = broken  # type: ignore[assignment]
        await asyncio.sleep(0.1)
        with store.write() as db:
            change_setting(db, "max_concurrent", 4, actor="test", now=1)
        broken.is_away = False
        while admission.account_rates != Rates(max_concurrent=4):
            await asyncio.sleep(0.01)
        await keeper.stop()

    asyncio.run(work())
    office.close()
    assert "it will be tried again" in caplog.text


def test_what_is_noted_wrongly_is_charged_at_most_as_held(
    admission: StoreAdmission, store: Store
) -> None:
    person = add_person(store, paid=1000)

    async def work() -> None:
        ticket = await admit(admission, person)
        ticket.note(10, 99, 50)
        await ticket.close("stop")

    asyncio.run(work())
    assert reservation(store).charge == HOLD
    check_books(store, person)
