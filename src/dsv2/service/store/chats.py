"""Conversations of the chat site: their headings, how they are found, and what belongs to whom.

Every statement names the user whose conversation it must be: what is another's is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.checks import check_integer, check_text, new_id
from dsv2.service.store.errors import ConflictError, FieldError, NotFoundError
from dsv2.service.store.models import conversations, messages, users

MAX_TITLE = 200
MAX_SYSTEM = 64 << 10
MAX_TAGS = 20
MAX_TAG = 50
MAX_QUERY = 200
MAX_PARAMS = 256 << 10
MAX_CONVERSATIONS = 20_000
"""Of one user."""
MAX_PAGE = 200

_CURSOR = re.compile(r"([01])\.(\d{1,18})\.(conversation_[0-9a-f]{24})")


@dataclass(frozen=True)
class Heading:
    """A conversation as a list shows it.

    Attributes:
        id: unguessable.
        title: empty as long as nobody has named it.
        tags: in the order in which they were given.
        is_pinned: whether it stands before those that are not.
        created_at: milliseconds since 1970.
        updated_at: when the last message came.
    """

    id: str
    title: str
    tags: tuple[str, ...]
    is_pinned: bool
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class Conversation(Heading):
    """A conversation without its messages.

    Attributes:
        system: what the model is told before everything.
        params: of its answers, as they were checked when they were given.
        leaf_id: the last message of the branch that is shown, or None.
    """

    system: str
    params: dict[str, Any]
    leaf_id: str | None


_HEADING = tuple(
    conversations.c[name]
    for name in ("id", "title", "tags", "is_pinned", "created_at", "updated_at")
)


def own(user_id: str, conversation_id: str) -> sa.ColumnElement[bool]:
    """The condition that a conversation is that one, and the user's."""
    columns = conversations.c
    return sa.and_(columns.id == conversation_id, columns.user_id == user_id)


def check_title(title: object) -> str:
    """A title, which may be empty; see :func:`check_text` for what it raises."""
    return check_text("title", title, most=MAX_TITLE, least=0)


def check_tags(tags: Sequence[object]) -> str:
    """Tags as they are stored.

    Raises:
        FieldError: too many, one twice, or one that is not allowed.
    """
    if len(tags) > MAX_TAGS:
        raise FieldError("tags", f"has {len(tags)} entries, allowed are {MAX_TAGS}")
    found = [check_text(f"tags[{n}]", tag, most=MAX_TAG) for n, tag in enumerate(tags)]
    if len(set(found)) < len(found):
        raise FieldError("tags", "has one of them twice")
    return json.dumps(found, ensure_ascii=False)


def check_system(system: object) -> str:
    """A system prompt, up to 64 KiB.

    Raises:
        FieldError: it is longer, or no text.
    """
    found = check_text("system", system, most=MAX_SYSTEM, least=0)
    if len(found.encode()) > MAX_SYSTEM:
        raise FieldError("system", f"has more than {MAX_SYSTEM} bytes")
    return found


def check_params(params: Mapping[str, Any]) -> str:
    """Parameters as they are stored; what they mean is checked by who gives them.

    Raises:
        FieldError: they are too long or hold what cannot be stored.
    """
    return check_text("params", json.dumps(dict(params), ensure_ascii=False), most=MAX_PARAMS)


def lock_user(db: Connection, user_id: str) -> None:
    """Let nobody else add to what a user has until this transaction ends.

    SQLite has one writer at a time anyway.

    Raises:
        NotFoundError: there is no such user.
    """
    query = sa.select(users.c.id).where(users.c.id == user_id).with_for_update(key_share=True)
    if db.execute(query).one_or_none() is None:
        raise NotFoundError("user", user_id)


def check_room(db: Connection, user_id: str, more: int = 1) -> None:
    """Make sure that a user may have so many conversations more; locks the user.

    Raises:
        ConflictError: they may not.
    """
    lock_user(db, user_id)
    query = sa.select(sa.func.count()).where(conversations.c.user_id == user_id)
    if db.execute(query).scalar_one() + more > MAX_CONVERSATIONS:
        raise ConflictError(
            f"there are {MAX_CONVERSATIONS} conversations, which is the most", "too_many"
        )


def create_conversation(
    db: Connection,
    user_id: str,
    *,
    title: str = "",
    system: str = "",
    params: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    now: int,
) -> Conversation:
    """Begin a conversation.

    Raises:
        FieldError: something is too long.
        ConflictError: the user has too many.
    """
    row = {
        "id": new_id("conversation"),
        "user_id": user_id,
        "title": check_title(title),
        "tags": check_tags(tags),
        "system": check_system(system),
        "params": check_params(params or {}),
        "leaf_id": None,
        "is_pinned": 0,
        "size": 0,
        "created_at": now,
        "updated_at": now,
    }
    check_room(db, user_id)
    db.execute(sa.insert(conversations).values(row))
    return get_conversation(db, user_id, str(row["id"]))


