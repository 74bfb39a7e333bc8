"""Messages of conversations: a tree of questions and answers, and answers under way.

An answer under way belongs to the process that computes it, for as long as that process renews it.
Whoever writes to it names the process; if the answer was stopped or deleted meanwhile, nothing is
written, and the process learns it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import chats
from dsv2.service.store.checks import MAX_TOKENS, check_integer, check_text, new_id
from dsv2.service.store.errors import ConflictError, FieldError, LimitError, NotFoundError
from dsv2.service.store.models import conversations, messages

MAX_CONTENT = 1 << 20
"""Bytes of a message, and of its attachments together."""
MAX_ATTACHMENTS = 50
MAX_ATTACHMENT_NAME = 200
MAX_MESSAGES = 10_000
"""Of one conversation."""
MAX_SIZE = 32 << 20
"""Bytes of all messages of one conversation: it is read and sent whole."""
MAX_RUNNING = 8
"""Answers of one user at a time."""
INTERRUPTED = ("interrupted", "The server stopped before the answer was complete")


@dataclass(frozen=True)
class Attachment:
    """A text file that goes with a message."""

    name: str
    text: str


@dataclass(frozen=True)
class Failure:
    """Why an answer has failed: a word for programs, and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class AnswerUsage:
    """What an answer has taken, all attempts to continue it together.

    Attributes:
        prompt_tokens: of its prompts.
        cached_tokens: of those, found in the prefix cache.
        completion_tokens: generated.
        milliseconds: from the first token to the last.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    milliseconds: int = 0

    def __add__(self, other: AnswerUsage) -> AnswerUsage:
        return AnswerUsage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.milliseconds + other.milliseconds,
        )


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        id: unguessable.
        conversation_id: where it is.
        parent_id: the message that it follows, or None.
        role: ``user`` or ``assistant``.
        content: its text.
        attachments: of a user's message.
        status: ``complete``, ``running``, ``stopped`` or ``failed``.
        failure: with ``failed``.
        finish: of a complete answer: ``stop`` or ``length``.
        model: that answered.
        usage: of an answer that has begun.
        created_at: milliseconds since 1970.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    role: str
    content: str
    attachments: tuple[Attachment, ...] = ()
    status: str = "complete"
    failure: Failure | None = None
    finish: str | None = None
    model: str | None = None
    usage: AnswerUsage | None = None
    created_at: int = 0


@dataclass(frozen=True)
class Lease:
    """Which process computes an answer, and until when nobody else takes it for lost."""

    owner: str
    expires_at: int


_COLUMNS = tuple(column for column in messages.c if column.name not in ("tokens", "user_id"))


def own(user_id: str, message_id: str) -> sa.ColumnElement[bool]:
    """The condition that a message is that one, and the user's."""
    return sa.and_(messages.c.id == message_id, messages.c.user_id == user_id)


def check_content(content: object, attachments: Sequence[Attachment]) -> int:
    """The bytes of a message.

    Raises:
        FieldError: it is too long, or there is nothing in it.
    """
    text = check_text("content", content, most=MAX_CONTENT, least=0)
    size = len(text.encode())
    if size > MAX_CONTENT:
        raise FieldError("content", f"has {size} bytes, allowed are {MAX_CONTENT}")
    if len(attachments) > MAX_ATTACHMENTS:
        raise FieldError(
            "attachments", f"has {len(attachments)} entries, allowed are {MAX_ATTACHMENTS}"
        )
    attached = 0
    for place, one in enumerate(attachments):
        check_text(f"attachments[{place}].name", one.name, most=MAX_ATTACHMENT_NAME)
        check_text(f"attachments[{place}].text", one.text, most=MAX_CONTENT, least=0)
        attached += len(one.text.encode())
    if attached > MAX_CONTENT:
        raise FieldError("attachments", f"have {attached} bytes, allowed are {MAX_CONTENT}")
    return size + attached


def get_message(db: Connection, user_id: str, message_id: str) -> Message:
    """A message.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    row = db.execute(sa.select(*_COLUMNS).where(own(user_id, message_id))).one_or_none()
    if row is None:
        raise NotFoundError("message", message_id)
    return _message(row)


def messages_of(db: Connection, user_id: str, conversation_id: str) -> list[Message]:
    """All messages of a conversation in the order in which they came: a parent before its own."""
    columns = messages.c
    query = sa.select(*_COLUMNS).where(
        columns.conversation_id == conversation_id, columns.user_id == user_id
    )
    return [_message(row) for row in db.execute(query.order_by(columns.place))]


def path_to(db: Connection, user_id: str, message_id: str) -> list[Message]:
    """A message and all before it, from the first on.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    columns = messages.c
    start = sa.select(columns.id, columns.parent_id).where(own(user_id, message_id))
    steps = start.cte("steps", recursive=True)
    steps = steps.union_all(
        sa.select(columns.id, columns.parent_id).where(
            columns.id == steps.c.parent_id, columns.user_id == user_id
        )
    )
    query = sa.select(*_COLUMNS).where(columns.id.in_(sa.select(steps.c.id)))
    found = [_message(row) for row in db.execute(query.order_by(columns.place))]
    if not found:
        raise NotFoundError("message", message_id)
    return found


