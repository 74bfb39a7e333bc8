"""Requests cut off by clients, by the database, by the end of a process: F44, F48, F49."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from dsv2.service.platform.admission import LEASE, StoreAdmission
from dsv2.service.platform.keeper import Keeper
from dsv2.service.platform.office import Office, ensure_prices, running
from dsv2.service.platform.writer import Writer
from dsv2.service.serving import Rates
from dsv2.service.store import Store, prices
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.settings import change_setting
from tests.service.platform.admitting import (
    HOLD,
    admit,
    balance,
    check_books,
    refused,
    reservation,
)
from tests.service.platform.site import add_person

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


@pytest.mark.usefixtures("one_line")
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


@pytest.mark.usefixtures("one_line")
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


def test_an_office_at_work_is_kept_and_closed(office: Office, store: Store) -> None:
    person = add_person(store, paid=1000)

    async def work() -> None:
        async with running(office):
            ticket = await admit(office.admission, person)
            ticket.note(10, 0, 1)
        with pytest.raises(UnavailableError):
            await office.writer.write(lambda db: None)

    asyncio.run(work())
    assert reservation(store).finish == "shutdown"
    check_books(store, person)


def test_models_get_a_price_where_they_have_none(store: Store) -> None:
    for _ in range(2):
        ensure_prices(store, ["tiny", "new"], now=1)
    with store.read() as db:
        found = [(price.model, price.version, price.input) for price in prices.list_prices(db)]
    assert found == [("new", 1, 140_000), ("tiny", 1, 10_000_000)]
