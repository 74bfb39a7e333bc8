"""``/api/admin/users``: people and their money, for administrators.

| method, path | what |
|---|---|
| GET ``/api/admin/users`` | list, or search by part of the address |
| POST ``/api/admin/users`` | make a user |
| GET ``/api/admin/users/{id}`` | one user with balance and keys |
| PUT ``/api/admin/users/{id}/status`` | suspend, or let in again |
| PUT ``/api/admin/users/{id}/role`` | make an administrator, or an ordinary user again |
| POST ``/api/admin/users/{id}/deposit`` | put money in, as paid or granted |
| POST ``/api/admin/users/{id}/withdraw`` | take unspent money out |
| GET ``/api/admin/users/{id}/transfers`` | movements of money, with who made them |
| DELETE ``/api/admin/users/{id}/keys/{key}`` | revoke a key |
| POST ``/api/admin/requests/{id}/refund`` | give back what a request has cost |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field, SecretStr
from sqlalchemy import Connection

from dsv2.service.platform.desk import Before, Body, Desk, Limit, Offset
from dsv2.service.routes.keys import key_shape
from dsv2.service.routes.money import balance_shape, transfer_shape
from dsv2.service.routes.sessions import user_shape
from dsv2.service.serving import Caller
from dsv2.service.store import keys, ledger, reservations, users
from dsv2.service.store.checks import new_id
from dsv2.service.store.settings import load_settings
from dsv2.service.store.users import User
from dsv2.service.web.deps import Administrator
from dsv2.service.web.errors import ApiError

router = APIRouter(prefix="/api/admin")

Search = Annotated[str, Query(max_length=users.MAX_EMAIL, description="Part of the address.")]


class NewUser(Body):
    """A user that an administrator makes, without the grant of a sign-up."""

    email: str = Field(max_length=users.MAX_EMAIL)
    password: SecretStr = Field(max_length=users.MAX_PASSWORD)
    role: Literal["user", "admin"] = "user"
    unlimited: bool = False


class NewStatus(Body):
    """Whether a user may come in."""

    status: Literal["active", "suspended"]


class NewRole(Body):
    """What a user may do."""

    role: Literal["user", "admin"]


class Movement(Body):
    """Money to move. The same ``cause``, such as the number of a receipt, moves it once."""

    amount: int = Field(ge=1)
    book: Literal["granted", "paid"] = "paid"
    cause: str | None = Field(default=None, min_length=1, max_length=150)
    memo: str = Field(default="", max_length=200)


@router.get("/users")
async def list_users(
    caller: Administrator, office: Desk, search: Search = "", limit: Limit = 100, offset: Offset = 0
) -> Any:
    """Users in the order in which they came."""
    found = await office.read(
        lambda db: users.list_users(db, search=search, limit=limit, offset=offset)
    )
    return {"users": [user_shape(user) for user in found]}


@router.post("/users", status_code=201)
async def create_user(body: NewUser, caller: Administrator, office: Desk) -> Any:
    """Make a user, also where sign-up is closed."""
    settings = await office.read(load_settings)
    password = body.password.get_secret_value()
    hashed = await office.slowly(lambda: users.hash_password(settings, password))
    user = await office.write(
        lambda db: users.add_user(
            db, body.email, now=office.clock(), password_hash=hashed, role=body.role,
            unlimited=body.unlimited, actor=caller.user_id,
        )
    )  # fmt: skip
    return user_shape(user)


@router.get("/users/{user_id}")
async def get_user(user_id: str, caller: Administrator, office: Desk) -> Any:
    """A user with what they have and their keys."""

    def read(db: Connection) -> dict[str, Any]:
        user = users.get_user(db, user_id)
        return user_shape(user) | {
            "balance": balance_shape(ledger.balance(db, user.account_id)),
            "keys": [key_shape(key) for key in keys.list_keys(db, user.account_id)],
        }

    return await office.read(read)


@router.put("/users/{user_id}/status")
async def set_status(user_id: str, body: NewStatus, caller: Administrator, office: Desk) -> Any:
    """Suspend a user, which ends their sessions and stops their keys at once; or let them in."""
    _not_oneself(caller, user_id)
    user = await office.write(
        lambda db: users.set_status(
            db, user_id, body.status, actor=caller.user_id, now=office.clock()
        )
    )
    return user_shape(user)


@router.put("/users/{user_id}/role")
async def set_role(user_id: str, body: NewRole, caller: Administrator, office: Desk) -> Any:
    """Give a user another role."""
    _not_oneself(caller, user_id)
    if user_id == office.guest_id:
        raise ApiError(409, "The guest has no password, and so no other role")
    user = await office.write(
        lambda db: users.set_role(db, user_id, body.role, actor=caller.user_id, now=office.clock())
    )
    return user_shape(user)


@router.post("/users/{user_id}/deposit")
async def deposit(user_id: str, body: Movement, caller: Administrator, office: Desk) -> Any:
    """Put money into a user's account."""
    return await _move(user_id, body, caller, office, ledger.deposit)


@router.post("/users/{user_id}/withdraw")
async def withdraw(user_id: str, body: Movement, caller: Administrator, office: Desk) -> Any:
    """Take unspent money out of a user's account; 402 if there is not so much."""
    return await _move(user_id, body, caller, office, ledger.withdraw)


@router.get("/users/{user_id}/transfers")
async def transfers(
    user_id: str, caller: Administrator, office: Desk, before: Before = None, limit: Limit = 100
) -> Any:
    """Movements of a user's money, newest first."""

    def read(db: Connection) -> list[ledger.Transfer]:
        account_id = users.get_user(db, user_id).account_id
        return ledger.transfers_of(db, account_id, before=before, limit=limit)

    rows = await office.read(read)
    return {
        "transfers": [transfer_shape(row) | {"actor": row.actor} for row in rows],
        "next": rows[-1].id if len(rows) == limit else None,
    }


@router.delete("/users/{user_id}/keys/{key_id}")
async def revoke_key(user_id: str, key_id: str, caller: Administrator, office: Desk) -> Any:
    """Revoke a user's key."""

    def revoke(db: Connection) -> keys.ApiKey:
        account_id = users.get_user(db, user_id).account_id
        return keys.revoke_key(db, account_id, key_id, actor=caller.user_id, now=office.clock())

    return key_shape(await office.write(revoke))


@router.post("/requests/{request_id}/refund")
async def refund(request_id: str, caller: Administrator, office: Desk) -> Any:
    """Give back what a request has cost, once."""
    found = await office.write(
        lambda db: reservations.refund(db, request_id, actor=caller.user_id, now=office.clock())
    )
    return asdict(found)


async def _move(
    user_id: str, body: Movement, caller: Caller, office: Desk, move: Any
) -> dict[str, Any]:
    cause = f"admin:{body.cause or new_id('movement')}"

    def write(db: Connection) -> dict[str, Any]:
        user: User = users.get_user(db, user_id)
        moved = move(
            db, user.account_id, book=body.book, amount=body.amount, cause=cause,
            actor=caller.user_id, now=office.clock(), memo=body.memo,
        )  # fmt: skip
        return {"moved": moved, "balance": balance_shape(ledger.balance(db, user.account_id))}

    return await office.write(write)


def _not_oneself(caller: Caller, user_id: str) -> None:
    """So that nobody can lock out the last administrator, who would be themselves."""
    if caller.user_id == user_id:
        raise ApiError(409, "An administrator cannot change their own role or status")
