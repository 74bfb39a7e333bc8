"""People: sign-up, passwords, sessions and roles.

Passwords are hashed with argon2id outside any transaction: it takes tens of milliseconds, and
SQLite has one lock for everybody who writes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Connection

from dsv2.service.store import audit, ledger
from dsv2.service.store.checks import check_choice, check_integer, check_text, new_id
from dsv2.service.store.engine import Store, insert
from dsv2.service.store.errors import (
    AuthenticationError,
    ConflictError,
    FieldError,
    NotFoundError,
    SuspendedError,
)
from dsv2.service.store.models import ROLES, STATUSES, api_keys, sessions, users
from dsv2.service.store.settings import Settings, load_settings
from dsv2.service.store.tokens import hash_token, new_token

MIN_PASSWORD = 8
MAX_PASSWORD = 1024
MAX_EMAIL = 254
_EMAIL = re.compile(r"[^\s@,;<>\"()\[\]\\]+@[^\s@,;<>\"()\[\]\\]+")
# Every request of the guest runs it; SQLAlchemy reads a statement seen before much faster.
_BY_ID = sa.select(users).where(users.c.id == sa.bindparam("which"))


@dataclass(frozen=True)
class User:
    """A person.

    Attributes:
        id: unguessable.
        account_id: whose money their requests cost.
        email: in lower case.
        role: ``user`` or ``admin``.
        status: ``active`` or ``suspended``.
        created_at: milliseconds since 1970.
    """

    id: str
    account_id: str
    email: str
    role: str
    status: str
    created_at: int


def normal_email(email: str) -> str:
    """The one spelling of an address under which it can sign up once.

    Raises:
        FieldError: it is none.
    """
    check_text("email", email, most=MAX_EMAIL)
    plain = unicodedata.normalize("NFKC", email).strip().casefold()
    plain = unicodedata.normalize("NFKC", plain)  # small letters may join with what follows
    if not _EMAIL.fullmatch(plain) or not plain.isprintable() or len(plain) > MAX_EMAIL:
        raise FieldError("email", "is no e-mail address")
    return plain


def sign_up(store: Store, email: str, password: str, *, now: int) -> User:
    """Make a user with an account of their own and the free grant in it.

    Raises:
        FieldError: the address or the password is not allowed.
        ConflictError: the address has an account.
        SuspendedError: sign-up is closed.
    """
    plain = normal_email(email)
    _check_password(password)
    with store.read() as db:
        settings = load_settings(db)
    if not settings.sign_up_open:
        raise SuspendedError("sign-up is closed", "sign_up_closed")
    hashed = _hasher(settings).hash(password)
    with store.write() as db:
        user = add_user(db, plain, password_hash=hashed, now=now)
        if settings.sign_up_grant:
            ledger.deposit(
                db,
                user.account_id,
                book="granted",
                amount=settings.sign_up_grant,
                cause=f"sign-up:{user.account_id}",
                actor=audit.SYSTEM,
                now=now,
            )
        return user


def add_user(
    db: Connection,
    email: str,
    *,
    now: int,
    password_hash: str | None = None,
    role: str = "user",
    unlimited: bool = False,
    actor: str = audit.SYSTEM,
) -> User:
    """Make a user and an account, without a grant.

    Args:
        db: a write transaction.
        email: as :func:`normal_email` gives it.
        now: milliseconds since 1970.
        password_hash: as :func:`hash_password` gives it; None for somebody who never logs in.
        role: ``user`` or ``admin``.
        unlimited: whether the account's requests cost nothing.
        actor: who makes it.

    Raises:
        ConflictError: the address has an account.
    """
    check_choice("role", role, ROLES)
    email = normal_email(email)
    user_id = new_id("user")
    account_id = ledger.open_account(db, now=now, unlimited=unlimited)
    row = {
        "id": user_id,
        "account_id": account_id,
        "email": email,
        "password_hash": password_hash,
        "role": role,
        "status": "active",
        "created_at": now,
        "password_changed_at": now,
    }
    new = (
        insert(db.dialect.name, users).values(row).on_conflict_do_nothing(index_elements=["email"])
    )
    if db.execute(new.returning(users.c.id)).scalar_one_or_none() is None:
        raise ConflictError("there is an account with this e-mail address", "email_taken")
    detail = {"role": role, "unlimited": unlimited}
    audit.record(db, actor=actor, action="user.create", subject=user_id, detail=detail, now=now)
    return get_user(db, user_id)


def get_user(db: Connection, user_id: str) -> User:
    """A user by id.

    Raises:
        NotFoundError: there is none.
    """
    row = db.execute(_BY_ID, {"which": user_id}).one_or_none()
    if row is None:
        raise NotFoundError("user", user_id)
    return _user(row)


def find_user(db: Connection, email: str) -> User | None:
    """A user by address, or None."""
    query = sa.select(users).where(users.c.email == normal_email(email))
    row = db.execute(query).one_or_none()
    return None if row is None else _user(row)


def list_users(
    db: Connection, *, search: str = "", limit: int = 100, offset: int = 0
) -> list[User]:
    """Users in the order in which they came; with ``search`` those whose address contains it."""
    query = sa.select(users).order_by(users.c.created_at, users.c.id)
    if search:
        query = query.where(users.c.email.contains(search.casefold(), autoescape=True))
    query = query.limit(check_integer("limit", limit, least=1, most=1000))
    return [_user(row) for row in db.execute(query.offset(check_integer("offset", offset)))]


def emails_of(db: Connection, ids: Collection[str]) -> dict[str, str]:
    """Whom ids stand for: users themselves, the users of accounts, and the owners of API keys.

    Returns:
        Addresses by id, without the ids that stand for nobody.
    """
    accounts = sa.select(users.c.account_id, users.c.email).where(users.c.account_id.in_(ids))
    own = sa.select(users.c.id, users.c.email).where(users.c.id.in_(ids))
    keys = sa.select(api_keys.c.id, users.c.email).where(
        api_keys.c.user_id == users.c.id, api_keys.c.id.in_(ids)
    )
    return {row[0]: row[1] for row in db.execute(sa.union(accounts, own, keys))}


def log_in(store: Store, email: str, password: str, *, now: int) -> tuple[User, str]:
    """Open a session.

    An address that nobody has takes as long as a wrong password, and both get the same answer.

    Returns:
        The user, and the session's secret for a cookie.

    Raises:
        AuthenticationError: address or password is wrong, or the user is suspended.
    """
    try:
        plain = normal_email(email)
    except FieldError:
        plain = ""
    with store.read() as db:
        settings = load_settings(db)
        row = db.execute(sa.select(users).where(users.c.email == plain)).one_or_none()
    hasher = _hasher(settings)
    matches = _verify(hasher, None if row is None else row.password_hash, password)
    if row is None or not matches:
        raise AuthenticationError("unknown address or wrong password")
    fresh = hasher.hash(password) if hasher.check_needs_rehash(row.password_hash) else None
    with store.write() as db:
        # Whoever suspends the user or changes the password now waits, and ends this session too.
        query = sa.select(users).where(users.c.id == row.id).with_for_update(key_share=True)
        known = db.execute(query).one()
        if known.status != "active":
            raise AuthenticationError(f"user {row.id} is suspended")
        if known.password_changed_at != row.password_changed_at:
            raise AuthenticationError(f"the password of user {row.id} was changed meanwhile")
        if fresh is not None:
            db.execute(sa.update(users).where(users.c.id == row.id).values(password_hash=fresh))
        token = open_session(db, row.id, now=now, expires_at=now + settings.session_ms)
    return _user(row), token


def open_session(db: Connection, user_id: str, *, now: int, expires_at: int) -> str:
    """Open a session for somebody who has proved who they are, and return its secret."""
    token = new_token("session")
    row = {"token_hash": hash_token(token), "user_id": user_id}
    db.execute(sa.insert(sessions).values(row | {"created_at": now, "expires_at": expires_at}))
    audit.record(db, actor=user_id, action="session.open", subject=user_id, now=now)
    return token


def session_user(db: Connection, token: str, *, now: int) -> User:
    """Who a session belongs to.

    Raises:
        AuthenticationError: the session is unknown or over, or its user is suspended.
    """
    query = sa.select(users).join(sessions, sessions.c.user_id == users.c.id)
    query = query.where(sessions.c.token_hash == hash_token(token), sessions.c.expires_at > now)
    row = db.execute(query).one_or_none()
    if row is None:
        raise AuthenticationError("unknown session")
    if row.status != "active":
        raise AuthenticationError(f"user {row.id} is suspended")
    return _user(row)


def close_session(db: Connection, token: str) -> None:
    """End a session; one that is over already stays so."""
    db.execute(sa.delete(sessions).where(sessions.c.token_hash == hash_token(token)))


def close_sessions(db: Connection, user_id: str) -> None:
    """End all sessions of a user."""
    db.execute(sa.delete(sessions).where(sessions.c.user_id == user_id))


def drop_old_sessions(db: Connection, *, now: int) -> int:
    """Forget sessions that are over, and say how many."""
    return db.execute(sa.delete(sessions).where(sessions.c.expires_at <= now)).rowcount


def hash_password(settings: Settings, password: str) -> str:
    """A password's argon2id hash with a fresh salt; outside a transaction, because it is slow.

    Raises:
        FieldError: the password is too short or too long.
    """
    _check_password(password)
    return _hasher(settings).hash(password)


def set_password_hash(
    db: Connection, user_id: str, password_hash: str, *, actor: str, now: int
) -> None:
    """Replace a password and end all sessions that the old one has opened.

    Raises:
        NotFoundError: there is no such user.
    """
    values = {"password_hash": password_hash, "password_changed_at": now}
    if db.execute(sa.update(users).where(users.c.id == user_id).values(values)).rowcount != 1:
        raise NotFoundError("user", user_id)
    close_sessions(db, user_id)
    audit.record(db, actor=actor, action="user.password", subject=user_id, now=now)


def set_role(db: Connection, user_id: str, role: str, *, actor: str, now: int) -> User:
    """Make somebody an operator, or an ordinary user again."""
    check_choice("role", role, ROLES)
    return _change(db, user_id, "role", role, actor, now)


def set_status(db: Connection, user_id: str, status: str, *, actor: str, now: int) -> User:
    """Suspend somebody, which ends their sessions and stops their keys; or let them in again."""
    check_choice("status", status, STATUSES)
    user = _change(db, user_id, "status", status, actor, now)
    if status != "active":
        close_sessions(db, user_id)
    return user


def _change(db: Connection, user_id: str, column: str, value: str, actor: str, now: int) -> User:
    change = sa.update(users).where(users.c.id == user_id).values({column: value})
    if db.execute(change).rowcount != 1:
        raise NotFoundError("user", user_id)
    detail = {column: value}
    audit.record(db, actor=actor, action=f"user.{column}", subject=user_id, detail=detail, now=now)
    return get_user(db, user_id)


def _hasher(settings: Settings) -> PasswordHasher:
    return PasswordHasher(
        time_cost=settings.argon2_time_cost,
        # Each lane needs some; with less, nobody could log in to change the settings back.
        memory_cost=max(settings.argon2_memory_kib, 8 * settings.argon2_parallelism),
        parallelism=settings.argon2_parallelism,
    )


def _verify(hasher: PasswordHasher, known: str | None, password: str) -> bool:
    usable = isinstance(password, str) and len(password) <= MAX_PASSWORD
    secret = password.encode("utf-8", "surrogatepass") if usable else b""
    if known is None:
        hasher.hash(secret)  # takes the time that verifying would have
        return False
    try:
        return hasher.verify(known, secret) and usable
    except (VerificationError, InvalidHashError):
        return False


def _check_password(password: object) -> None:
    # Nothing of the value itself may stand in a message.
    if not isinstance(password, str) or not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise FieldError("password", f"must have {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if any("\ud800" <= letter <= "\udfff" for letter in password):
        raise FieldError("password", "must not contain lone surrogates")


def _user(row: Any) -> User:
    return User(row.id, row.account_id, row.email, row.role, row.status, row.created_at)
