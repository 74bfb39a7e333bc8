"""Whether the books agree: with themselves, with the requests, and with the sums per day."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.models import (
    accounts,
    api_keys,
    entries,
    reservations,
    transfers,
    usage_daily,
)

_SIGN = {"granted": 1, "paid": 1, "spent": 1, "issued": -1}


def sum_of_entries(db: Connection) -> int:
    """The sum of all entries there are; anything but 0 is wrong."""
    return int(db.execute(sa.select(sa.func.sum(entries.c.amount))).scalar_one() or 0)


def verify_books(db: Connection) -> list[str]:
    """All disagreements, a sentence each; none in a sound store.

    Looked at in one transaction: each transfer sums to zero and its account's balances to its
    entries; holds are those of open reservations; what requests were charged and given back is
    what was transferred for them; and the sums per day are those of the requests.
    """
    return [
        *_unbalanced(db),
        *_balances(db),
        *_holds(db),
        *_charges(db),
        *_days(db),
    ]


def _unbalanced(db: Connection) -> list[str]:
    total = sa.func.sum(entries.c.amount)
    query = sa.select(transfers.c.id, total).outerjoin(entries).group_by(transfers.c.id)
    wrong = query.having(sa.or_(total != 0, total.is_(None)))
    return [f"transfer {number} sums to {value}" for number, value in db.execute(wrong)]


def _balances(db: Connection) -> list[str]:
    problems = []
    for book, sign in _SIGN.items():
        query = (
            sa.select(transfers.c.account_id, sa.func.sum(entries.c.amount))
            .join(entries)
            .where(entries.c.book == book)
            .group_by(transfers.c.account_id)
        )
        written = {account: int(value) * sign for account, value in db.execute(query)}
        for account, value in db.execute(sa.select(accounts.c.id, accounts.c[book])):
            if value != written.get(account, 0):
                entered = written.get(account, 0)
                problems.append(f"account {account} has {value} {book}, its entries {entered}")
    return problems


def _holds(db: Connection) -> list[str]:
    problems = []
    for table, column in ((accounts, "account_id"), (api_keys, "key_id")):
        owner = reservations.c[column]
        query = sa.select(owner, sa.func.sum(reservations.c.hold))
        held = _by_owner(db, query.where(reservations.c.state == "open").group_by(owner))
        for number, value in db.execute(sa.select(table.c.id, table.c.held)):
            if value != held.get(number, 0):
                problems.append(
                    f"{table.name} {number} hold {value}, open reservations {held.get(number, 0)}"
                )
    return problems


def _charges(db: Connection) -> list[str]:
    problems = []
    columns = reservations.c
    for kind, column in (("charge", columns.charge), ("refund", columns.refunded)):
        moved = sa.func.sum(entries.c.amount) * (1 if kind == "charge" else -1)
        query = sa.select(transfers.c.cause, moved).join(entries)
        query = query.where(transfers.c.kind == kind, entries.c.book == "spent")
        written = _by_owner(db, query.group_by(transfers.c.cause))
        for number, value in db.execute(sa.select(columns.id, column).where(column > 0)):
            entered = written.pop(f"{kind}:{number}", 0)
            if entered != value:
                problems.append(f"request {number}: {kind} of {value}, transferred {entered}")
        problems += [f"{cause} was transferred for no request" for cause in written]
    return problems


def _days(db: Connection) -> list[str]:
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
    columns, days = reservations.c, usage_daily.c
    who = (columns.account_id, sa.func.coalesce(columns.key_id, ""), columns.model)
    amounts = [sa.func.sum(columns[name]) for name in counts]
    amounts.append(sa.func.sum(columns.charge - columns.refunded))
    query = sa.select(*who, sa.func.count(), *amounts).where(columns.state == "settled")
    single = _sums(db, query.group_by(*who))
    by = (days.account_id, days.key_id, days.model)
    amounts = [sa.func.sum(days[name]) for name in ("requests", *counts, "charge")]
    summed = _sums(db, sa.select(*by, *amounts).group_by(*by))
    return [
        f"requests of account, key and model {names} sum to {single.get(names)}, its days to "
        f"{summed.get(names)}"
        for names in sorted(single.keys() | summed.keys())
        if single.get(names) != summed.get(names)
    ]


def _sums(db: Connection, query: Any) -> dict[tuple[str, ...], list[int]]:
    return {tuple(row[:3]): [int(value) for value in row[3:]] for row in db.execute(query)}


def _by_owner(db: Connection, query: Any) -> dict[str, int]:
    return {owner: int(value) for owner, value in db.execute(query)}
