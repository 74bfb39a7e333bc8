"""Many at a time, and killed at any moment, on both databases."""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import ExitStack
from functools import reduce
from multiprocessing.process import BaseProcess
from operator import add
from pathlib import Path

import pytest
import sqlalchemy as sa

from dsv2.service.store import (
    Store,
    codes,
    idempotency,
    leases,
    ledger,
    migrations,
    models,
    open_store,
    reservations,
)
from dsv2.service.store.prices import cost, price_by_id
from dsv2.service.store.verify import sum_of_entries, verify_books
from tests.service.store import postgres, worker
from tests.service.store.make import LEASE, NOW, Customer, customer, price, reserve


def assert_sound(store: Store) -> None:
    with store.read() as db:
        assert sum_of_entries(db) == 0
        assert verify_books(db) == []
        lowest = sa.func.min(models.accounts.c.granted + models.accounts.c.paid)
        assert db.execute(sa.select(lowest)).scalar_one() >= 0


def test_two_hundred_at_a_time_reserve_no_more_than_there_is(store: Store, url: str) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=500, paid=199)  # for 3 requests of 200
    number = 15 if store.is_sqlite else 50  # of each of four processes; SQLite has one writer
    found = worker.run_all(
        worker.reserve_many, [(url, who, name, number) for name in ("a", "b", "c", "d")]
    )
    total = reduce(add, (one for [one] in found), Counter())
    assert total == {"open": 3, "InsufficientBalanceError": 4 * number - 3}
    with store.read() as db:
        assert ledger.balance(db, who.account_id).available == 99
    assert_sound(store)


def test_many_who_settle_one_request_settle_it_once(store: Store, url: str) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
    found = worker.run_all(worker.settle_one, [(url, 12, 1), (url, 12, 4)])
    said = set().union(*(charges for [charges] in found))
    assert said in ({120}, {180})
    with store.read() as db:
        assert {ledger.balance(db, who.account_id).spent} == said
        count = sa.select(sa.func.count()).where(models.transfers.c.kind == "charge")
        assert db.execute(count).scalar_one() == 1
    assert_sound(store)


def test_a_code_and_a_deposit_count_once_however_many_try(store: Store, url: str) -> None:
    with store.write() as db:
        ids = [customer(db, f"{n}@example.org").account_id for n in range(8)]
        code, token = codes.create_code(db, amount=7, actor="admin", now=NOW, max_uses=5)
    found = worker.run_all(worker.redeem, [(url, token, ids, "gift")] * 2)
    total = reduce(add, (one for [one] in found), Counter())
    assert total["redeemed"] == 5
    assert sum(total.values()) == 16
    with store.read() as db:
        balances = [ledger.balance(db, one) for one in ids]
        assert sum(one.granted for one in balances) == 35
        assert max(one.granted for one in balances) == 7
        assert sum(one.paid for one in balances) == 5
        assert codes.get_code(db, code.id).uses == 5
    assert_sound(store)


def test_a_key_sent_many_times_at_once_has_one_effect(store: Store) -> None:
    number = 8 if store.is_sqlite else 30  # writers of SQLite come one by one, each after a wait
    with store.write() as db:
        price(db)
        who = customer(db, paid=100_000)

    def one(place: int) -> str:
        with store.write() as db:
            idempotency.claim(
                db,
                who.account_id,
                "key",
                request_hash="h",
                request_id=f"r{place}",
                now=NOW,
                expires_at=NOW + LEASE,
            )
            return reserve(db, who, f"r{place}").state

    assert worker.in_threads(number, one) == {"open": 1, "InProgressError": number - 1}
    assert_sound(store)


def test_processes_that_start_together_make_the_tables_once(url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        if url.startswith("sqlite"):
            fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
        else:
            fresh = stack.enter_context(postgres.empty_database(url))
        worker.run_all(worker.upgrade, [(fresh,)] * 3)
        store = open_store(fresh)
        migrations.check(store)
        store.close()


def kill_writers(store: Store, url: str, folder: Path, kills: int, seed: int) -> None:
    """Two processes serve, are killed by chance and followed by others; then look at the books."""
    chance = random.Random(seed)
    with store.write() as db:
        price(db)
        people = [customer(db, f"{name}@example.org", granted=400, paid=400) for name in "ab"]
    names: list[str] = []

    def begin() -> tuple[BaseProcess, Path]:
        names.append(f"p{len(names)}")
        ready = folder / names[-1]
        return worker.start(worker.live, url, people, names[-1], str(ready)), ready

    running = [begin(), begin()]
    for _ in range(kills):
        process, ready = running.pop(0)
        while not ready.exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.12))
        process.kill()
        process.join()
        assert process.exitcode == -9
        running.append(begin())
        assert_sound(store)
    for process, _ in running:
        process.kill()
        process.join()
    assert_sound(store)
    assert_settled_by_name(store, people)


def assert_settled_by_name(store: Store, people: list[Customer]) -> None:
    """Recover what the dead have left: every request is charged for exactly what it took."""
    leases.recover(store, now=NOW + LEASE)
    assert_sound(store)
    seen = Counter()
    with store.read() as db:
        for row in db.execute(sa.select(models.reservations)):
            seen[row.state, row.finish] += 1
            assert row.state in ("settled", "released")
            if row.state == "settled":
                expected = worker.usage_of(row.id)
                assert row.charge == cost(price_by_id(db, row.price_id), expected)
            else:
                assert row.charge == 0
        for who in people:
            assert ledger.balance(db, who.account_id).held == 0
    assert seen["settled", "stop"] > 0
    assert leases.recover(store, now=NOW + LEASE) == []


def test_books_survive_killed_writers(store: Store, url: str, tmp_path: Path) -> None:
    kill_writers(store, url, tmp_path, kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_books_survive_a_hundred_killed_writers(store: Store, url: str, tmp_path: Path) -> None:
    kill_writers(store, url, tmp_path, kills=100, seed=2)


def kill_before_settling(store: Store, url: str, folder: Path, kills: int) -> None:
    """The answer is whole, its settlement under way, and the process dies: charged once."""
    chance = random.Random(3)
    with store.write() as db:
        price(db)
        who = customer(db, paid=200 * (kills + 1))
    for number in range(kills):
        name = f"q{number}"
        ready = folder / name
        process = worker.start(worker.finish_and_wait, url, who, name, str(ready))
        while not ready.exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join()
        with store.read() as db:
            assert reservations.reservation(db, name).state == "open"
    assert len(leases.recover(store, now=NOW + LEASE)) == kills
    with store.read() as db:
        found = db.execute(sa.select(models.reservations)).all()
        assert len(found) == kills
        for row in found:
            expected = cost(price_by_id(db, row.price_id), worker.usage_of(row.id))
            assert (row.state, row.charge, row.finish) == ("settled", expected, "recovered")
    assert_sound(store)


def test_a_kill_before_settling_charges_once(store: Store, url: str, tmp_path: Path) -> None:
    kill_before_settling(store, url, tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_before_settling(store: Store, url: str, tmp_path: Path) -> None:
    kill_before_settling(store, url, tmp_path, kills=100)
