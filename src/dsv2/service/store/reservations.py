"""Requests and their money: held before they begin, charged once when they end.

A reservation is made before any work, for the most its request can cost, and ends exactly once:
settled for the tokens it took, or released. Its row stays as the record of the request.

Rows are locked in one order, reservation, account, key, day, so that no two transactions wait for
each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import keys, ledger
from dsv2.service.store.checks import MAX_NAME, check_text
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import ConflictError, NotFoundError
from dsv2.service.store.models import accounts, api_keys, prices, reservations
from dsv2.service.store.prices import Price, Usage, cost, price_of, worst_cost
from dsv2.service.store.usage import add_to_day, day_of

MAX_ID = MAX_NAME - len("charge:")
"""Most characters of a request's id: the causes of its transfers have room for it."""

# Every request runs these; SQLAlchemy reads a statement that it has seen before much faster.
_LATEST = (
    sa.select(prices.c.id)
    .where(prices.c.model == sa.bindparam("model"))
    .order_by(prices.c.version.desc())
    .limit(1)
    .scalar_subquery()
)
_CONDITIONS = (
    sa.select(accounts.c.unlimited, api_keys.c.id.label("key_id"), prices)
    .select_from(accounts)
    .outerjoin(
        api_keys,
        sa.and_(api_keys.c.id == sa.bindparam("key"), api_keys.c.account_id == accounts.c.id),
    )
    .outerjoin(prices, prices.c.id == _LATEST)
    .where(accounts.c.id == sa.bindparam("account"))
)
_WITH_PRICE = (
    sa.select(
        reservations, prices.c.version, prices.c.input, prices.c.cached_input, prices.c.output
    )
    .join(prices)
    .where(reservations.c.id == sa.bindparam("which"))
)
_OUTCOME = ("state", "cost", "charge", "finish", "finished_at")
_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")
_END = (
    sa.update(reservations)
    .where(reservations.c.id == sa.bindparam("which"), reservations.c.state == "open")
    .values({name: sa.bindparam(f"new_{name}") for name in _OUTCOME + _COUNTS})
)


@dataclass(frozen=True)
class Ask:
    """What must be known of a request before it may begin.

    Attributes:
        id: made by the server, unique for ever, up to ``MAX_ID`` characters.
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
        The reservation, open.

    Raises:
        InsufficientBalanceError: the account cannot pay for the worst case.
        BudgetError: the key's budget cannot.
        SuspendedError: account, key or user may not be used any more.
        NotFoundError: there is no such account or key, or the model has no price.
        ConflictError: the id was used for another request, or the request has ended.
    """
    check_text("id", ask.id, most=MAX_ID)
    check_text("model", ask.model)
    asked = {"account": ask.account_id, "key": ask.key_id, "model": ask.model}
    found = db.execute(_CONDITIONS, asked).one_or_none()
    if found is None:
        raise NotFoundError("account", ask.account_id)
    if found.id is None:
        raise NotFoundError("price for the model", ask.model)
    if ask.key_id is not None and found.key_id is None:
        raise NotFoundError("key", ask.key_id)
    price = price_of(found)
    most = worst_cost(price, ask.prompt_tokens, ask.completion_tokens)
    made = Reservation(
        ask=ask,
        price_id=price.id,
        hold=0 if found.unlimited else most,
        state="open",
        owner=check_text("owner", owner),
        expires_at=expires_at,
        usage=Usage(),
        cost=0,
        charge=0,
        refunded=0,
        finish="",
        created_at=now,
        finished_at=None,
    )
    if db.execute(_new(db.dialect.name), _columns(made)).scalar_one_or_none() is None:
        known = reservation(db, ask.id)
        if known.ask != ask:
            raise ConflictError(f"the id {ask.id!r} was used for another request")
        if known.state != "open":
            raise ConflictError(f"the request {ask.id!r} has ended")
        return known
    ledger.hold(db, ask.account_id, made.hold)
    if ask.key_id is not None:
        keys.hold(db, ask.key_id, made.hold, now=now)
    return made


def reservation(db: Connection, request_id: str) -> Reservation:
    """A request's reservation.

    Raises:
        NotFoundError: it has none.
    """
    query = sa.select(reservations).where(reservations.c.id == request_id)
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("reservation", request_id)
    return reservation_of(row)


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
    return end(db, request_id, "settled", usage, finish, now)


def release(db: Connection, request_id: str, *, finish: str, now: int) -> Reservation:
    """End a request that nothing was done for: give the whole hold back. As :func:`settle`."""
    return end(db, request_id, "released", Usage(), finish, now)


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


def end(
    db: Connection, request_id: str, state: str, usage: Usage, finish: str, now: int
) -> Reservation:
    """End an open request as ``settled`` or ``released``; what :func:`settle` does for both."""
    check_text("finish", finish)
    row = db.execute(_WITH_PRICE, {"which": request_id}).one_or_none()
    if row is None:
        raise NotFoundError("reservation", request_id)
    known = reservation_of(row)
    price = Price(row.price_id, row.model, row.version, row.input, row.cached_input, row.output)
    full = cost(price, usage)
    ended = replace(
        known,
        state=state,
        usage=usage,
        cost=full,
        charge=min(full, known.hold),
        finish=finish,
        finished_at=now,
    )
    outcome = {"state": state, "cost": full, "charge": ended.charge, "finish": finish}
    outcome |= {"finished_at": now} | counts_of(usage)
    values = {f"new_{name}": value for name, value in outcome.items()}
    if db.execute(_END, {"which": request_id} | values).rowcount != 1:
        return reservation(db, request_id)
    ask = known.ask
    ledger.charge(
        db,
        ask.account_id,
        ended.charge,
        release=known.hold,
        cause=f"charge:{request_id}",
        actor=known.owner,
        now=now,
    )
    if ask.key_id is not None:
        keys.settle(db, ask.key_id, known.hold, ended.charge, now=now)
    if state == "settled":
        add_to_day(
            db,
            day=day_of(now),
            account_id=ask.account_id,
            key_id=ask.key_id,
            model=ask.model,
            requests=1,
            usage=usage,
            charge=ended.charge,
        )
    return ended


@cache
def _new(dialect: str) -> Any:
    new = insert(dialect, reservations).on_conflict_do_nothing(index_elements=["id"])
    return new.returning(reservations.c.id)


def counts_of(usage: Usage) -> dict[str, int]:
    """Tokens by the names of their columns."""
    return {name: getattr(usage, name) for name in _COUNTS}


def reservation_of(row: Any) -> Reservation:
    """A reservation from the columns of its table."""
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


def _columns(made: Reservation) -> dict[str, Any]:
    ask = made.ask
    return {
        "id": ask.id,
        "account_id": ask.account_id,
        "key_id": ask.key_id,
        "model": ask.model,
        "price_id": made.price_id,
        "asked_prompt_tokens": ask.prompt_tokens,
        "asked_completion_tokens": ask.completion_tokens,
        "hold": made.hold,
        "state": made.state,
        "owner": made.owner,
        "created_at": made.created_at,
        "expires_at": made.expires_at,
        **counts_of(made.usage),
        "cost": made.cost,
        "charge": made.charge,
        "refunded": made.refunded,
        "finish": made.finish,
        "finished_at": made.finished_at,
    }
