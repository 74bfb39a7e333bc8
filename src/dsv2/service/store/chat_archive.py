"""Conversations that were kept elsewhere, and are added with messages and dates of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import chat_messages, chats
from dsv2.service.store.chat_messages import (
    INTERRUPTED,
    MAX_MESSAGES,
    MAX_SIZE,
    AnswerUsage,
    Failure,
    Message,
    check_content,
    check_usage,
)
from dsv2.service.store.checks import check_choice, check_integer, check_text, new_id
from dsv2.service.store.errors import FieldError
from dsv2.service.store.models import MESSAGE_ROLES, MESSAGE_STATES, conversations, messages

MAX_TIME = 2**53
"""Latest time: what a page can count."""
MAX_FAILURE = 1000
_PARENT_OF = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True)
class Archived:
    """A conversation from elsewhere.

    Attributes:
        title: may be empty.
        tags: as of a conversation.
        system: as of a conversation.
        params: checked by who brings them.
        is_pinned: as of a conversation.
        created_at: milliseconds since 1970.
        updated_at: milliseconds since 1970; not later than now.
        leaf_id: one of the messages, or None.
        messages: a parent before its own; their ids are their own, and get new ones.
    """

    title: str
    tags: Sequence[str]
    system: str
    params: dict[str, Any]
    is_pinned: bool
    created_at: int
    updated_at: int
    leaf_id: str | None
    messages: Sequence[Message]


def add_archived(db: Connection, user_id: str, archived: Archived, *, now: int) -> chats.Heading:
    """Add a conversation; :func:`chats.check_room` is the caller's to ask, once for many.

    Raises:
        FieldError: naming what is not allowed in it.
    """
    row: dict[str, Any] = {
        "id": new_id("conversation"),
        "user_id": user_id,
        "title": chats.check_title(archived.title),
        "tags": chats.check_tags(archived.tags),
        "system": chats.check_system(archived.system),
        "params": chats.check_params(archived.params),
        "leaf_id": None,
        "is_pinned": int(archived.is_pinned),
        "size": 0,
        "created_at": min(now, check_integer("created_at", archived.created_at, most=MAX_TIME)),
        "updated_at": min(now, check_integer("updated_at", archived.updated_at, most=MAX_TIME)),
    }
    if len(archived.messages) > MAX_MESSAGES:
        raise FieldError(
            "messages", f"has {len(archived.messages)} entries, allowed are {MAX_MESSAGES}"
        )
    known: dict[str, tuple[str, str]] = {}
    rows = []
    for place, message in enumerate(archived.messages):
        try:
            row["size"] += check_content(message.content, message.attachments)
            made = _row(message, known)
        except FieldError as error:
            raise within(f"messages[{place}]", error) from error
        if row["size"] > MAX_SIZE:
            raise FieldError("messages", f"have more than {MAX_SIZE} bytes in all")
        known[message.id] = (made["id"], message.role)
        rows.append(made | {"conversation_id": row["id"], "user_id": user_id, "place": place})
    if archived.leaf_id is not None:
        if archived.leaf_id not in known:
            raise FieldError("leaf_id", "is none of the messages")
        row["leaf_id"] = known[archived.leaf_id][0]
    db.execute(sa.insert(conversations).values(row))
    if rows:
        db.execute(sa.insert(messages), rows)
    return chats.get_heading(db, user_id, row["id"])


def within(place: str, error: FieldError) -> FieldError:
    """An error of a field that is a part of something at ``place``."""
    return FieldError(f"{place}.{error.field}", str(error).removeprefix(f"{error.field} "))


def _row(message: Message, known: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """A message as it is stored, but for where."""
    check_text("id", message.id)
    if message.id in known:
        raise FieldError("id", "is another message's too")
    check_choice("role", message.role, MESSAGE_ROLES)
    parent = None
    if message.parent_id is not None:
        if message.parent_id not in known:
            raise FieldError("parent_id", "is no message before this one")
        parent, role = known[message.parent_id]
        if role != _PARENT_OF[message.role]:
            raise FieldError("parent_id", f"is a message of the same role, {role}")
    elif message.role != "user":
        raise FieldError("parent_id", "is missing: an answer follows a message")
    usage = check_usage(message.usage or AnswerUsage())
    status, failure = check_choice("status", message.status, MESSAGE_STATES), message.failure
    if status == "running":
        status, failure = "failed", Failure(*INTERRUPTED)
    if message.role == "user":
        status, failure = "complete", None
    if failure is not None:
        check_text("failure.code", failure.code)
        check_text("failure.message", failure.message, most=MAX_FAILURE)
    if message.finish is not None:
        check_choice("finish", message.finish, ("stop", "length"))
    if message.model is not None:
        check_text("model", message.model)
    files = [{"name": one.name, "text": one.text} for one in message.attachments]
    return chat_messages.stored(
        {
            "id": new_id("message"), "parent_id": parent, "role": message.role,
            "content": message.content, "attachments": json.dumps(files, ensure_ascii=False),
            "status": status, "failure_code": failure and failure.code,
            "failure_message": failure and failure.message, "finish": message.finish,
            "model": message.model, "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens, "completion_tokens": usage.completion_tokens,
            "milliseconds": usage.milliseconds,
            "created_at": check_integer("created_at", message.created_at, most=MAX_TIME),
        }
    )  # fmt: skip
