"""Requests that clients send again: the same key has one effect and one answer.

A key belongs to an account and to one request, known by its hash. It is claimed in the transaction
that reserves the request's money, and answered in the one that settles it, so the reservation says
what has become of an attempt: open, it is under way; ended without an answer, it is lost, and the
next attempt takes over. If a crash or a failure has cut it off, what it has cost is given back:
they do not make an account pay twice. What the client itself has cut off stays paid, or one could
read answers for nothing by leaving before each one's end.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import audit
from dsv2.service.store.checks import check_integer, check_text
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import ConflictError, FieldError
from dsv2.service.store.leases import RECOVERED
from dsv2.service.store.models import idempotency_keys, reservations
from dsv2.service.store.reservations import refund

MAX_KEY = 255
MAX_RESPONSE = 16 << 20
"""Most bytes of an answer that is kept."""

_OURS = (RECOVERED, "error", "shutdown")
"""How attempts end that nobody has cut off but the server; their clients have got no answer."""

log = logging.getLogger("dsv2.service")


class InProgressError(ConflictError):
    """The first request with this key has not been answered yet."""


@dataclass(frozen=True)
class Answer:
    """A response to be had again, an error's too.

    Attributes:
        status: of HTTP.
        content_type: of the body.
        body: as it was sent.
    """

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Kept:
    """An answer and whose it is.

    Attributes:
        account_id: whose key.
        key: the client's own.
        answer: to be had again by it.
    """

    account_id: str
    key: str
    answer: Answer


def hash_request(path: str, body: bytes) -> str:
    """What makes two requests the same: where they went and every byte of them."""
    # The path's own hash has one length, so no byte of it can be taken for one of the body.
    digest = hashlib.sha256(hashlib.sha256(path.encode("utf-8", "surrogatepass")).digest())
    digest.update(body)
    return digest.hexdigest()


def claim(
    db: Connection,
    account_id: str,
    key: str,
    *,
    request_hash: str,
    request_id: str,
    now: int,
    expires_at: int,
) -> Answer | None:
    """Claim a key for a request, in the transaction that reserves for it.

    Args:
        db: a write transaction.
        account_id: whose key; another account's is another key.
        key: the client's own, 1 to 255 characters.
        request_hash: as :func:`hash_request` gives it.
        request_id: the attempt that is about to begin.
        now: milliseconds since 1970.
        expires_at: until when the answer can be had again.

    Returns:
        The answer if the request was answered before: send it, and reserve nothing. None if this
        attempt is to go on.

    Raises:
        ConflictError: the key was used with another request.
        InProgressError: an earlier attempt is under way.
        FieldError: the key is not allowed.
    """
    check_text("Idempotency-Key", key, most=MAX_KEY)
    columns = idempotency_keys.c
    own = sa.and_(columns.account_id == account_id, columns.key == key)
    db.execute(sa.delete(idempotency_keys).where(own, columns.expires_at <= now, _answered()))
    row = {"account_id": account_id, "key": key, "request_hash": request_hash}
    row |= {"request_id": request_id}
    new = insert(db.dialect.name, idempotency_keys).values(
        **row, created_at=now, expires_at=expires_at
    )
    new = new.on_conflict_do_nothing(index_elements=["account_id", "key"])
    if db.execute(new.returning(columns.key)).scalar_one_or_none() is not None:
        return None
    known = db.execute(sa.select(idempotency_keys).where(own).with_for_update()).one_or_none()
    if known is None:
        raise InProgressError("the idempotency key was dropped this moment; send it again")
    if known.request_hash != request_hash:
        raise ConflictError("the idempotency key was used with another request")
    if known.status is not None:
        return Answer(known.status, known.content_type, known.response)
    query = sa.select(reservations.c.state, reservations.c.finish)
    query = query.where(reservations.c.id == known.request_id)
    lost = db.execute(query).one_or_none()
    if lost is not None and lost.state == "open":
        raise InProgressError("the first request with this idempotency key is under way")
    if lost is not None and lost.finish in _OURS:
        refund(db, known.request_id, actor=audit.SYSTEM, now=now)
    taken = {"request_id": request_id, "created_at": now, "expires_at": expires_at}
    db.execute(sa.update(idempotency_keys).where(own).values(taken))
    return None


def answer(db: Connection, account_id: str, key: str, *, request_id: str, response: Answer) -> None:
    """Keep an attempt's answer, in the transaction that settles it.

    An attempt that ends without one, as when its client leaves or the answer is too large, is run
    and paid anew if it is sent again.

    Raises:
        ConflictError: the attempt was given up for lost and another has taken over, or the key
            was answered.
        FieldError: the answer is too large.
    """
    check_integer("status", response.status, least=100, most=599)
    if len(response.body) > MAX_RESPONSE:
        raise FieldError("response", f"has {len(response.body)} bytes, allowed are {MAX_RESPONSE}")
    columns = idempotency_keys.c
    mine = sa.and_(
        columns.account_id == account_id,
        columns.key == key,
        columns.request_id == request_id,
        columns.status.is_(None),
    )
    values = {"status": response.status, "content_type": response.content_type}
    change = sa.update(idempotency_keys).where(mine).values(**values, response=response.body)
    if db.execute(change).rowcount != 1:
        raise ConflictError("the idempotency key is no longer this request's to answer")


def keep(db: Connection, request_id: str, kept: Kept) -> None:
    """Write an answer down if it is still this attempt's to give, in its settlement's transaction.

    Where it is not, or is too large, the request is charged for all the same: the client has the
    answer, but not a second time. That is logged.
    """
    try:
        with db.begin_nested():
            answer(db, kept.account_id, kept.key, request_id=request_id, response=kept.answer)
    except (ConflictError, FieldError) as error:
        log.warning("the answer of request %s is not kept: %s", request_id, error)


def forget_answers(db: Connection, *, now: int) -> int:
    """Drop keys whose time is over, unless their request is under way, and say how many."""
    columns = idempotency_keys.c
    under_way = sa.select(reservations.c.id).where(reservations.c.state == "open")
    old = sa.delete(idempotency_keys).where(
        columns.expires_at <= now, sa.or_(_answered(), columns.request_id.not_in(under_way))
    )
    return db.execute(old).rowcount


def _answered() -> sa.ColumnElement[bool]:
    return idempotency_keys.c.status.is_not(None)
