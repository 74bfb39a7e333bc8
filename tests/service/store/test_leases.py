"""What becomes of reservations that nobody ends."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, leases, ledger, reservations
from dsv2.service.store.ledger import balance
from dsv2.service.store.prices import Usage
from dsv2.service.store.verify import verify_books
from tests.service.store.make import LEASE, NOW, customer, price, reserve, settle


def test_one_that_cannot_be_ended_holds_up_no_other(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        for name in ("r1", "r2"):
            reserve(db, who, name)
        leases.renew(db, "process", dict.fromkeys(("r1", "r2"), Usage(10)), expires_at=NOW)
        # Somebody has meddled with the books: the cause of the first charge is taken.
        moves = {"granted": 1, "issued": -1}
        ledger.post(db, who.account_id, "grant", moves, cause="charge:r1", actor="x", now=NOW)
    assert [one.ask.id for one in leases.recover(store, now=NOW)] == ["r2"]
    [record] = caplog.records
    assert "r1" in record.getMessage()
    with store.read() as db:
        assert balance(db, who.account_id).held == 200


def test_what_a_process_does_not_know_of_is_released(store: Store) -> None:
    """Its reserving broke in the commit, so it was told that nothing was kept."""
    later = NOW + LEASE
    with store.write() as db:
        price(db)
        who = customer(db, paid=10_000)
        for name in ("known", "stray", "ended"):
            reserve(db, who, name, owner="mine")
        reserve(db, who, "new", owner="mine", now=later)
        reserve(db, who, "other", owner="another")
        settle(db, "ended")
    for made_before, expected in ((NOW, []), (later, ["stray"]), (later, [])):
        ended = leases.release_strays(store, "mine", {"known"}, made_before=made_before, now=later)
        assert [(one.ask.id, one.state) for one in ended] == [
            (name, "released") for name in expected
        ]
    with store.read() as db:
        for name in ("known", "new", "other"):
            assert reservations.reservation(db, name).state == "open"
        assert balance(db, who.account_id).held == 600
        assert verify_books(db) == []


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_renewing_locks_nothing_out_of_turn(store: Store) -> None:
    """A reservation that is made meanwhile has its own end, and may be another's to lock."""
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who, "r2")
    made: list[str] = []

    def make(*event: Any) -> None:
        if event[2].startswith("UPDATE reservations") and not made:
            made.append("r1")
            with store.write() as db:
                reserve(db, who, "r1")

    sa.event.listen(store.engine, "before_cursor_execute", make)
    try:
        with store.write() as db:
            assert leases.renew(db, "process", {}, expires_at=NOW + 5 * LEASE) == {"r2"}
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", make)
    with store.read() as db:
        ends = [reservations.reservation(db, name).expires_at - NOW for name in ("r1", "r2")]
    assert ends == [LEASE, 5 * LEASE]
