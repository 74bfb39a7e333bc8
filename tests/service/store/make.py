"""What most tests of the store begin with."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import Store, keys, ledger, models, reservations, settings, users
from dsv2.service.store.keys import KeyLimits
from dsv2.service.store.prices import Price, Usage, set_price
from dsv2.service.store.reservations import Ask, Reservation

NOW = 1_800_000_000_000
LEASE = 60_000
MODEL = "tiny"
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Customer:
    """Somebody with an account and a key."""

    user_id: str
    account_id: str
    key_id: str
    token: str


def price(db: Connection, model: str = MODEL, unit: int = 1) -> Price:
    """A price at which a token of each kind costs 10, 1 and 20 micro-units, times ``unit``."""
    million = 1_000_000 * unit
    return set_price(
        db,
        model,
        input=10 * million,
        cached_input=million,
        output=20 * million,
        actor="test",
        now=NOW,
    )


def customer(
    db: Connection,
    email: str = "a@example.org",
    *,
    granted: int = 0,
    paid: int = 0,
    limits: KeyLimits | None = None,
    unlimited: bool = False,
) -> Customer:
    """Somebody new with money and a key."""
    user = users.add_user(db, email, now=NOW, unlimited=unlimited)
    for book, amount in (("granted", granted), ("paid", paid)):
        if amount:
            deposit(db, user.account_id, book, amount)
    key, token = keys.create_key(
        db, account_id=user.account_id, user_id=user.id, name="key", now=NOW, limits=limits
    )
    return Customer(user.id, user.account_id, key.id, token)


def deposit(db: Connection, account_id: str, book: str, amount: int, cause: str = "first") -> bool:
    return ledger.deposit(
        db,
        account_id,
        book=book,
        amount=amount,
        cause=f"{cause}:{book}:{account_id}",
        actor="test",
        now=NOW,
    )


def reserve(
    db: Connection,
    who: Customer,
    request_id: str = "r1",
    *,
    prompt: int = 10,
    answer: int = 5,
    owner: str = "process",
    now: int = NOW,
    key: bool = True,
) -> Reservation:
    """Reserve for 10 prompt tokens and up to 5 more: at ``price``, 200 micro-units."""
    ask = Ask(request_id, who.account_id, who.key_id if key else None, MODEL, prompt, answer)
    return reservations.reserve(db, ask, owner=owner, now=now, expires_at=now + LEASE)


def settle(
    db: Connection, request_id: str = "r1", usage: Usage | None = None, now: int = NOW
) -> Reservation:
    usage = usage or Usage(10, 0, 2)
    return reservations.settle(db, request_id, usage, finish="stop", now=now)


def cheap_passwords(store: Store, now: int = NOW) -> None:
    """The least argon2 can do: tests are no attackers."""
    with store.write() as db:
        for name, value in (("time_cost", 1), ("memory_kib", 8), ("parallelism", 1)):
            settings.change_setting(db, f"argon2_{name}", value, actor="cli", now=now)


def wipe(store: Store) -> None:
    """Empty all tables, past the triggers that otherwise forbid it."""
    tables = models.metadata.sorted_tables
    with store.write() as db:
        if not store.is_sqlite:
            db.exec_driver_sql("SET LOCAL session_replication_role = replica")
            names = ", ".join(table.name for table in tables)
            db.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
            return
        triggers = db.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
        found = list(triggers)
        for name, _ in found:
            db.exec_driver_sql(f"DROP TRIGGER {name}")
        for table in reversed(tables):
            db.execute(sa.delete(table))
        for _, sql in found:
            db.exec_driver_sql(sql)
