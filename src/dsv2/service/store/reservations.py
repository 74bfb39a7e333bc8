"""Requests and their money: held before they begin, charged once when they end.

A reservation is made before any work, for the most its request can cost, and ends exactly once:
settled for the tokens it took, or released. Its row stays as the record of the request. The process
that runs requests renews its reservations and writes down from time to time what they have
produced; what a dead process leaves behind is settled for that by ``recover``.

Rows are locked in one order, reservation, account, key, day, so that no two transactions wait for
each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import keys, ledger
from dsv2.service.store.checks import check_text
from dsv2.service.store.engine import Store, insert
from dsv2.service.store.errors import ConflictError, NotFoundError
from dsv2.service.store.models import accounts, reservations
from dsv2.service.store.prices import (
    Usage,
    cost,
    current_price,
    price_by_id,
    split,
    worst_cost,
)
from dsv2.service.store.usage import add_to_day, day_of


@dataclass(frozen=True)
class Ask:
    """What must be known of a request before it may begin.

    Attributes:
        id: made by the server, unique for ever.
        account_id: who pays.
        key_id: the key it came with, whose budget counts too; None without one.
        model: whose price holds, as it is at this moment.
        prompt_tokens: tokens of the prompt.
        completion_tokens: most tokens of all answers together.
    """

    id: str
    account_id: str
    key_id: str | None
    model: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Reservation:
    """A request's money.

    Attributes:
        ask: what was asked for.
        price_id: the price of its beginning.
        hold: micro-units held while it is open.
        state: ``open``, ``settled`` or ``released``.
        owner: the process that runs the request.
        expires_at: when it is taken for left behind, unless renewed.
        usage: tokens written down so far, or in the end.
        cost: micro-units of them.
        charge: micro-units paid.
        refunded: micro-units of the charge given back.
        finish: how it ended; empty while open.
        created_at: milliseconds since 1970.
        finished_at: milliseconds since 1970; None while open.
    """

    ask: Ask
    price_id: int
    hold: int
    state: str
    owner: str
    expires_at: int
    usage: Usage
    cost: int
    charge: int
    refunded: int
    finish: str
    created_at: int
    finished_at: int | None


def reserve(db: Connection, ask: Ask, *, owner: str, now: int, expires_at: int) -> Reservation:
    """Hold what a request may cost, or refuse it; asking again with the same id holds once.

    Args:
        db: a write transaction.
        ask: the request.
        owner: name of the process that will run it, another one after each start.
        now: milliseconds since 1970.
        expires_at: when to take it for left behind.

    Returns:
        The reservation; one that was made before with the same ask as it is now.

    Raises:
        InsufficientBalanceError: the account cannot pay for the worst case.
        BudgetError: the key's budget cannot.
        SuspendedError: account, key or user may not be used any more.
        NotFoundError: there is no such account or key, or the model has no price.
        ConflictError: the id was used for another request.
    """
    check_text("id", ask.id)
    check_text("model", ask.model)
    price = current_price(db, ask.model)
    most = worst_cost(price, ask.prompt_tokens, ask.completion_tokens)
    query = sa.select(accounts.c.unlimited).where(accounts.c.id == ask.account_id)
    unlimited = db.execute(query).scalar_one_or_none()
    if unlimited is None:
        raise NotFoundError("account", ask.account_id)
    hold = 0 if unlimited else most
    row = {
        "id": ask.id,
        "account_id": ask.account_id,
        "key_id": ask.key_id,
        "model": ask.model,
        "price_id": price.id,
        "asked_prompt_tokens": ask.prompt_tokens,
        "asked_completion_tokens": ask.completion_tokens,
        "hold": hold,
        "state": "open",
        "owner": check_text("owner", owner),
        "created_at": now,
        "expires_at": expires_at,
        "finish": "",
    }
    zeros = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost", "charge", "refunded")
    new = insert(db, reservations).values(row | dict.fromkeys(zeros, 0))
    if ask.key_id is not None:
        keys.check_owner(db, ask.key_id, ask.account_id)
    new = new.on_conflict_do_nothing(index_elements=["id"]).returning(reservations.c.id)
    if db.execute(new).scalar_one_or_none() is None:
        known = reservation(db, ask.id)
        if known.ask != ask:
            raise ConflictError(f"the id {ask.id!r} was used for another request")
        return known
    ledger.hold(db, ask.account_id, hold)
    if ask.key_id is not None:
        keys.hold(db, ask.key_id, hold, now=now)
    return reservation(db, ask.id)


def reservation(db: Connection, request_id: str) -> Reservation:
    """A request's reservation.

    Raises:
        NotFoundError: it has none.
    """
    query = sa.select(reservations).where(reservations.c.id == request_id)
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("reservation", request_id)
    return _reservation(row)


def renew(
    db: Connection, owner: str, produced: Mapping[str, Usage], *, expires_at: int
) -> frozenset[str]:
    """Keep a process's reservations, and write down what its requests have produced so far.

    One call for all requests of a process, every few seconds, is what a crash can lose.

    Args:
        db: a write transaction.
        owner: the process.
        produced: tokens by request; those that are not its own or not open are passed over.
        expires_at: the new end of all its reservations.

    Returns:
        The requests of the process that are open. Any other has ended for the store, and nobody
        would pay for its next token.
    """
    columns = reservations.c
    own = sa.and_(columns.owner == owner, columns.state == "open")
    query = sa.select(columns.id).where(own).order_by(columns.id).with_for_update()
    open_ids = frozenset(db.execute(query).scalars())
    db.execute(sa.update(reservations).where(own).values(expires_at=expires_at))
    for request_id in sorted(open_ids & produced.keys()):
        usage = produced[request_id]
        # Counts that arrive late are lower, and must not take back higher ones.
        change = sa.update(reservations).where(
            columns.id == request_id,
            columns.prompt_tokens <= usage.prompt_tokens,
            columns.completion_tokens <= usage.completion_tokens,
        )
        db.execute(change.values(**_counts(usage)))
    return open_ids


def settle(db: Connection, request_id: str, usage: Usage, *, finish: str, now: int) -> Reservation:
    """End a request: charge what it took by the price of its beginning, give the rest back.

    The charge is never more than the hold. Granted money goes first. A request that has ended
    already stays as it ended, whatever is asked for: the first one wins.

    Args:
        db: a write transaction.
        request_id: the request.
        usage: tokens it took, also when it was cut off.
        finish: how it ended, such as ``stop``, ``length`` or ``disconnect``.
        now: milliseconds since 1970.

    Returns:
        The reservation as it ended.

    Raises:
        NotFoundError: nothing was ever reserved for it.
    """
    return _end(db, request_id, "settled", usage, finish, now)


def release(db: Connection, request_id: str, *, finish: str, now: int) -> Reservation:
    """End a request that nothing was done for: give the whole hold back. As :func:`settle`."""
    return _end(db, request_id, "released", Usage(), finish, now)


def refund(db: Connection, request_id: str, *, actor: str, now: int) -> Reservation:
    """Give a settled request's charge back, into the books it came from, once.

    Raises:
        NotFoundError: nothing was ever reserved for it.
        ConflictError: it is still open.
    """
    known = reservation(db, request_id)
    if known.state == "open":
        raise ConflictError(f"the request {request_id!r} has not ended")
    columns = reservations.c
    change = (
        sa.update(reservations)
        .where(columns.id == request_id, columns.refunded == 0, columns.charge > 0)
        .values(refunded=columns.charge)
    )
    if db.execute(change).rowcount == 1:
        moves = {
            book: -amount for book, amount in ledger.moves_of(db, f"charge:{request_id}").items()
        }
        cause = f"refund:{request_id}"
        account_id, key_id = known.ask.account_id, known.ask.key_id
        ledger.post(db, account_id, "refund", moves, cause=cause, actor=actor, now=now)
        if key_id is not None:
            keys.give_back(db, key_id, known.charge, at=known.finished_at or now)
        add_to_day(
            db,
            day=day_of(known.finished_at or now),
            account_id=account_id,
            key_id=key_id,
            model=known.ask.model,
            requests=0,
            usage=Usage(),
            charge=-known.charge,
        )
    return reservation(db, request_id)


def recover(
    store: Store, *, now: int, spare: str | None = None, dead: str | None = None
) -> list[Reservation]:
    """End what dead processes left open: charge what was written down, release what was not begun.

    Each in a transaction of its own; any number of processes may do it at a time.

    Args:
        store: the database.
        now: milliseconds since 1970; reservations that ended before are left behind.
        spare: the calling process, which knows of its own requests that they live, whatever the
            clock says.
        dead: a process that is known to be dead; its reservations need not expire.

    Returns:
        What this call has ended.
    """
    columns = reservations.c
    left = columns.expires_at <= now
    if spare is not None:
        left = sa.and_(left, columns.owner != spare)
    if dead is not None:
        left = sa.or_(left, columns.owner == dead)
    left = sa.and_(left, columns.state == "open")
    with store.read() as db:
        found = db.execute(sa.select(columns.id).where(left).order_by(columns.id)).scalars().all()
    ended = []
    for request_id in found:
        with store.write() as db:
            # It may have been renewed or ended since it was found.
            query = sa.select(reservations).where(columns.id == request_id, left)
            row = db.execute(query.with_for_update()).one_or_none()
            if row is None:
                continue
            usage = _reservation(row).usage
            state = "released" if usage == Usage() else "settled"
            ended.append(_end(db, request_id, state, usage, "recovered", now))
    return ended


def _end(
    db: Connection, request_id: str, state: str, usage: Usage, finish: str, now: int
) -> Reservation:
    check_text("finish", finish)
    known = reservation(db, request_id)
    price = price_by_id(db, known.price_id)
    full = cost(price, usage)
    charge = min(full, known.hold)
    columns = reservations.c
    change = sa.update(reservations).where(columns.id == request_id, columns.state == "open")
    outcome = {"state": state, "cost": full, "charge": charge, "finish": finish}
    change = change.values(**outcome, **_counts(usage), finished_at=now)
    if db.execute(change).rowcount != 1:
        return reservation(db, request_id)
    ask = known.ask
    query = sa.select(accounts.c.granted).where(accounts.c.id == ask.account_id)
    granted, paid = split(charge, db.execute(query.with_for_update()).scalar_one())
    if charge:
        moves = {"granted": -granted, "paid": -paid, "spent": charge}
        cause = f"charge:{request_id}"
        ledger.post(
            db,
            ask.account_id,
            "charge",
            moves,
            cause=cause,
            actor=known.owner,
            release=known.hold,
            now=now,
        )
    else:
        ledger.let_go(db, ask.account_id, known.hold)
    if ask.key_id is not None:
        keys.settle(db, ask.key_id, known.hold, charge, now=now)
    if state == "settled":
        add_to_day(
            db,
            day=day_of(now),
            account_id=ask.account_id,
            key_id=ask.key_id,
            model=ask.model,
            requests=1,
            usage=usage,
            charge=charge,
        )
    return reservation(db, request_id)


def _counts(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _reservation(row: Any) -> Reservation:
    ask = Ask(
        row.id,
        row.account_id,
        row.key_id,
        row.model,
        row.asked_prompt_tokens,
        row.asked_completion_tokens,
    )
    return Reservation(
        ask=ask,
        price_id=row.price_id,
        hold=row.hold,
        state=row.state,
        owner=row.owner,
        expires_at=row.expires_at,
        usage=Usage(row.prompt_tokens, row.cached_tokens, row.completion_tokens),
        cost=row.cost,
        charge=row.charge,
        refunded=row.refunded,
        finish=row.finish,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
