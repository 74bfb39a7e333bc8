"""What must be true of the books, whatever was killed and whenever."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import Store, ledger, models
from dsv2.service.store.prices import Usage, cost, price_by_id
from dsv2.service.store.reservations import reservation
from dsv2.service.store.verify import sum_of_entries, verify_books


@dataclass(frozen=True)
class Account:
    """Somebody who asks.

    Attributes:
        name: of the account in messages.
        user_id: whose it is.
        account_id: who pays.
        secret: of the key, an administrator's of the session.
    """

    name: str
    user_id: str
    account_id: str
    secret: str


@dataclass
class Heard:
    """What clients were told, and what they have asked for that must happen once.

    Attributes:
        usage: by request, that an answer has said to the end.
        latest: of these requests.
        keys: by idempotency key, the request that has answered; empty where the client knows only
            that there was an answer.
        deposits: micro-units by account and cause, that were confirmed.
        refunds: requests that were refunded, as was confirmed.
        counts: of what happened, for people.
        problems: what must not happen.
    """

    usage: dict[str, Usage] = field(default_factory=dict)
    latest: deque[str] = field(default_factory=lambda: deque(maxlen=1000))
    keys: dict[str, str] = field(default_factory=dict)
    deposits: dict[tuple[str, str], int] = field(default_factory=dict)
    refunds: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def check_books(store: Store, born: int) -> list[str]:
    """What is wrong with the books while requests are under way.

    Args:
        store: the database.
        born: when the present life of the platform began, in its own milliseconds: whatever was
            held before must have been let go.
    """
    columns = models.reservations.c
    lowest = sa.func.min(
        models.accounts.c.granted + models.accounts.c.paid - models.accounts.c.held
    )
    left = sa.select(columns.id).where(columns.state == "open", columns.created_at < born)
    with store.read() as db:
        problems = verify_books(db)
        if (total := sum_of_entries(db)) != 0:
            problems.append(f"all entries sum to {total}")
        if (least := db.execute(sa.select(lowest)).scalar_one()) < 0:
            problems.append(f"an account has {least} available")
        problems += [f"request {one} is held for ever" for one in db.execute(left).scalars()]
    return problems


def check_ended(store: Store, heard: Heard, careful: Account) -> list[str]:
    """What is wrong once nothing is under way: everything that clients were told must be so.

    Args:
        store: the database.
        heard: what they were told.
        careful: who sends every request with an idempotency key, until it is answered.
    """
    count = count_open(store)
    with store.read() as db:
        return [
            *([f"{count} requests are still held"] if count else []),
            *_told(db, heard),
            *_keys(db, heard, careful),
            *_moved(db, heard),
        ]


def _told(db: Connection, heard: Heard) -> list[str]:
    problems = []
    for request_id, told in heard.usage.items():
        found = reservation(db, request_id)
        price = price_by_id(db, found.price_id)
        right = (found.state, found.usage, found.charge) == ("settled", told, cost(price, told))
        if not right:
            problems.append(
                f"request {request_id} told {told}, and is {found.state} ({found.finish}) with "
                f"{found.usage} and a charge of {found.charge}"
            )
        if found.refunded != (found.charge if request_id in heard.refunds else 0):
            problems.append(f"request {request_id} was given {found.refunded} back")
    return problems


def _keys(db: Connection, heard: Heard, careful: Account) -> list[str]:
    """Each key has cost what its one answer costs, and its attempts nothing besides."""
    problems, answered = [], {}
    for key, request_id in heard.keys.items():
        query = sa.select(models.idempotency_keys.c.request_id).where(
            models.idempotency_keys.c.account_id == careful.account_id,
            models.idempotency_keys.c.key == key,
        )
        last = str(db.execute(query).scalar_one())
        if request_id and last != request_id:
            problems.append(f"key {key} was answered by {request_id}, then by {last}")
        answered[last] = reservation(db, last)
    right = sum(one.charge - one.refunded for one in answered.values())
    spent = ledger.balance(db, careful.account_id).spent
    if spent != right:
        problems.append(f"{len(answered)} keys cost {right}, but {spent} are spent")
    return problems


def _moved(db: Connection, heard: Heard) -> list[str]:
    problems = []
    for (account_id, cause), amount in heard.deposits.items():
        moved = ledger.moves_of(db, cause)
        if moved != {"paid": amount, "issued": -amount}:
            problems.append(f"{cause} of {amount} to {account_id} moved {moved}")
    return problems


def count_open(store: Store) -> int:
    """Requests that money is held for."""
    query = sa.select(sa.func.count()).where(models.reservations.c.state == "open")
    with store.read() as db:
        return int(db.execute(query).scalar_one())


def totals(store: Store) -> Counter[tuple[str, str]]:
    """Requests by state and by how they ended."""
    columns = models.reservations.c
    query = sa.select(columns.state, columns.finish, sa.func.count()).group_by(
        columns.state, columns.finish
    )
    with store.read() as db:
        return Counter({(state, finish): count for state, finish, count in db.execute(query)})
