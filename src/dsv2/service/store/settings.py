"""What an operator may change while the platform runs. Stored as they differ from the defaults."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection

from dsv2.service.store import audit
from dsv2.service.store.checks import DAY, MAX_AMOUNT
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import FieldError
from dsv2.service.store.models import settings


class Settings(BaseModel):
    """The platform's settings.

    Attributes:
        sign_up_open: whether anybody may make an account.
        sign_up_grant: micro-units a new account is given.
        currency: three letters that balances are shown with.
        session_ms: how long a log-in lasts.
        idempotency_ms: how long an answer can be had again by its idempotency key.
        requests_per_minute: most requests an account may begin in a minute; None for any number.
        tokens_per_minute: most tokens of an account's prompts and answers in a minute, or None.
        max_concurrent: most requests of an account at a time, or None.
        argon2_time_cost: passes over the memory for one password.
        argon2_memory_kib: memory for one password.
        argon2_parallelism: lanes for one password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sign_up_open: bool = True
    sign_up_grant: int = Field(default=5_000_000, ge=0, le=MAX_AMOUNT)
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    session_ms: int = Field(default=30 * DAY, ge=60_000, le=400 * DAY)
    idempotency_ms: int = Field(default=DAY, ge=60_000, le=30 * DAY)
    requests_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**12)
    max_concurrent: int | None = Field(default=None, ge=1, le=10**6)
    # The second recommendation of RFC 9106, for machines that serve other things too.
    argon2_time_cost: int = Field(default=3, ge=1, le=100)
    argon2_memory_kib: int = Field(default=65_536, ge=8, le=4_194_304)
    argon2_parallelism: int = Field(default=4, ge=1, le=64)


def load_settings(db: Connection) -> Settings:
    """The settings as they are now.

    Raises:
        FieldError: a stored one is not known or not allowed, as after a downgrade.
    """
    rows = db.execute(sa.select(settings.c.name, settings.c.value))
    return _checked({row.name: json.loads(row.value) for row in rows})


def change_setting(db: Connection, name: str, value: Any, *, actor: str, now: int) -> Settings:
    """Change one and return all.

    Raises:
        FieldError: it is not known, or the value is not allowed.
    """
    if name not in Settings.model_fields:
        raise FieldError(name, f"is no setting, allowed are {', '.join(Settings.model_fields)}")
    changed = _checked(load_settings(db).model_dump() | {name: value})
    row = {"name": name, "value": json.dumps(value), "updated_at": now}
    new = insert(db.dialect.name, settings).values(row)
    kept = {"value": new.excluded.value, "updated_at": now}
    db.execute(new.on_conflict_do_update(index_elements=["name"], set_=kept))
    detail = {"value": value}
    audit.record(db, actor=actor, action="setting.change", subject=name, detail=detail, now=now)
    return changed


def _checked(values: dict[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise FieldError(field, f"is {first['input']!r:.60}: {first['msg']}") from error
