"""Answers under way: what has come of them, how they end, and those whose process has died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.chat_messages import INTERRUPTED, AnswerUsage, Failure, Lease, own
from dsv2.service.store.models import conversations, messages


@dataclass(frozen=True)
class Progress:
    """What there is of an answer.

    Attributes:
        content: all of its text.
        usage: so far.
        model: that answers.
        tokens: as JSON, where they are kept.
    """

    content: str
    usage: AnswerUsage
    model: str | None = None
    tokens: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How an answer has ended: its status, and with it why it failed or what finished it."""

    status: str
    failure: Failure | None = None
    finish: str | None = None


def save(db: Connection, message_id: str, lease: Lease, progress: Progress) -> bool:
    """Write down what there is of an answer under way; False if it is no longer this process's."""
    values = _values(progress) | {"expires_at": lease.expires_at}
    return db.execute(_running(message_id, lease.owner).values(values)).rowcount == 1


def finish(
    db: Connection, message_id: str, owner: str, progress: Progress, outcome: Outcome, grown: int
) -> bool:
    """End an answer; False if it is no longer this process's.

    Args:
        db: a write transaction.
        message_id: the answer.
        owner: the process that computed it.
        progress: all there is of it.
        outcome: how it ended.
        grown: bytes that have come in this run.
    """
    failure = outcome.failure
    values = _values(progress) | {
        "status": outcome.status, "finish": outcome.finish, "owner": None, "expires_at": None,
        "failure_code": failure and failure.code, "failure_message": failure and failure.message,
    }  # fmt: skip
    # The conversation first, as those who delete it: in another order they could block each other.
    of = sa.select(messages.c.conversation_id).where(messages.c.id == message_id).scalar_subquery()
    lock = sa.select(conversations.c.id).where(conversations.c.id == of).with_for_update()
    where = db.execute(lock).scalar_one_or_none()
    if db.execute(_running(message_id, owner).values(values)).rowcount != 1:
        return False
    size = conversations.c.size + grown
    db.execute(sa.update(conversations).where(conversations.c.id == where).values(size=size))
    return True


def stop(db: Connection, user_id: str, message_id: str) -> bool:
    """Stop an answer of another process, which notices when it next writes; whether it ran."""
    change = sa.update(messages).where(own(user_id, message_id), messages.c.status == "running")
    values = {"status": "stopped", "owner": None, "expires_at": None}
    return db.execute(change.values(values)).rowcount == 1


def interrupt_lost(db: Connection, *, now: int, spare: str) -> int:
    """Let answers fail whose process has died, and say how many.

    With SQLite there is one process that computes answers, so all of another's are lost; with
    PostgreSQL those that were not renewed in time.

    Args:
        db: a write transaction.
        now: milliseconds since 1970.
        spare: this process, whose answers are never lost.
    """
    columns = messages.c
    lost = sa.update(messages).where(columns.status == "running", columns.owner != spare)
    if db.dialect.name != "sqlite":
        lost = lost.where(columns.expires_at <= now)
    code, words = INTERRUPTED
    values = {
        "status": "failed", "failure_code": code, "failure_message": words, "owner": None,
        "expires_at": None,
    }  # fmt: skip
    return db.execute(lost.values(values)).rowcount


def _running(message_id: str, owner: str) -> sa.Update:
    columns = messages.c
    return sa.update(messages).where(
        columns.id == message_id, columns.status == "running", columns.owner == owner
    )


def _values(progress: Progress) -> dict[str, Any]:
    usage = progress.usage
    return {
        "content": progress.content, "model": progress.model, "tokens": progress.tokens,
        "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens, "milliseconds": usage.milliseconds,
    }  # fmt: skip