def tokens_of(db: Connection, user_id: str, message_id: str) -> str | None:
    """The tokens of an answer as JSON, where they were kept.

    Raises:
        NotFoundError: there is no such message, or it is another's.
    """
    row = db.execute(sa.select(messages.c.tokens).where(own(user_id, message_id))).one_or_none()
    if row is None:
        raise NotFoundError("message", message_id)
    found: str | None = row.tokens
    return found


def ask(
    db: Connection,
    user_id: str,
    conversation_id: str,
    *,
    parent_id: str | None,
    content: str,
    attachments: Sequence[Attachment] = (),
    lease: Lease,
    now: int,
) -> tuple[Message, Message]:
    """Add a user's message, and an answer to it that is about to run.

    Returns:
        Both messages. The answer's branch is now the one that is shown, and a conversation without
        a title is named after the message.

    Raises:
        NotFoundError: there is no such conversation, or it is another's.
        FieldError: the message is too long or empty, or the parent is no answer in this
            conversation.
        ConflictError: the conversation is full, or the parent is still running.
        LimitError: too many answers are running.
    """
    size = check_content(content, attachments)
    if not content.strip() and not attachments:
        raise FieldError("content", "is empty, allowed is a text, or a file")
    check_running(db, user_id)
    place = _lock(db, user_id, conversation_id, size, 2)
    if parent_id is not None:
        _check_parent(db, user_id, conversation_id, parent_id)
    question, answer = new_id("message"), new_id("message")
    files = [{"name": one.name, "text": one.text} for one in attachments]
    row = {"conversation_id": conversation_id, "user_id": user_id, "created_at": now}
    db.execute(
        sa.insert(messages).values(
            stored(row | {"id": question, "parent_id": parent_id, "place": place, "role": "user"})
            | {"content": content, "attachments": json.dumps(files, ensure_ascii=False)}
        )
    )
    _add_answer(db, row | {"id": answer, "parent_id": question, "place": place + 1}, lease)
    values: dict[str, Any] = {"leaf_id": answer, "updated_at": now}
    values["size"] = conversations.c.size + size
    mine = chats.own(user_id, conversation_id)
    db.execute(sa.update(conversations).where(mine).values(values))
    name = title_of(content) or title_of(attachments[0].name if attachments else "")
    unnamed = sa.and_(mine, conversations.c.title == "")
    db.execute(sa.update(conversations).where(unnamed).values(title=name))
    return get_message(db, user_id, question), get_message(db, user_id, answer)


def answer_again(
    db: Connection, user_id: str, message_id: str, *, lease: Lease, now: int
) -> Message:
    """Add another answer to what a message answers.

    Raises:
        NotFoundError: there is no such message, or it is another's.
        ConflictError: it is no answer, or the conversation is full.
        LimitError: too many answers are running.
    """
    known = get_message(db, user_id, message_id)
    if known.role != "assistant":
        raise ConflictError("only an answer can be given again")
    check_running(db, user_id)
    place = _lock(db, user_id, known.conversation_id, 0, 1)
    fresh = new_id("message")
    row = {
        "id": fresh, "conversation_id": known.conversation_id, "user_id": user_id,
        "parent_id": known.parent_id, "place": place, "created_at": now,
    }  # fmt: skip
    _add_answer(db, row, lease)
    mine = chats.own(user_id, known.conversation_id)
    db.execute(sa.update(conversations).where(mine).values(leaf_id=fresh, updated_at=now))
    return get_message(db, user_id, fresh)


