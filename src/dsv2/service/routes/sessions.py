"""``/api/account``: signing up, logging in and out, and the password.

| method, path | who | what |
|---|---|---|
| POST ``/api/account/sign-up`` | anybody | make an account and a session |
| POST ``/api/account/log-in`` | anybody | open a session |
| POST ``/api/account/log-out`` | anybody | end this session |
| POST ``/api/account/log-out-everywhere`` | member | end all of one's sessions |
| GET ``/api/account/me`` | signed in | who one is |
| PUT ``/api/account/password`` | member | set another password, which ends all other sessions |

Wrong address, wrong password and suspended user get one answer in the same time. That an address
has an account can be learnt by signing up with it, a few times an hour: without e-mail there is no
other way to tell its owner.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, SecretStr
from sqlalchemy import Connection

from dsv2.service.platform.desk import Body, Desk, Member, address_of, wait_or_refuse
from dsv2.service.platform.office import Office
from dsv2.service.store import users
from dsv2.service.store.settings import load_settings
from dsv2.service.store.users import User
from dsv2.service.web.deps import Public, SignedIn
from dsv2.service.web.origins import check_same_site

router = APIRouter(prefix="/api/account")

Password = Annotated[SecretStr, Field(max_length=users.MAX_PASSWORD)]


class Credentials(Body):
    """Who somebody says they are."""

    email: str = Field(max_length=users.MAX_EMAIL)
    password: Password


class NewPassword(Body):
    """A password and the one it replaces."""

    old_password: Password
    new_password: Password


@router.post("/sign-up", status_code=201, dependencies=[Public])
async def sign_up(body: Credentials, request: Request, response: Response, office: Desk) -> Any:
    """Make an account with the free grant in it, once for each e-mail address."""
    check_same_site(request)
    address = address_of(request)
    wait_or_refuse(lambda: office.sign_ups.take(address))
    password = body.password.get_secret_value()
    user = await office.slowly(
        lambda: users.sign_up(office.store, body.email, password, now=office.clock())
    )
    await _open(office, user, request, response)
    return user_shape(user)


@router.post("/log-in", dependencies=[Public])
async def log_in(body: Credentials, request: Request, response: Response, office: Desk) -> Any:
    """Open a session."""
    check_same_site(request)
    address, account = address_of(request), body.email.strip().casefold()
    throttles = (
        (office.log_ins, f"{account} {address}"),
        (office.log_ins_of_address, address),
        (office.log_ins_of_account, account),
    )
    wait_or_refuse(*(lambda one=one, name=name: one.take(name) for one, name in throttles))
    password = body.password.get_secret_value()
    user, token = await office.slowly(
        lambda: users.log_in(office.store, body.email, password, now=office.clock())
    )
    for one, name in throttles:
        one.give_back(name)
    await _replace(office, token, request, response)
    return user_shape(user)


@router.post("/log-out", status_code=204, dependencies=[Public])
async def log_out(request: Request, response: Response, office: Desk) -> None:
    """End this session, and let the browser forget it, whether or not it was still good."""
    check_same_site(request)
    if token := office.cookie.read(request):
        await office.write(lambda db: users.close_session(db, token))
    office.cookie.take_back(response)


@router.post("/log-out-everywhere", status_code=204)
async def log_out_everywhere(caller: Member, response: Response, office: Desk) -> None:
    """End all sessions of the user, this one too; API keys stay."""
    await office.write(lambda db: users.close_sessions(db, caller.user_id))
    office.cookie.take_back(response)


@router.get("/me")
async def me(caller: SignedIn, office: Desk) -> Any:
    """Who is signed in; ``guest`` for somebody on this machine without an account."""

    def read(db: Connection) -> dict[str, Any]:
        shape = user_shape(users.get_user(db, caller.user_id))
        currency = load_settings(db).currency
        return shape | {"guest": caller.user_id == office.guest_id, "currency": currency}

    return await office.read(read)


@router.put("/password", status_code=204)
async def change_password(
    body: NewPassword, caller: Member, request: Request, response: Response, office: Desk
) -> None:
    """Set another password; every session ends, and this browser gets a new one."""
    name = f"password {caller.user_id}"
    wait_or_refuse(lambda: office.log_ins.take(name))
    user = await office.read(lambda db: users.get_user(db, caller.user_id))
    old = body.old_password.get_secret_value()
    # It opens a session, which ends with all the others below.
    await office.slowly(lambda: users.log_in(office.store, user.email, old, now=office.clock()))
    office.log_ins.give_back(name)
    settings = await office.read(load_settings)
    password = body.new_password.get_secret_value()
    hashed = await office.slowly(lambda: users.hash_password(settings, password))
    await office.write(
        lambda db: users.set_password_hash(db, user.id, hashed, actor=user.id, now=office.clock())
    )
    await _open(office, user, request, response)


def user_shape(user: User) -> dict[str, Any]:
    """A user as the site shows them."""
    return {
        "id": user.id, "account_id": user.account_id, "email": user.email, "role": user.role,
        "status": user.status, "created_at": user.created_at,
    }  # fmt: skip


async def _open(office: Office, user: User, request: Request, response: Response) -> None:
    """Give a browser a session of a user who has proved who they are."""
    now = office.clock()

    def write(db: Connection) -> str:
        lasts = load_settings(db).session_ms
        return users.open_session(db, user.id, now=now, expires_at=now + lasts)

    await _replace(office, await office.write(write), request, response)


async def _replace(office: Office, token: str, request: Request, response: Response) -> None:
    """Give a browser a session that nobody has known before, in place of the one it had."""
    if before := office.cookie.read(request):
        await office.write(lambda db: users.close_session(db, before))
    settings = await office.read(load_settings)
    office.cookie.give(response, token, settings.session_ms // 1000)
