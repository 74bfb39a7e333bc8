"""The soak: a short one for real, and whether it would notice what must not happen."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak.books import Account, Heard, check_books, check_ended
from benchmarks.soak.platform import Platform
from benchmarks.soak.resources import Sample, look, trend
from benchmarks.soak.run import Run
from benchmarks.soak.soak import soak
from dsv2.service.store import Store, idempotency, migrations, open_store
from dsv2.service.store.idempotency import Answer
from dsv2.service.store.prices import Usage
from tests.service.store.make import (
    LEASE,
    NOW,
    Customer,
    customer,
    deposit,
    price,
    reserve,
    settle,
    wipe,
)

SEED = "DSV2_SEED"
USAGE = Usage(10, 0, 2)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_short_soak(tiny_folder: Path) -> None:
    """Fault F66."""
    seed = int(os.environ.get(SEED) or random.randrange(2**32))

    async def work(folder: Path) -> None:
        with Platform(folder, str(tiny_folder), renew_seconds=1.0) as platform:
            outcome = await soak(Run(platform, seed), 30.0)
        log = (folder / "log").read_text(encoding="utf-8", errors="replace")
        assert outcome.problems == [], f"{SEED}={seed}: {outcome.problems}\n{log[-4000:]}"
        assert outcome.kills.total() and outcome.full
        assert outcome.heard.usage and outcome.heard.keys and outcome.heard.counts["canary"]
        assert [one.kind for one in outcome.trends] == ["api", "engine"]

    with tempfile.TemporaryDirectory(prefix="dsv2-soak-") as folder:
        asyncio.run(work(Path(folder)))


# What it would notice


@pytest.fixture(scope="module")
def _opened() -> Iterator[Store]:
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="dsv2-soak-", dir=memory) as folder:
        store = open_store(f"sqlite:///{folder}/store.db")
        migrations.upgrade(store)
        yield store
        store.close()


@pytest.fixture
def books(_opened: Store) -> Store:
    wipe(_opened)
    with _opened.write() as db:
        price(db)
    return _opened


@pytest.fixture
def who(books: Store) -> Customer:
    with books.write() as db:
        who = customer(db, paid=10_000)
        reserve(db, who)
        settle(db, usage=USAGE)
    return who


def account(who: Customer) -> Account:
    return Account("careful", who.user_id, who.account_id, who.token)


def test_what_was_told_and_is_so(books: Store, who: Customer) -> None:
    heard = Heard(usage={"r1": USAGE})
    nobody = Account("nobody", "", _other(books).account_id, "")
    assert check_ended(books, heard, nobody) == []
    assert check_books(books, NOW + LEASE) == []


def _other(books: Store) -> Customer:
    with books.write() as db:
        return customer(db, "b@example.org", paid=1)


def test_what_was_told_and_is_not_so(books: Store, who: Customer) -> None:
    nobody = Account("nobody", "", _other(books).account_id, "")
    with books.write() as db:
        reserve(db, who, "r2")
    told = Heard(usage={"r1": replace(USAGE, completion_tokens=3), "r2": USAGE}, refunds={"r1"})
    told.deposits[who.account_id, "never"] = 5
    open_one, wrong, refund, unsettled, deposit = check_ended(books, told, nobody)
    assert open_one == "1 requests are still held"
    assert "r1 told" in wrong and "charge of 140" in wrong
    assert refund == "request r1 was given 0 back"
    assert "r2 told" in unsettled and "is open" in unsettled
    assert "never of 5" in deposit
    [left] = check_books(books, NOW + 1)
    assert left == "request r2 is held for ever"


def test_a_key_that_has_cost_twice(books: Store, who: Customer) -> None:
    with books.write() as db:
        arguments = {"request_hash": "h", "now": NOW, "expires_at": NOW + LEASE}
        idempotency.claim(db, who.account_id, "k", request_id="r2", **arguments)
        reserve(db, who, "r2")
        settle(db, "r2", USAGE)
        answer = Answer(200, "text/plain", b"")
        idempotency.answer(db, who.account_id, "k", request_id="r2", response=answer)
    heard = Heard(usage={"r2": USAGE}, keys={"k": "r2"})
    assert check_ended(books, heard, account(who)) == ["1 keys cost 140, but 280 are spent"]
    heard.keys["k"] = "r1"
    assert "key k was answered by r1, then by r2" in check_ended(books, heard, account(who))


def test_money_from_nowhere(books: Store, who: Customer) -> None:
    with books.write() as db:
        deposit(db, who.account_id, "paid", 5, "more")
        db.exec_driver_sql("UPDATE accounts SET paid = paid + 1, issued = issued + 1")
    assert any("its entries" in one for one in check_books(books, NOW))


def samples(memory: float, handles: int, minutes: int = 60) -> list[Sample]:
    """A look every ten seconds, at what grows by so much a minute."""
    return [
        Sample(10.0 * n, "api", 1, 200 + memory * n / 6, 20 + handles * n // (6 * minutes))
        for n in range(6 * minutes)
    ]


def test_what_is_flat_and_what_grows() -> None:
    flat = samples(0.1, 3)
    flat[100] = replace(flat[100], memory=900.0)
    assert trend(flat).problems == []
    [grown] = trend(samples(0.6, 0)).problems
    assert "grows by 0.60 MiB a minute, allowed is 0.33" in grown
    [left] = trend(samples(0.0, 40)).problems
    assert "handles" in left
    assert trend(samples(2.0, 0, minutes=3)).problems == []
    with pytest.raises(ValueError, match="too few"):
        trend(flat[:5])


def test_a_process_is_looked_at() -> None:
    found = look(1.0, "api", os.getpid())
    assert found.memory > 10 and found.handles > 2
