"""``/api/account/keys``: a member's API keys.

| method, path | who | what |
|---|---|---|
| GET ``/api/account/keys`` | signed in | all keys, the newest first, without secrets |
| POST ``/api/account/keys`` | member | make one; the answer has its secret, this once |
| GET ``/api/account/keys/{id}`` | signed in | one key |
| PATCH ``/api/account/keys/{id}`` | member | change its name or some of its limits |
| DELETE ``/api/account/keys/{id}`` | member | revoke it |

A key of another account is not found, like one that does not exist.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import Connection

from dsv2.service.platform.desk import Body, Desk, Member
from dsv2.service.store import keys
from dsv2.service.store.keys import ApiKey, KeyLimits
from dsv2.service.web.deps import SignedIn

router = APIRouter(prefix="/api/account/keys")


class Limits(Body):
    """What a key may do; null is no limit. See :class:`dsv2.service.store.keys.KeyLimits`."""

    models: list[str] | None = Field(default=None, max_length=keys.MAX_MODELS)
    budget: int | None = None
    budget_period: str = "total"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    expires_at: int | None = None

    def given(self) -> dict[str, Any]:
        """The limits that the request names."""
        values = {name: getattr(self, name) for name in self.model_fields_set - {"name"}}
        if values.get("models") is not None:
            values["models"] = tuple(values["models"])
        return values


class NewKey(Limits):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=200)


class ChangedKey(Limits):
    """What is to be another way."""

    name: str | None = Field(default=None, min_length=1, max_length=200)


@router.get("")
async def list_keys(caller: SignedIn, office: Desk) -> Any:
    """All keys of the account, revoked ones too."""
    found = await office.read(lambda db: keys.list_keys(db, caller.account_id))
    return {"keys": [key_shape(key) for key in found]}


@router.post("", status_code=201)
async def create_key(body: NewKey, caller: Member, office: Desk) -> Any:
    """Make a key. ``secret`` is shown now and never again."""

    def create(db: Connection) -> tuple[ApiKey, str]:
        return keys.create_key(
            db, account_id=caller.account_id, user_id=caller.user_id, name=body.name,
            now=office.clock(), limits=KeyLimits(**body.given()),
        )  # fmt: skip

    key, secret = await office.write(create)
    return key_shape(key) | {"secret": secret}


@router.get("/{key_id}")
async def get_key(key_id: str, caller: SignedIn, office: Desk) -> Any:
    """One key of the account."""
    return key_shape(await office.read(lambda db: keys.get_key(db, caller.account_id, key_id)))


@router.patch("/{key_id}")
async def change_key(key_id: str, body: ChangedKey, caller: Member, office: Desk) -> Any:
    """Change the name and the limits that the body names, from the next request on."""

    def change(db: Connection) -> ApiKey:
        actor, now = caller.user_id, office.clock()
        known = keys.get_key(db, caller.account_id, key_id)
        if body.name is not None:
            known = keys.rename_key(db, caller.account_id, key_id, body.name, actor=actor, now=now)
        if not body.given():
            return known
        limits = replace(known.limits, **body.given())
        return keys.change_limits(db, caller.account_id, key_id, limits, actor=actor, now=now)

    return key_shape(await office.write(change))


@router.delete("/{key_id}")
async def revoke_key(key_id: str, caller: Member, office: Desk) -> Any:
    """Revoke a key for good; what is under way ends as it would have."""

    def revoke(db: Connection) -> ApiKey:
        return keys.revoke_key(
            db, caller.account_id, key_id, actor=caller.user_id, now=office.clock()
        )

    return key_shape(await office.write(revoke))


def key_shape(key: ApiKey) -> dict[str, Any]:
    """A key as its owner sees it: its first digits, and no secret."""
    return {
        "id": key.id, "name": key.name, "prefix": key.prefix, "created_at": key.created_at,
        "revoked_at": key.revoked_at, "last_used_at": key.last_used_at, "spent": key.spent,
        "held": key.held, **asdict(key.limits),
    }  # fmt: skip
