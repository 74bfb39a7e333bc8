"""Requests that are sent again."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, idempotency, leases, open_store, reservations
from dsv2.service.store.errors import ConflictError, FieldError
from dsv2.service.store.idempotency import Answer, InProgressError, hash_request
from dsv2.service.store.ledger import balance
from dsv2.service.store.prices import Usage
from dsv2.service.store.verify import verify_books
from tests.service.store.make import LEASE, NOW, Customer, customer, price, reserve, settle

DAY = 86_400_000
HASH = hash_request("/v1/completions", b"{}")
ANSWER = Answer(200, "application/json", b'{"text":"\xc3\xa9\x00"}')


def begin(
    store: Store, who: Customer, request_id: str, *, hashed: str = HASH, now: int = NOW
) -> Answer | None:
    with store.write() as db:
        known = idempotency.claim(
            db,
            who.account_id,
            "key",
            request_hash=hashed,
            request_id=request_id,
            now=now,
            expires_at=now + DAY,
        )
        if known is None:
            reserve(db, who, request_id, now=now)
        return known


def end(store: Store, who: Customer, request_id: str, response: Answer = ANSWER) -> None:
    with store.write() as db:
        settle(db, request_id)
        idempotency.answer(db, who.account_id, "key", request_id=request_id, response=response)


@pytest.fixture
def who(store: Store) -> Customer:
    with store.write() as db:
        price(db)
        return customer(db, paid=1000)


def spent(store: Store, who: Customer) -> int:
    with store.read() as db:
        assert verify_books(db) == []
        return balance(db, who.account_id).spent


@pytest.mark.parametrize("response", [ANSWER, Answer(500, "text/plain", b"")])
def test_a_repeated_request_gets_the_same_answer_and_costs_once(
    store: Store, who: Customer, response: Answer
) -> None:
    assert begin(store, who, "r1") is None
    with pytest.raises(InProgressError):
        begin(store, who, "r2")
    end(store, who, "r1", response)
    assert begin(store, who, "r3") == response
    assert spent(store, who) == 140
    with pytest.raises(ConflictError, match="no longer this request's"):
        end(store, who, "r1")


def test_another_request_may_not_use_the_key(store: Store, who: Customer) -> None:
    begin(store, who, "r1")
    for body in (b"{ }", b""):
        with pytest.raises(ConflictError, match="another request"):
            begin(store, who, "r2", hashed=hash_request("/v1/completions", body))
    assert hash_request("/v1/chat", b"{}") != HASH
    assert hash_request("/v1/completions\0", b"{}") != hash_request("/v1/completions", b"\0{}")


def test_another_account_has_keys_of_its_own(store: Store, who: Customer) -> None:
    begin(store, who, "r1")
    end(store, who, "r1")
    with store.write() as db:
        other = customer(db, "b@example.org", paid=1000)
    assert begin(store, other, "r2") is None


def test_after_a_crash_the_next_attempt_takes_over_and_one_is_paid(
    store: Store, who: Customer
) -> None:
    begin(store, who, "r1")
    with store.write() as db:
        usage = {"r1": Usage(10, 0, 1)}
        leases.renew(db, "process", usage, expires_at=NOW + LEASE)
    with pytest.raises(InProgressError):
        begin(store, who, "r2")
    assert [one.charge for one in leases.recover(store, now=NOW + LEASE)] == [120]
    assert spent(store, who) == 120
    assert begin(store, who, "r2", now=NOW + LEASE) is None
    assert spent(store, who) == 0
    # The lost attempt comes back from the dead: it has nothing to say any more.
    with pytest.raises(ConflictError, match="no longer"):
        end(store, who, "r1")
    end(store, who, "r2")
    assert begin(store, who, "r3", now=NOW + LEASE) == ANSWER
    assert spent(store, who) == 140


def test_answers_are_forgotten_in_time(store: Store, who: Customer) -> None:
    begin(store, who, "r1")
    with store.write() as db:
        assert idempotency.forget_answers(db, now=NOW + DAY) == 0
    end(store, who, "r1")
    assert begin(store, who, "r2", now=NOW + DAY) is None
    end(store, who, "r2")
    with store.write() as db:
        assert idempotency.forget_answers(db, now=NOW + DAY) == 0
        assert idempotency.forget_answers(db, now=NOW + 2 * DAY) == 1


def test_what_is_no_key(store: Store, who: Customer) -> None:
    options = {"request_hash": HASH, "request_id": "r", "now": NOW, "expires_at": NOW}
    for key in ("", "x" * 256, "a\0", "\ud800"):
        with pytest.raises(FieldError, match="Idempotency-Key"), store.write() as db:
            idempotency.claim(db, who.account_id, key, **options)


def test_an_answer_has_a_size(store: Store, who: Customer) -> None:
    begin(store, who, "r1")
    huge = Answer(200, "text/plain", bytes(idempotency.MAX_RESPONSE + 1))
    with pytest.raises(FieldError, match="allowed are 16777216"):
        end(store, who, "r1", huge)
    assert spent(store, who) == 0


def test_only_what_a_crash_cut_off_is_given_back(store: Store, who: Customer) -> None:
    """A client that reads an answer, leaves before its end and asks again pays for both."""
    begin(store, who, "r1")
    with store.write() as db:
        reservations.settle(db, "r1", Usage(10, 0, 5), finish="disconnect", now=NOW)
    assert begin(store, who, "r2") is None
    assert spent(store, who) == 200
    end(store, who, "r2")
    assert begin(store, who, "r3") == ANSWER
    assert spent(store, who) == 340


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_key_that_is_dropped_this_moment_is_an_attempt_under_way(
    store: Store, who: Customer
) -> None:
    begin(store, who, "r1")
    with store.write() as db:
        reservations.release(db, "r1", finish="abort", now=NOW)

    dropped: list[int] = []

    def drop(*event: Any) -> None:
        if event[2].startswith("SELECT idempotency_keys") and not dropped:
            with store.write() as db:
                dropped.append(idempotency.forget_answers(db, now=NOW + DAY))

    sa.event.listen(store.engine, "before_cursor_execute", drop)
    try:
        with pytest.raises(InProgressError):
            begin(store, who, "r2", now=NOW + DAY - 1)
    finally:
        sa.event.remove(store.engine, "before_cursor_execute", drop)
    assert dropped == [1]
    assert begin(store, who, "r2") is None


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_claim_under_way_holds_up_no_settlement(store: Store, url: str, who: Customer) -> None:
    hasty = open_store(url, timeout=0.1)
    with store.write() as db:
        reserve(db, who, "r1")
    options = {"request_hash": HASH, "request_id": "r2", "now": NOW, "expires_at": NOW + DAY}
    with store.write() as db:
        idempotency.claim(db, who.account_id, "key", **options)
        with hasty.write() as other:
            assert settle(other, "r1").charge == 140
    hasty.close()
