"""The books: every account's money, moved by double entry.

An account has four books. ``granted`` is money given for free, ``paid`` money put in, ``spent``
what requests have cost, and ``issued``, the other side of the first two, what came from outside,
negative in the entries. A transfer moves money between books, so its entries sum to zero, and so do
all entries there are. The account's row carries the same sums, where the database itself refuses a
balance below zero; ``verify`` compares the two.

Each transfer has a cause, and a cause has one transfer: asking twice moves money once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import audit
from dsv2.service.store.checks import check_choice, check_integer, check_text, new_id
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import (
    ConflictError,
    FieldError,
    InsufficientBalanceError,
    NotFoundError,
    SuspendedError,
)
from dsv2.service.store.models import (
    BOOKS,
    MAX_ISSUED,
    STATUSES,
    accounts,
    entries,
    reservations,
    transfers,
)
from dsv2.service.store.prices import split
from dsv2.service.store.settings import load_settings

_DEPOSITS = {"granted": "grant", "paid": "top_up"}
_OF_REQUESTS = ("charge:", "refund:")

# Every request runs these; SQLAlchemy reads a statement that it has seen before much faster.
_OF = accounts.c.id == sa.bindparam("which")
_HOLD = (
    sa.update(accounts)
    .where(
        _OF,
        accounts.c.status == "active",
        accounts.c.granted + accounts.c.paid - accounts.c.held >= sa.bindparam("amount"),
    )
    .values(held=accounts.c.held + sa.bindparam("amount"))
)
_LET_GO = sa.update(accounts).where(_OF).values(held=accounts.c.held - sa.bindparam("amount"))
_AFTER = {
    book: accounts.c[book] + sa.bindparam(f"to_{book}") for book in ("granted", "paid", "spent")
}
_HELD = accounts.c.held - sa.bindparam("release")
_MOVE = (
    sa.update(accounts)
    .where(
        _OF,
        *(value >= 0 for value in _AFTER.values()),
        _AFTER["granted"] + _AFTER["paid"] >= _HELD,
    )
    .values(**_AFTER, held=_HELD, issued=accounts.c.issued - sa.bindparam("to_issued"))
)
_ENTER = sa.insert(entries)
# Not against those who only refer to the account, as every new request does on PostgreSQL.
_GRANTED = sa.select(accounts.c.granted).where(_OF).with_for_update(key_share=True)


@dataclass(frozen=True)
class Balance:
    """What an account has, in micro-units.

    Attributes:
        granted: given for free and not spent yet; goes first.
        paid: put in and not spent yet.
        held: of both, what requests under way may still cost.
        spent: what requests have cost so far.
        unlimited: requests cost nothing.
        status: ``active`` or ``suspended``.
    """

    granted: int
    paid: int
    held: int
    spent: int
    unlimited: bool
    status: str

    @property
    def total(self) -> int:
        """What is not spent."""
        return self.granted + self.paid

    @property
    def available(self) -> int:
        """What a new request may hold."""
        return self.total - self.held


@dataclass(frozen=True)
class Transfer:
    """One movement of money.

    Attributes:
        id: rising.
        account_id: whose books.
        kind: ``grant``, ``top_up``, ``withdraw``, ``charge`` or ``refund``.
        cause: what it was for; there is no other transfer with the same.
        actor: who asked for it.
        memo: a remark.
        created_at: milliseconds since 1970.
        moves: micro-units by book, summing to zero.
        model: of the request that a charge or a refund is for.
    """

    id: int
    account_id: str
    kind: str
    cause: str
    actor: str
    memo: str
    created_at: int
    moves: Mapping[str, int]
    model: str | None = None


def open_account(db: Connection, *, now: int, unlimited: bool = False) -> str:
    """Make an account with nothing in it and return its id."""
    account_id = new_id("acct")
    books = {"granted": 0, "paid": 0, "held": 0, "spent": 0, "issued": 0}
    row = {"id": account_id, "status": "active", "unlimited": int(unlimited), "created_at": now}
    db.execute(sa.insert(accounts).values(row | books))
    return account_id


def balance(db: Connection, account_id: str) -> Balance:
    """What an account has.

    Raises:
        NotFoundError: there is no such account.
    """
    row = db.execute(sa.select(accounts).where(accounts.c.id == account_id)).one_or_none()
    if row is None:
        raise NotFoundError("account", account_id)
    return Balance(row.granted, row.paid, row.held, row.spent, bool(row.unlimited), row.status)


def set_status(db: Connection, account_id: str, status: str, *, actor: str, now: int) -> None:
    """Suspend an account, or let it go on; what is under way ends as it would have.

    Raises:
        NotFoundError: there is no such account.
    """
    check_choice("status", status, STATUSES)
    change = sa.update(accounts).where(accounts.c.id == account_id).values(status=status)
    if db.execute(change).rowcount != 1:
        raise NotFoundError("account", account_id)
    audit.record(db, actor=actor, action=f"account.{status}", subject=account_id, now=now)


def deposit(
    db: Connection,
    account_id: str,
    *,
    book: str,
    amount: int,
    cause: str,
    actor: str,
    now: int,
    memo: str = "",
) -> bool:
    """Put money into an account, as a grant or as paid.

    Args:
        db: a write transaction.
        account_id: into whose.
        book: ``granted`` or ``paid``.
        amount: micro-units, at least 1.
        cause: names the reason, such as a receipt; the same one deposits once.
        actor: who asks.
        now: milliseconds since 1970.
        memo: a remark.

    Returns:
        Whether money moved; not if this very deposit was made before.

    Raises:
        ConflictError: the cause was used for something else.
        FieldError: the cause is a request's, or the account has no room for so much.
        NotFoundError: there is no such account.
    """
    check_choice("book", book, tuple(_DEPOSITS))
    check_integer("amount", amount, least=1)
    _check_cause(cause)
    kind = _DEPOSITS[book]
    found = balance(db, account_id)
    room = MAX_ISSUED - found.total - found.spent
    if amount > room:
        raise FieldError("amount", f"is {amount}, the account has room for {room}")
    moves = {book: amount, "issued": -amount}
    moved = post(db, account_id, kind, moves, cause=cause, actor=actor, memo=memo, now=now)
    if moved:
        detail = {"amount": amount, "cause": cause}
        audit.record(
            db, actor=actor, action=f"account.{kind}", subject=account_id, detail=detail, now=now
        )
    return moved


def withdraw(
    db: Connection,
    account_id: str,
    *,
    book: str,
    amount: int,
    cause: str,
    actor: str,
    now: int,
    memo: str = "",
) -> bool:
    """Take unspent money out again, the reverse of :func:`deposit`.

    Raises:
        InsufficientBalanceError: the book has not so much, or requests under way hold it.
        ConflictError: the cause was used for something else.
        FieldError: the cause is a request's.
        NotFoundError: there is no such account.
    """
    check_choice("book", book, tuple(_DEPOSITS))
    check_integer("amount", amount, least=1)
    _check_cause(cause)
    balance(db, account_id)  # is it there?
    moves = {book: -amount, "issued": amount}
    moved = post(db, account_id, "withdraw", moves, cause=cause, actor=actor, memo=memo, now=now)
    if moved:
        detail = {"amount": amount, "book": book, "cause": cause}
        audit.record(
            db, actor=actor, action="account.withdraw", subject=account_id, detail=detail, now=now
        )
    return moved


def _check_cause(cause: str) -> None:
    # The request could never be charged, and what it holds never be let go.
    if check_text("cause", cause).startswith(_OF_REQUESTS):
        raise FieldError(
            "cause", f"is {cause!r:.60}, but {' and '.join(_OF_REQUESTS)} are requests"
        )


def hold(db: Connection, account_id: str, amount: int) -> None:
    """Set aside what a request may cost, in the one statement that also looks whether it is there.

    Raises:
        InsufficientBalanceError: it is not.
        SuspendedError: the account may not be used.
        NotFoundError: there is no such account.
    """
    if db.execute(_HOLD, {"which": account_id, "amount": amount}).rowcount == 1:
        return
    found = balance(db, account_id)
    if found.status != "active":
        raise SuspendedError("the account is suspended")
    raise InsufficientBalanceError(amount, found.available, load_settings(db).currency)


def let_go(db: Connection, account_id: str, amount: int) -> None:
    """Give back what a request had held and did not cost."""
    db.execute(_LET_GO, {"which": account_id, "amount": amount})


def charge(
    db: Connection, account_id: str, amount: int, *, release: int, cause: str, actor: str, now: int
) -> None:
    """Let an account pay for a request, granted money first, and release what was held for it."""
    if not amount:
        let_go(db, account_id, release)
        return
    granted = db.execute(_GRANTED, {"which": account_id}).scalar_one()
    from_granted, from_paid = split(amount, granted)
    moves = {"granted": -from_granted, "paid": -from_paid, "spent": amount}
    post(db, account_id, "charge", moves, cause=cause, actor=actor, release=release, now=now)


def post(
    db: Connection,
    account_id: str,
    kind: str,
    moves: Mapping[str, int],
    *,
    cause: str,
    actor: str,
    now: int,
    memo: str = "",
    release: int = 0,
) -> bool:
    """Write a transfer and change the account by it: the only place where money moves.

    Args:
        db: a write transaction.
        account_id: whose books; it has to be there.
        kind: one of the transfer kinds.
        moves: micro-units by book, summing to zero; ``issued`` counts against what is issued.
        cause: the same one moves money once.
        actor: who asks.
        now: milliseconds since 1970.
        memo: a remark.
        release: micro-units that are no longer held.

    Returns:
        Whether money moved; not if this very transfer was made before.

    Raises:
        ConflictError: the cause was used for another transfer.
        InsufficientBalanceError: a book would go below zero, or a hold lose its cover.
    """
    moves = {book: amount for book, amount in moves.items() if amount}
    if sum(moves.values()) or not moves or not set(moves) <= set(BOOKS):
        raise ValueError(f"the moves {moves} do not balance, or name an unknown book")
    row: dict[str, Any] = {"account_id": account_id, "actor": check_text("actor", actor)}
    row |= {"cause": check_text("cause", cause), "memo": check_text("memo", memo, least=0)}
    row |= {"kind": kind, "created_at": now}
    number = db.execute(_new_transfer(db.dialect.name), row).scalar_one_or_none()
    if number is None:
        known = _transfer_by_cause(db, cause)
        if (known.account_id, known.kind, dict(known.moves)) != (account_id, kind, moves):
            raise ConflictError(f"the cause {cause!r} was used for another transfer")
        return False
    by_book = {f"to_{book}": moves.get(book, 0) for book in BOOKS}
    if db.execute(_MOVE, {"which": account_id, "release": release} | by_book).rowcount != 1:
        taken = {book: -moves[book] for book in ("granted", "paid") if moves.get(book, 0) < 0}
        found = balance(db, account_id)
        free = min(found.available, sum(getattr(found, book) for book in taken))
        raise InsufficientBalanceError(
            sum(taken.values()), free, load_settings(db).currency, "to be taken out are"
        )
    lines = [
        {"transfer_id": number, "book": book, "amount": amount} for book, amount in moves.items()
    ]
    db.execute(_ENTER, lines)
    return True


@cache
def _new_transfer(dialect: str) -> Any:
    new = insert(dialect, transfers).on_conflict_do_nothing(index_elements=["cause"])
    return new.returning(transfers.c.id)


def transfers_of(
    db: Connection, account_id: str, *, before: int | None = None, limit: int = 100
) -> list[Transfer]:
    """An account's latest transfers, newest first; with ``before`` those of lower ids."""
    query = sa.select(transfers).where(transfers.c.account_id == account_id)
    if before is not None:
        query = query.where(transfers.c.id < before)
    query = query.order_by(transfers.c.id.desc())
    rows = db.execute(query.limit(check_integer("limit", limit, least=1, most=1000))).all()
    return _with_moves(db, rows)


