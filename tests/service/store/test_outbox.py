"""The database is locked, full or gone, in reserve and in settle."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, leases, models, open_store, reservations
from dsv2.service.store.engine import translated_errors
from dsv2.service.store.errors import NotFoundError, UnavailableError
from dsv2.service.store.ledger import balance
from dsv2.service.store.outbox import Outbox, settle_durably
from dsv2.service.store.prices import Usage
from dsv2.service.store.verify import verify_books
from tests.service.store.make import LEASE, NOW, Customer, customer, price, reserve

USAGE = Usage(10, 0, 2)


@pytest.fixture
def who(store: Store) -> Customer:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
    return who


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Somebody holds the whole database."""
    with store.write() as db:
        if not store.is_sqlite:
            names = ", ".join(models.metadata.tables)
            db.exec_driver_sql(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.fixture
def hasty(url: str) -> Iterator[Store]:
    """The same database, by somebody who does not wait."""
    store = open_store(url, timeout=0.1)
    yield store
    store.close()


def settle_now(store: Store, outbox: Outbox) -> reservations.Reservation | None:
    return settle_durably(store, outbox, "r1", USAGE, finish="stop", now=NOW)


def assert_charged_once(store: Store, who: Customer) -> None:
    with store.read() as db:
        assert balance(db, who.account_id).spent == 140
        assert balance(db, who.account_id).held == 0
        assert verify_books(db) == []


def test_a_locked_database_refuses_requests_and_loses_no_charge(
    store: Store, hasty: Store, who: Customer, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    with locked(store):
        with pytest.raises(UnavailableError, match="not available"), hasty.write() as db:
            reserve(db, who, "r2")
        assert settle_now(hasty, outbox) is None
        assert settle_now(hasty, outbox) is None
        assert len(outbox) == 1
        with pytest.raises(UnavailableError):
            outbox.deliver(hasty)
        assert len(outbox) == 1
    with store.read() as db:
        assert reservations.reservation(db, "r1").state == "open"
        with pytest.raises(NotFoundError):
            reservations.reservation(db, "r2")
    assert [one.charge for one in outbox.deliver(store)] == [140]
    assert len(outbox) == 0
    assert outbox.deliver(store) == []
    assert_charged_once(store, who)


def test_a_settlement_that_was_made_is_not_made_again(
    store: Store, who: Customer, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path)
    # The commit came through, its answer did not: so it was kept although it is done.
    assert settle_now(store, outbox) is not None
    outbox.put("r1", Usage(10, 0, 5), finish="stop", now=NOW)
    assert [one.charge for one in outbox.deliver(store)] == [140]
    assert_charged_once(store, who)


def test_the_outbox_is_private_and_the_first_word_stays(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a" / "outbox")
    outbox.put("r/../1", USAGE, finish="stop", now=NOW)
    [file] = outbox.folder.iterdir()
    before = file.read_bytes()
    outbox.put("r/../1", Usage(), finish="again", now=NOW)
    assert [one.read_bytes() for one in outbox.folder.iterdir()] == [before]
    assert stat.S_IMODE(outbox.folder.stat().st_mode) == 0o700


def test_a_settlement_of_an_unknown_request_is_put_aside(
    store: Store, who: Customer, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path)
    outbox.put("lost", USAGE, finish="stop", now=NOW)
    outbox.put("r1", USAGE, finish="stop", now=NOW)
    assert [one.ask.id for one in outbox.deliver(store)] == ["r1"]
    assert len(outbox) == 0
    assert len(list(tmp_path.glob("*.unknown"))) == 1


def test_what_cannot_be_settled_holds_up_nothing_else(
    store: Store, who: Customer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = Outbox(tmp_path)
    outbox.put("r1", USAGE, finish="stop", now=NOW)
    [good] = outbox.folder.iterdir()
    content = json.loads(good.read_text())
    bad = ("", "[]", "{}", json.dumps(content | {"finish": ""}))
    for number, text in enumerate(bad):
        (tmp_path / f"{number}.settle.json").write_text(text)
    assert [one.ask.id for one in outbox.deliver(store)] == ["r1"]
    assert len(outbox) == 0
    assert len(list(tmp_path.glob("*.refused"))) == len(caplog.records) == len(bad)
    assert_charged_once(store, who)


def test_two_may_deliver_at_a_time(
    store: Store, who: Customer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, settle = Outbox(tmp_path), reservations.settle

    def settle_second(db: sa.Connection, *arguments: Any, **options: Any) -> Any:
        ended = settle(db, *arguments, **options)
        for file in tmp_path.iterdir():
            file.unlink()  # as the other one does
        return ended

    for name in ("r1", "lost"):
        outbox.put(name, USAGE, finish="stop", now=NOW)
    monkeypatch.setattr("dsv2.service.store.outbox.settle", settle_second)
    outbox.deliver(store)
    assert_charged_once(store, who)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_server_that_only_reads_is_unavailable(store: Store, who: Customer) -> None:
    """As after a failover, before the other server takes writes."""
    with store.write() as db:
        db.exec_driver_sql("SET TRANSACTION READ ONLY")
        with pytest.raises(UnavailableError), translated_errors():
            reserve(db, who, "r2")
        db.rollback()


def test_a_damaged_database_loses_no_charge(tmp_path: Path, sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    file = Path(str(store.engine.url.database))
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    outbox = Outbox(tmp_path / "outbox")
    assert settle_now(store, outbox) is None
    assert len(outbox) == 1
    store.close()


def test_a_full_disk_refuses_requests_and_keeps_the_books(tmp_path: Path, sqlite_url: str) -> None:
    store = open_store(sqlite_url, pool_size=1)
    with store.write() as db:
        price(db)
        who = customer(db, paid=10_000_000)
        reserve(db, who)
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
        db.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(10_000):
            begun.append(number)
            with store.write() as db:
                reserve(db, who, f"long name of a request {number}")

    begun: list[int] = []
    with pytest.raises(UnavailableError, match="full"):
        fill()
    # The settlement finds room in a page that is not full, or waits outside.
    outbox = Outbox(tmp_path / "outbox")
    settle_now(store, outbox)
    with store.read() as db:
        assert verify_books(db) == []
        count = sa.select(sa.func.count()).select_from(models.reservations)
        assert db.execute(count).scalar_one() == len(begun)  # the first one, less the last
    store.close()
    store = open_store(sqlite_url)
    outbox.deliver(store)
    with store.read() as db:
        assert reservations.reservation(db, "r1").charge == 140
    leases.recover(store, now=NOW + LEASE)
    with store.read() as db:
        assert balance(db, who.account_id).held == 0
        assert verify_books(db) == []
    store.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_broken_connection_keeps_nothing_and_the_next_one_works(
    store: Store, url: str, who: Customer, tmp_path: Path
) -> None:
    other = open_store(url, pool_size=1)

    def reserve_and_break() -> None:
        with other.write() as db:
            number = db.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            reserve(db, who, "r2")
            with store.write() as admin:
                admin.execute(sa.text("SELECT pg_terminate_backend(:n)"), {"n": number})
            reservations.settle(db, "r1", USAGE, finish="stop", now=NOW)

    with pytest.raises(UnavailableError):
        reserve_and_break()
    assert settle_now(other, Outbox(tmp_path)) is not None
    with store.read() as db, pytest.raises(NotFoundError):
        reservations.reservation(db, "r2")
    other.close()
    assert_charged_once(store, who)
