"""Processes that run requests, and what becomes of a request when its process dies.

A process renews its reservations every few seconds and writes down what they have produced. What a
dead one leaves open runs out, and is then settled for what was written down.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from dsv2.service.store.engine import Store
from dsv2.service.store.errors import StoreError, UnavailableError
from dsv2.service.store.models import reservations
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Reservation, counts_of, end, reservation_of

RECOVERED = "recovered"
"""How a request ended whose process died."""

log = logging.getLogger("dsv2.service")


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
        The requests of the process that are open. Any other that it had reserved before this call
        has ended for the store, and nobody would pay for its next token.
    """
    columns = reservations.c
    own = sa.and_(columns.owner == owner, columns.state == "open")
    query = sa.select(columns.id).where(own).order_by(columns.id).with_for_update()
    open_ids = frozenset(db.execute(query).scalars())
    # Only these: one that was made since would be locked out of turn.
    locked = columns.id.in_(open_ids)
    db.execute(sa.update(reservations).where(locked).values(expires_at=expires_at))
    for request_id in sorted(open_ids & produced.keys()):
        usage = produced[request_id]
        # Counts that arrive late are lower, and must not take back higher ones.
        change = sa.update(reservations).where(
            columns.id == request_id,
            columns.prompt_tokens <= usage.prompt_tokens,
            columns.completion_tokens <= usage.completion_tokens,
        )
        db.execute(change.values(**counts_of(usage)))
    return open_ids


def recover(
    store: Store, *, now: int, spare: str | None = None, dead: str | None = None
) -> list[Reservation]:
    """End what dead processes left open: charge what was written down, release what was not begun.

    Each in a transaction of its own; any number of processes may do it at a time. Before it, a
    process delivers its outbox, which knows more of a request than was written down last. One that
    cannot be ended is logged and stays open, and the others are ended.

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
    return _end_all(store, left, RECOVERED, now)


def release_strays(
    store: Store, owner: str, known: Collection[str], *, made_before: int, now: int
) -> list[Reservation]:
    """Release what a living process holds without knowing.

    A connection that breaks in the commit of ``reserve`` leaves a reservation behind that was
    refused to its caller: nobody ends it, and the process itself keeps it alive.

    Args:
        store: the database.
        owner: the calling process, its outbox delivered.
        known: its requests that are open, or that it has yet to settle.
        made_before: milliseconds since 1970, long enough ago for any reserving to have returned.
        now: milliseconds since 1970.

    Returns:
        What this call has ended.
    """
    columns = reservations.c
    mine = sa.and_(columns.owner == owner, columns.created_at < made_before)
    return _end_all(store, mine, "stray", now, known=frozenset(known))


def _end_all(
    store: Store,
    which: sa.ColumnElement[bool],
    finish: str,
    now: int,
    known: frozenset[str] = frozenset(),
) -> list[Reservation]:
    columns = reservations.c
    left = sa.and_(which, columns.state == "open")
    with store.read() as db:
        found = db.execute(sa.select(columns.id).where(left).order_by(columns.id)).scalars().all()
    ended = []
    for request_id in found:
        if request_id in known:
            continue
        try:
            with store.write() as db:
                # It may have been renewed or ended since it was found.
                query = sa.select(reservations).where(columns.id == request_id, left)
                row = db.execute(query.with_for_update()).one_or_none()
                if row is None:
                    continue
                usage = reservation_of(row).usage
                state = "released" if usage == Usage() else "settled"
                ended.append(end(db, request_id, state, usage, finish, now))
        except UnavailableError:
            raise
        except (StoreError, IntegrityError) as error:
            log.error("request %s cannot be ended", request_id, exc_info=error)
    return ended
