"""Redemption codes: money that whoever knows the code may put into an account, once per account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import audit, ledger
from dsv2.service.store.checks import check_choice, check_integer, new_id
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import ConflictError, NotFoundError
from dsv2.service.store.models import redemption_codes, redemptions
from dsv2.service.store.tokens import hash_token, new_token, prefix_of

MAX_USES = 1_000_000


@dataclass(frozen=True)
class Code:
    """A redemption code without the secret.

    Attributes:
        id: unguessable.
        prefix: first digits of the secret.
        book: ``granted`` or ``paid``, where its money goes.
        amount: micro-units for each account.
        max_uses: by how many accounts.
        uses: by how many so far.
        expires_at: when it ends, or None.
        revoked_at: when it was revoked, or None.
    """

    id: str
    prefix: str
    book: str
    amount: int
    max_uses: int
    uses: int
    expires_at: int | None
    revoked_at: int | None


def create_code(
    db: Connection,
    *,
    amount: int,
    actor: str,
    now: int,
    book: str = "granted",
    max_uses: int = 1,
    expires_at: int | None = None,
) -> tuple[Code, str]:
    """Make a code and return it with its secret, which nobody can be told a second time."""
    check_integer("amount", amount, least=1)
    check_integer("max_uses", max_uses, least=1, most=MAX_USES)
    check_choice("book", book, ("granted", "paid"))
    token = new_token("code")
    row: dict[str, Any] = {
        "id": new_id("code"),
        "code_hash": hash_token(token),
        "prefix": prefix_of(token),
        "book": book,
        "amount": amount,
        "max_uses": max_uses,
        "uses": 0,
        "actor": actor,
        "created_at": now,
        "expires_at": expires_at,
    }
    db.execute(sa.insert(redemption_codes).values(row))
    detail = {"amount": amount, "max_uses": max_uses, "book": book}
    audit.record(db, actor=actor, action="code.create", subject=row["id"], detail=detail, now=now)
    return get_code(db, row["id"]), token


def get_code(db: Connection, code_id: str) -> Code:
    """A code by its id.

    Raises:
        NotFoundError: there is none.
    """
    query = sa.select(redemption_codes).where(redemption_codes.c.id == code_id)
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("redemption code", code_id)
    return _code(row)


def list_codes(db: Connection) -> list[Code]:
    """All codes, the newest first."""
    columns = redemption_codes.c
    order = (columns.created_at.desc(), columns.id)
    return [_code(row) for row in db.execute(sa.select(redemption_codes).order_by(*order))]


def revoke_code(db: Connection, code_id: str, *, actor: str, now: int) -> Code:
    """End a code; what was redeemed stays.

    Raises:
        NotFoundError: there is none.
    """
    change = sa.update(redemption_codes).where(
        redemption_codes.c.id == code_id, redemption_codes.c.revoked_at.is_(None)
    )
    if db.execute(change.values(revoked_at=now)).rowcount == 1:
        audit.record(db, actor=actor, action="code.revoke", subject=code_id, now=now)
    return get_code(db, code_id)


def redeem(db: Connection, token: str, account_id: str, *, actor: str, now: int) -> int:
    """Put a code's money into an account and return the micro-units.

    Raises:
        NotFoundError: the code is unknown, used up, revoked or over; which, is not told.
        ConflictError: this account has redeemed it.
    """
    columns = redemption_codes.c
    usable = sa.and_(
        columns.code_hash == hash_token(token),
        columns.revoked_at.is_(None),
        columns.uses < columns.max_uses,
        sa.or_(columns.expires_at.is_(None), columns.expires_at > now),
    )
    taken = sa.update(redemption_codes).where(usable).values(uses=columns.uses + 1)
    row = db.execute(taken.returning(columns.id, columns.book, columns.amount)).one_or_none()
    if row is None:
        # Not what was typed in: it may be another secret, and messages are logged.
        raise NotFoundError("usable redemption code")
    once = {"code_id": row.id, "account_id": account_id, "created_at": now}
    new = insert(db.dialect.name, redemptions).values(once)
    new = new.on_conflict_do_nothing(index_elements=["code_id", "account_id"])
    if db.execute(new.returning(redemptions.c.code_id)).scalar_one_or_none() is None:
        raise ConflictError("the account has redeemed this code", "code_redeemed")
    ledger.deposit(
        db,
        account_id,
        book=row.book,
        amount=row.amount,
        cause=f"redeem:{row.id}:{account_id}",
        actor=actor,
        now=now,
    )
    return int(row.amount)


def _code(row: Any) -> Code:
    return Code(
        row.id,
        row.prefix,
        row.book,
        row.amount,
        row.max_uses,
        row.uses,
        row.expires_at,
        row.revoked_at,
    )