def moves_of(db: Connection, cause: str) -> dict[str, int]:
    """Micro-units by book that the transfer of a cause has moved; empty if there is none."""
    query = sa.select(entries.c.book, entries.c.amount).join(transfers)
    return {row.book: row.amount for row in db.execute(query.where(transfers.c.cause == cause))}


def _transfer_by_cause(db: Connection, cause: str) -> Transfer:
    rows = db.execute(sa.select(transfers).where(transfers.c.cause == cause)).all()
    return _with_moves(db, rows)[0]


def _with_moves(db: Connection, rows: Any) -> list[Transfer]:
    moves: dict[int, dict[str, int]] = {row.id: {} for row in rows}
    if moves:
        for line in db.execute(sa.select(entries).where(entries.c.transfer_id.in_(moves))):
            moves[line.transfer_id][line.book] = line.amount
    requests = {row.cause: row.cause[7:] for row in rows if row.cause.startswith(_OF_REQUESTS)}
    columns = reservations.c
    asked = sa.select(columns.id, columns.model).where(columns.id.in_(list(requests.values())))
    models = {row.id: row.model for row in db.execute(asked)} if requests else {}
    return [
        Transfer(
            row.id,
            row.account_id,
            row.kind,
            row.cause,
            row.actor,
            row.memo,
            row.created_at,
            moves[row.id],
            models.get(requests.get(row.cause, "")),
        )
        for row in rows
    ]
