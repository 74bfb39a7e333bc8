"""Presets of the chat site: a system prompt and parameters under a name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.chats import check_params, check_system, lock_user
from dsv2.service.store.checks import check_text, new_id
from dsv2.service.store.errors import ConflictError, NotFoundError
from dsv2.service.store.models import presets

MAX_PRESETS = 100
"""Of one user."""


@dataclass(frozen=True)
class Preset:
    """What a conversation can begin with.

    Attributes:
        id: unguessable.
        name: the user's own.
        system: what the model is told before everything.
        params: of answers.
    """

    id: str
    name: str
    system: str
    params: dict[str, Any]


def list_presets(db: Connection, user_id: str) -> list[Preset]:
    """All presets of a user, the oldest first."""
    columns = presets.c
    query = sa.select(presets).where(columns.user_id == user_id)
    return [_preset(row) for row in db.execute(query.order_by(columns.created_at, columns.id))]


def create_preset(
    db: Connection, user_id: str, *, name: str, system: str, params: Mapping[str, Any], now: int
) -> Preset:
    """Make a preset.

    Raises:
        FieldError: something is too long.
        ConflictError: the user has too many.
    """
    row = {
        "id": new_id("preset"),
        "user_id": user_id,
        "name": check_text("name", name),
        "system": check_system(system),
        "params": check_params(params),
        "created_at": now,
    }
    lock_user(db, user_id)
    query = sa.select(sa.func.count()).where(presets.c.user_id == user_id)
    if db.execute(query).scalar_one() >= MAX_PRESETS:
        raise ConflictError(f"there are {MAX_PRESETS} presets, which is the most", "too_many")
    db.execute(sa.insert(presets).values(row))
    return get_preset(db, user_id, str(row["id"]))


def get_preset(db: Connection, user_id: str, preset_id: str) -> Preset:
    """A preset.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    row = db.execute(sa.select(presets).where(_own(user_id, preset_id))).one_or_none()
    if row is None:
        raise NotFoundError("preset", preset_id)
    return _preset(row)


def change_preset(
    db: Connection, user_id: str, preset_id: str, changes: Mapping[str, Any]
) -> Preset:
    """Change what ``changes`` names: name, system or params.

    Raises:
        NotFoundError: there is none, or it is another's.
        FieldError: a value is not allowed.
    """
    checks = {
        "name": lambda name: check_text("name", name), "system": check_system,
        "params": check_params,
    }  # fmt: skip
    values = {name: checks[name](value) for name, value in changes.items()}
    if values:
        db.execute(sa.update(presets).where(_own(user_id, preset_id)).values(values))
    return get_preset(db, user_id, preset_id)


def delete_preset(db: Connection, user_id: str, preset_id: str) -> None:
    """Delete a preset.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    if db.execute(sa.delete(presets).where(_own(user_id, preset_id))).rowcount != 1:
        raise NotFoundError("preset", preset_id)


def _own(user_id: str, preset_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(presets.c.id == preset_id, presets.c.user_id == user_id)


def _preset(row: Any) -> Preset:
    return Preset(row.id, row.name, row.system, json.loads(row.params))
