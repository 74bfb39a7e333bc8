"""Books and reservations, one at a time, on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, leases, ledger, models, reservations
from dsv2.service.store.errors import (
    BudgetError,
    ConflictError,
    FieldError,
    InsufficientBalanceError,
    NotFoundError,
    SuspendedError,
)
from dsv2.service.store.keys import KeyLimits, get_key
from dsv2.service.store.ledger import balance
from dsv2.service.store.prices import Usage
from dsv2.service.store.usage import daily
from dsv2.service.store.verify import sum_of_entries, verify_books
from tests.service.store.make import (
    LEASE,
    MODEL,
    NOW,
    customer,
    deposit,
    price,
    reserve,
    settle,
)


def test_granted_money_is_spent_before_paid_money(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=150, paid=1000)
        assert reserve(db, who).hold == 200
        assert balance(db, who.account_id).available == 950
        ended = settle(db, usage=Usage(10, 4, 5))
        assert (ended.state, ended.cost, ended.charge) == ("settled", 164, 164)
        after = balance(db, who.account_id)
        assert (after.granted, after.paid, after.held, after.spent) == (0, 986, 0, 164)
        assert ledger.moves_of(db, "charge:r1") == {"granted": -150, "paid": -14, "spent": 164}
        newest, *_ = ledger.transfers_of(db, who.account_id)
        assert (newest.kind, newest.actor, sum(newest.moves.values())) == ("charge", "process", 0)
        assert sum_of_entries(db) == 0
        assert verify_books(db) == []


def test_what_ended_once_stays_as_it_ended(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
        first = settle(db)
    for attempt in (Usage(10, 0, 5), Usage()):
        with store.write() as db:
            assert settle(db, usage=attempt) == first
            assert reservations.release(db, "r1", finish="late", now=NOW) == first
    with store.read() as db:
        assert balance(db, who.account_id).spent == first.charge == 140
        assert verify_books(db) == []
    with store.write() as db, pytest.raises(NotFoundError, match="no reservation 'r2'"):
        settle(db, "r2")


def test_released_money_is_whole_again(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=200)
        reserve(db, who)
        ended = reservations.release(db, "r1", finish="abort", now=NOW)
        assert (ended.state, ended.charge, ended.finish) == ("released", 0, "abort")
        assert balance(db, who.account_id).available == 200
        assert daily(db, first="2027-01-01", last="2027-12-31") == []
        assert verify_books(db) == []


def test_what_cannot_be_paid_is_refused_and_leaves_no_trace(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=100, paid=99)
    with pytest.raises(InsufficientBalanceError) as caught, store.write() as db:
        reserve(db, who)
    assert (caught.value.needed, caught.value.available) == (200, 199)
    assert str(caught.value) == "the request may cost USD 0.0002, USD 0.000199 are available"
    with store.read() as db:
        assert balance(db, who.account_id).held == 0
        with pytest.raises(NotFoundError):
            reservations.reservation(db, "r1")


def test_asking_twice_holds_once(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        first = reserve(db, who)
    with store.write() as db:
        assert reserve(db, who) == first
        assert balance(db, who.account_id).held == 200
    with pytest.raises(ConflictError, match="another request"), store.write() as db:
        reserve(db, who, answer=6)
    with store.write() as db:
        settle(db)
        # Nothing is held for it any more: it may not be served.
        with pytest.raises(ConflictError, match="has ended"):
            reserve(db, who)


def test_more_tokens_than_were_asked_for_are_seen_but_not_charged(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=200)
        reserve(db, who)
        ended = settle(db, usage=Usage(10, 0, 50))
        assert (ended.cost, ended.charge) == (1100, 200)
        assert verify_books(db) == []


def test_an_unlimited_account_pays_nothing(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, unlimited=True)
        assert reserve(db, who).hold == 0
        ended = settle(db)
        assert (ended.cost, ended.charge) == (140, 0)
        assert verify_books(db) == []


def test_a_request_pays_the_price_of_its_beginning(store: Store) -> None:
    with store.write() as db:
        first = price(db)
        who = customer(db, paid=10_000)
        reserve(db, who)
        second = price(db, unit=3)
        assert (first.version, second.version) == (1, 2)
        reserve(db, who, "r2")
        assert settle(db).charge == 140
        assert settle(db, "r2").charge == 420
        assert verify_books(db) == []


def test_a_deposit_happens_once_for_its_cause(store: Store) -> None:
    with store.write() as db:
        who = customer(db)
        assert deposit(db, who.account_id, "paid", 70)
    with store.write() as db:
        assert not deposit(db, who.account_id, "paid", 70)
        assert balance(db, who.account_id).paid == 70
    with pytest.raises(ConflictError, match="another transfer"), store.write() as db:
        deposit(db, who.account_id, "paid", 71)
    with pytest.raises(NotFoundError), store.write() as db:
        deposit(db, "acct_0", "paid", 70)


def test_amounts_are_positive_bounded_integers(store: Store) -> None:
    with store.write() as db:
        who = customer(db)
        for amount in (0, -5, 1.5, True, 10**16):
            with pytest.raises(FieldError, match=r"amount is .* allowed is an integer"):
                deposit(db, who.account_id, "paid", amount)  # type: ignore[arg-type]


def test_only_free_money_can_be_taken_out(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=100, paid=200)
        reserve(db, who)
    taken = {"actor": "admin", "now": NOW}
    with pytest.raises(InsufficientBalanceError), store.write() as db:
        ledger.withdraw(db, who.account_id, book="paid", amount=101, cause="w1", **taken)
    with store.write() as db:
        assert ledger.withdraw(db, who.account_id, book="paid", amount=100, cause="w1", **taken)
        assert settle(db, usage=Usage(10, 0, 5)).charge == 200
        assert balance(db, who.account_id).total == 0
        assert verify_books(db) == []


def test_a_refund_goes_back_where_it_came_from(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, granted=100, paid=100, limits=KeyLimits(budget=500))
        reserve(db, who)
        with pytest.raises(ConflictError, match="has not ended"):
            reservations.refund(db, "r1", actor="admin", now=NOW)
        settle(db)
    for _ in range(2):
        with store.write() as db:
            assert reservations.refund(db, "r1", actor="admin", now=NOW + 5).refunded == 140
            after = balance(db, who.account_id)
            assert (after.granted, after.paid, after.spent) == (100, 100, 0)
            assert get_key(db, who.account_id, who.key_id).spent == 0
            assert verify_books(db) == []


def test_a_key_spends_no_more_than_its_budget(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=10_000, limits=KeyLimits(budget=300))
        reserve(db, who)
    with pytest.raises(BudgetError) as caught, store.write() as db:
        reserve(db, who, "r2")
    assert (caught.value.needed, caught.value.left) == (200, 100)
    assert str(caught.value).endswith("USD 0.0002, the key's budget has USD 0.0001 left")
    with store.write() as db:
        settle(db, usage=Usage(10, 0, 0))
        reserve(db, who, "r2")
        settle(db, "r2", usage=Usage(10, 0, 0))
        key = get_key(db, who.account_id, who.key_id)
        assert (key.spent, key.held, key.last_used_at) == (200, 0, NOW)
        assert reserve(db, who, "r3", key=False).hold == 200
        assert verify_books(db) == []


def test_a_budget_begins_anew_with_its_period_once(store: Store) -> None:
    day = 86_400_000
    with store.write() as db:
        price(db)
        who = customer(db, paid=10_000, limits=KeyLimits(budget=250, budget_period="day"))
        reserve(db, who)
        settle(db)
        with pytest.raises(BudgetError):
            reserve(db, who, "r2")
    with store.write() as db:
        reserve(db, who, "r3", now=NOW + day)
        settle(db, "r3", now=NOW + day)
        assert get_key(db, who.account_id, who.key_id).spent == 140
        # The clock is set back: nothing begins anew.
        with pytest.raises(BudgetError):
            reserve(db, who, "r4", now=NOW)


def test_nobody_uses_the_key_of_another_account(store: Store) -> None:
    with store.write() as db:
        price(db)
        mine, other = customer(db, paid=1000), customer(db, "b@example.org", paid=1000)
        ask = reservations.Ask("r1", mine.account_id, other.key_id, MODEL, 1, 1)
        with pytest.raises(NotFoundError, match="no key"):
            reservations.reserve(db, ask, owner="p", now=NOW, expires_at=NOW + LEASE)


def test_a_suspended_account_reserves_nothing_and_ends_what_it_has(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
        ledger.set_status(db, who.account_id, "suspended", actor="admin", now=NOW)
        assert settle(db).charge == 140
    with pytest.raises(SuspendedError, match="account"), store.write() as db:
        reserve(db, who, "r2")
    with store.write() as db:
        ledger.set_status(db, who.account_id, "active", actor="admin", now=NOW)
        assert reserve(db, who, "r2").state == "open"


def test_what_a_dead_process_leaves_is_settled_for_what_it_wrote_down(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=10_000)
        for name in ("begun", "idle", "ended"):
            reserve(db, who, name, owner="old")
        reserve(db, who, "mine", owner="new")
        settle(db, "ended")
        later = NOW + LEASE
        open_ids = leases.renew(
            db,
            "old",
            {"begun": Usage(10, 0, 3), "ended": Usage(10, 0, 5), "mine": Usage(1, 0, 0)},
            expires_at=later,
        )
        assert open_ids == {"begun", "idle"}
        # Counts that come late are lower and change nothing.
        leases.renew(db, "old", {"begun": Usage(10, 0, 1)}, expires_at=later)
    assert leases.recover(store, now=later - 1, spare="new") == []
    ended = leases.recover(store, now=later, spare="new")
    assert [(one.ask.id, one.state, one.charge) for one in ended] == [
        ("begun", "settled", 160),
        ("idle", "released", 0),
    ]
    with store.read() as db:
        assert reservations.reservation(db, "mine").state == "open"
        assert reservations.reservation(db, "ended").charge == 140
        assert balance(db, who.account_id).held == 200
        assert verify_books(db) == []
    # A process that is known to be dead need not have expired.
    assert [one.ask.id for one in leases.recover(store, now=NOW, dead="new")] == ["mine"]


def test_what_is_written_in_the_books_stays(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
        settle(db)
    for name in models.APPEND_ONLY:
        table = models.metadata.tables[name]
        column = next(iter(table.primary_key))
        with store.read() as db:
            row = dict(db.execute(sa.select(table)).mappings().first() or {})
        statements: list[sa.Executable] = [
            sa.update(table).values({column: column}),
            sa.delete(table),
        ]
        if store.is_sqlite:
            statements.append(sa.insert(table).prefix_with("OR REPLACE").values(row))
        else:
            statements.append(sa.text(f"TRUNCATE {name} CASCADE"))
        for statement in statements:
            with pytest.raises(sa.exc.DatabaseError, match="append-only"), store.write() as db:
                db.execute(statement)


def test_the_database_itself_keeps_the_books_balanced(store: Store) -> None:
    with store.write() as db:
        who = customer(db, paid=1000)
    change = sa.update(models.accounts).where(models.accounts.c.id == who.account_id)
    for values in ({"paid": -1}, {"held": 1001}, {"spent": 1}, {"granted": 5}, {"issued": 0}):
        with pytest.raises(sa.exc.IntegrityError), store.write() as db:
            db.execute(change.values(values))


def test_disagreements_are_found(store: Store) -> None:
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
        settle(db)
        reserve(db, who, "r2")
        assert verify_books(db) == []
        columns = models.accounts.c
        mine = columns.id == who.account_id
        changes = {
            "paid, its entries": sa.update(models.accounts)
            .where(mine)
            .values(paid=columns.paid + 5, issued=columns.issued + 5),
            "hold 7, open": sa.update(models.accounts).where(mine).values(held=7),
            "charge of 139, transferred 140": sa.update(models.reservations)
            .where(models.reservations.c.id == "r1")
            .values(charge=139),
            "its days to": sa.update(models.usage_daily).values(requests=9),
        }
        for words, change in changes.items():
            with db.begin_nested() as undo:
                db.execute(change)
                assert any(words in problem for problem in verify_books(db)), words
                undo.rollback()
        with db.begin_nested() as undo:
            lone = {"transfer_id": 1, "book": "granted", "amount": 3}
            db.execute(sa.insert(models.entries).values(lone))
            assert "transfer 1 sums to 3" in verify_books(db)
            assert sum_of_entries(db) == 3
            undo.rollback()
        assert verify_books(db) == []


def test_whatever_was_reserved_can_be_settled(store: Store) -> None:
    longest = "r" * reservations.MAX_ID
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        with pytest.raises(FieldError, match="id is"):
            reserve(db, who, longest + "r")
        reserve(db, who, longest)
        assert settle(db, longest).charge == 140
        assert reservations.refund(db, longest, actor="admin", now=NOW).refunded == 140
        assert verify_books(db) == []


def test_nobody_takes_the_cause_of_a_request(store: Store) -> None:
    options = {"book": "paid", "amount": 5, "actor": "admin", "now": NOW}
    with store.write() as db:
        price(db)
        who = customer(db, paid=1000)
        reserve(db, who)
        for cause in ("charge:r1", "refund:r1"):
            for move in (ledger.deposit, ledger.withdraw):
                with pytest.raises(FieldError, match="cause"):
                    move(db, who.account_id, cause=cause, **options)  # type: ignore[operator]
        assert settle(db).charge == 140


def test_an_account_takes_no_more_than_its_books_can_count(store: Store) -> None:
    full = models.MAX_ISSUED - 5
    with store.write() as db:
        who = customer(db)
        db.execute(sa.update(models.accounts).values(paid=full, issued=full))
        with pytest.raises(FieldError, match="amount is 6, the account has room for 5"):
            deposit(db, who.account_id, "granted", 6)
        assert deposit(db, who.account_id, "granted", 5)
