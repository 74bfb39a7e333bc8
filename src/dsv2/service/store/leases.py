"""Processes that run requests, and what becomes of a request when its process dies.

A process renews its reservations every few seconds and writes down what they have produced. What a
dead one leaves open runs out, and is then settled for what was written down.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.engine import Store
from dsv2.service.store.models import reservations
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Reservation, counts_of, end, reservation_of


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
        db.execute(change.values(**counts_of(usage)))
    return open_ids


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
            usage = reservation_of(row).usage
            state = "released" if usage == Usage() else "settled"
            ended.append(end(db, request_id, state, usage, "recovered", now))
    return ended