def resume(db: Connection, user_id: str, message_id: str, *, lease: Lease, now: int) -> Message:
    """Let an answer run on that was stopped, has failed or has reached its length.

    Raises:
        NotFoundError: there is no such message, or it is another's.
        ConflictError: it is none of these, or the conversation is full.
        LimitError: too many answers are running.
    """
    known = get_message(db, user_id, message_id)
    check_running(db, user_id)
    _lock(db, user_id, known.conversation_id, 0, 0)
    columns = messages.c
    unfinished = sa.or_(columns.status.in_(("stopped", "failed")), columns.finish == "length")
    change = sa.update(messages).where(
        own(user_id, message_id), columns.role == "assistant", columns.status != "running",
        unfinished,
    )  # fmt: skip
    values = {
        "status": "running", "failure_code": None, "failure_message": None, "finish": None,
        "owner": lease.owner, "expires_at": lease.expires_at,
    }  # fmt: skip
    if db.execute(change.values(values)).rowcount != 1:
        raise ConflictError("the message is no answer that can go on")
    mine = chats.own(user_id, known.conversation_id)
    db.execute(sa.update(conversations).where(mine).values(updated_at=now))
    return get_message(db, user_id, message_id)


def check_running(db: Connection, user_id: str) -> None:
    """Make sure that one more answer of the user may run; locks the user.

    Raises:
        LimitError: too many do.
    """
    chats.lock_user(db, user_id)
    columns = messages.c
    query = sa.select(sa.func.count()).where(
        columns.user_id == user_id, columns.status == "running"
    )
    if db.execute(query).scalar_one() >= MAX_RUNNING:
        raise LimitError(f"{MAX_RUNNING} answers are running, which is the most")


def title_of(text: str) -> str:
    """A title from the beginning of a text: its first line with words, cut at one."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    if len(line) <= 80:
        return line
    head, _, _ = line[:80].rpartition(" ")
    return (head if len(head) > 40 else line[:79]) + "…"


def _lock(db: Connection, user_id: str, conversation_id: str, size: int, more: int) -> int:
    """The place of the next message in a conversation, which has room for what is to come."""
    query = sa.select(conversations.c.size).where(chats.own(user_id, conversation_id))
    row = db.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise NotFoundError("conversation", conversation_id)
    if row.size + size > MAX_SIZE:
        raise ConflictError(
            f"the conversation has {row.size} bytes, and {MAX_SIZE} are the most; begin another"
        )
    last = sa.select(sa.func.max(messages.c.place)).where(
        messages.c.conversation_id == conversation_id
    )
    found = db.execute(last).scalar_one()
    place: int = 0 if found is None else found + 1
    if place + more > MAX_MESSAGES:
        raise ConflictError(
            f"the conversation has {MAX_MESSAGES} messages, which is the most", "too_many"
        )
    return place


def _check_parent(db: Connection, user_id: str, conversation_id: str, parent_id: str) -> None:
    columns = messages.c
    query = sa.select(columns.role, columns.status).where(
        own(user_id, parent_id), columns.conversation_id == conversation_id
    )
    row = db.execute(query).one_or_none()
    if row is None or row.role != "assistant":
        raise FieldError("parent_id", "is no answer of this conversation")
    if row.status == "running":
        raise ConflictError("the answer that this is to follow is still running", "answer_running")


def stored(given: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: what is given, and for the rest what a new message has."""
    usual = {
        "content": "", "attachments": "[]", "status": "complete", "failure_code": None,
        "failure_message": None, "finish": None, "model": None, "prompt_tokens": 0,
        "cached_tokens": 0, "completion_tokens": 0, "milliseconds": 0, "tokens": None,
        "owner": None, "expires_at": None,
    }  # fmt: skip
    return usual | given


def _add_answer(db: Connection, row: dict[str, Any], lease: Lease) -> None:
    running = {"owner": lease.owner, "expires_at": lease.expires_at, "status": "running"}
    db.execute(sa.insert(messages).values(stored(row | running | {"role": "assistant"})))


def _message(row: Any) -> Message:
    usage = AnswerUsage(
        row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.milliseconds
    )
    failure = None
    if row.failure_code is not None:
        failure = Failure(row.failure_code, row.failure_message)
    return Message(
        row.id, row.conversation_id, row.parent_id, row.role, row.content,
        tuple(Attachment(one["name"], one["text"]) for one in json.loads(row.attachments)),
        row.status, failure, row.finish, row.model,
        usage if row.prompt_tokens else None, row.created_at,
    )  # fmt: skip


def check_usage(usage: AnswerUsage) -> AnswerUsage:
    """Usage that can be stored.

    Raises:
        FieldError: a number is out of bounds.
    """
    check_integer("prompt_tokens", usage.prompt_tokens, most=MAX_TOKENS)
    check_integer("cached_tokens", usage.cached_tokens, most=usage.prompt_tokens)
    check_integer("completion_tokens", usage.completion_tokens, most=MAX_TOKENS)
    check_integer("milliseconds", usage.milliseconds)
    return usage
