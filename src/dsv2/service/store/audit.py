"""Who did what to whom. Entries are added and never changed; triggers see to that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.checks import check_choice, check_integer, check_text
from dsv2.service.store.models import audit_log

SYSTEM = "system"
"""The actor of what nobody asked for: sign-up grants, recovery, the command line's set-up."""
ACTIONS = (
    "user.create", "user.password", "user.role", "user.status", "session.open",
    "account.active", "account.suspended", "account.grant", "account.top_up", "account.withdraw",
    "key.create", "key.limit", "key.rename", "key.revoke", "code.create", "code.revoke",
    "price.set", "setting.change", "data.export",
)  # fmt: skip
"""A noun, a point and a verb; the site has a text for each."""


@dataclass(frozen=True)
class AuditEntry:
    """One line of the log.

    Attributes:
        id: rising.
        at: milliseconds since 1970.
        actor: id of a user, or ``SYSTEM``.
        action: one of ``ACTIONS``.
        subject: id of what it was done to.
        detail: JSON-compatible facts, never a secret.
    """

    id: int
    at: int
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def record(
    db: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    now: int,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add a line, in the transaction of what it tells of: both are kept or neither."""
    row = {
        "at": now,
        "actor": check_text("actor", actor),
        "action": check_choice("action", action, ACTIONS),
        "subject": check_text("subject", subject),
        "detail": json.dumps(detail or {}, ensure_ascii=True, sort_keys=True),
    }
    db.execute(sa.insert(audit_log).values(row))


def entries_of(
    db: Connection, subject: str | None = None, *, before: int | None = None, limit: int = 100
) -> list[AuditEntry]:
    """The latest lines, newest first.

    Args:
        db: a transaction.
        subject: only what was done to this id.
        before: only lines whose id is lower, to go on where the last page ended.
        limit: most lines, up to 1000.
    """
    query = sa.select(audit_log).order_by(audit_log.c.id.desc())
    if subject is not None:
        query = query.where(audit_log.c.subject == subject)
    if before is not None:
        query = query.where(audit_log.c.id < before)
    rows = db.execute(query.limit(check_integer("limit", limit, least=1, most=1000)))
    return [
        AuditEntry(row.id, row.at, row.actor, row.action, row.subject, json.loads(row.detail))
        for row in rows
    ]