def get_conversation(db: Connection, user_id: str, conversation_id: str) -> Conversation:
    """A conversation without its messages.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    query = sa.select(conversations).where(own(user_id, conversation_id))
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("conversation", conversation_id)
    return Conversation(
        row.id, row.title, tuple(json.loads(row.tags)), bool(row.is_pinned), row.created_at,
        row.updated_at, row.system, json.loads(row.params), row.leaf_id,
    )  # fmt: skip


def list_conversations(
    db: Connection,
    user_id: str,
    *,
    query: str = "",
    tag: str = "",
    before: str | None = None,
    limit: int = 50,
) -> tuple[list[Heading], str | None]:
    """A page of a user's conversations: pinned first, then by their last message.

    Args:
        db: a transaction.
        user_id: whose.
        query: only those with this in the title or in a message, whatever its case.
        tag: only those with this tag, whatever its case.
        before: what the page before gave, to go on behind it.
        limit: most rows, up to 200.

    Returns:
        The page, and ``before`` of the next one, or None.

    Raises:
        FieldError: an argument is not allowed.
    """
    columns = conversations.c
    found = sa.select(*_HEADING).where(columns.user_id == user_id)
    if query:
        check_text("query", query, most=MAX_QUERY)
        said = sa.select(messages.c.id).where(
            messages.c.conversation_id == columns.id,
            messages.c.user_id == user_id,
            messages.c.content.icontains(query, autoescape=True),
        )
        found = found.where(sa.or_(columns.title.icontains(query, autoescape=True), said.exists()))
    if tag:
        check_text("tag", tag, most=MAX_TAG)
        # Within a tag a quote has a backslash before it, so this is the whole of a tag.
        quoted = json.dumps(tag, ensure_ascii=False)
        found = found.where(columns.tags.icontains(quoted, autoescape=True))
    order = (columns.is_pinned, columns.updated_at, columns.id)
    if before is not None:
        parts = _CURSOR.fullmatch(before)
        if parts is None:
            raise FieldError("before", f"is {before!r:.60}, allowed is what a page gave as next")
        place = (int(parts[1]), int(parts[2]), parts[3])
        found = found.where(sa.tuple_(*order) < sa.tuple_(*map(sa.literal, place)))
    found = found.order_by(*(column.desc() for column in order))
    most = check_integer("limit", limit, least=1, most=MAX_PAGE)
    rows = [_heading(row) for row in db.execute(found.limit(most + 1))]
    if len(rows) <= most:
        return rows, None
    last = rows[most - 1]
    return rows[:most], f"{int(last.is_pinned)}.{last.updated_at}.{last.id}"


def tags_of(db: Connection, user_id: str) -> list[str]:
    """All tags of a user's conversations, in their order."""
    columns = conversations.c
    query = sa.select(columns.tags).where(columns.user_id == user_id, columns.tags != "[]")
    kept = db.execute(query.distinct()).scalars()
    return sorted({tag for tags in kept for tag in json.loads(tags)})


def conversation_ids_of(db: Connection, user_id: str) -> list[str]:
    """All conversations of a user, the oldest first."""
    columns = conversations.c
    query = sa.select(columns.id).where(columns.user_id == user_id)
    return list(db.execute(query.order_by(columns.created_at, columns.id)).scalars())


def change_conversation(
    db: Connection, user_id: str, conversation_id: str, changes: Mapping[str, Any]
) -> Heading:
    """Change what ``changes`` names: title, tags, system, params, leaf_id or is_pinned.

    Raises:
        NotFoundError: there is no such conversation, or it is another's.
        FieldError: a value is not allowed.
    """
    checks: dict[str, Callable[[Any], Any]] = {
        "title": check_title, "tags": check_tags, "system": check_system, "params": check_params,
        "is_pinned": int, "leaf_id": partial(_check_leaf, db, user_id, conversation_id),
    }  # fmt: skip
    values = {name: checks[name](value) for name, value in changes.items()}
    if values:
        db.execute(sa.update(conversations).where(own(user_id, conversation_id)).values(values))
    return get_heading(db, user_id, conversation_id)


def get_heading(db: Connection, user_id: str, conversation_id: str) -> Heading:
    """A conversation as a list shows it.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    row = db.execute(sa.select(*_HEADING).where(own(user_id, conversation_id))).one_or_none()
    if row is None:
        raise NotFoundError("conversation", conversation_id)
    return _heading(row)


def delete_conversation(db: Connection, user_id: str, conversation_id: str) -> None:
    """Delete a conversation with all of its messages.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    columns = messages.c
    mine = sa.and_(columns.conversation_id == conversation_id, columns.user_id == user_id)
    lock = sa.select(conversations.c.id).where(own(user_id, conversation_id)).with_for_update()
    if db.execute(lock).one_or_none() is None:
        raise NotFoundError("conversation", conversation_id)
    db.execute(sa.delete(messages).where(mine))
    db.execute(sa.delete(conversations).where(own(user_id, conversation_id)))


def _check_leaf(
    db: Connection, user_id: str, conversation_id: str, leaf_id: str | None
) -> str | None:
    get_heading(db, user_id, conversation_id)
    if leaf_id is None:
        return None
    columns = messages.c
    query = sa.select(columns.id).where(
        columns.id == leaf_id,
        columns.conversation_id == conversation_id,
        columns.user_id == user_id,
    )
    if db.execute(query).one_or_none() is None:
        raise FieldError("leaf_id", "is no message of this conversation")
    return leaf_id


def _heading(row: Any) -> Heading:
    return Heading(
        row.id, row.title, tuple(json.loads(row.tags)), bool(row.is_pinned), row.created_at,
        row.updated_at,
    )  # fmt: skip
