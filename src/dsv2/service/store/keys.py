"""API keys: shown once, stored hashed, with an end, models, limits and a budget of their own.

Nothing about a key is remembered between requests: one that was revoked a moment ago, or whose
user was suspended, opens no door on any process.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import audit
from dsv2.service.store.checks import check_choice, check_integer, check_text, new_id
from dsv2.service.store.errors import (
    AuthenticationError,
    BudgetError,
    ConflictError,
    FieldError,
    NotFoundError,
    SuspendedError,
)
from dsv2.service.store.models import INT, PERIODS, accounts, api_keys, users
from dsv2.service.store.settings import load_settings
from dsv2.service.store.tokens import hash_token, new_token, prefix_of

MAX_MODELS = 100
MAX_KEYS = 1000
"""Most keys of an account that are not revoked."""
_NOBODY = hash_token("")

# A budget's period begins anew in the statement that first counts something in it. Of many requests
# at midnight one does it, and a clock that is set back begins nothing.
_START = sa.case(
    (api_keys.c.budget_period == "day", sa.bindparam("day_start", type_=INT)),
    (api_keys.c.budget_period == "month", sa.bindparam("month_start", type_=INT)),
    else_=0,
)
_BEGUN = api_keys.c.window_start < _START
_SPENT = sa.case((_BEGUN, 0), else_=api_keys.c.spent)
_WINDOW = sa.case((_BEGUN, _START), else_=api_keys.c.window_start)
_HOLD = (
    sa.update(api_keys)
    .where(
        api_keys.c.id == sa.bindparam("which"),
        api_keys.c.revoked_at.is_(None),
        sa.or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > sa.bindparam("now")),
        sa.or_(
            api_keys.c.budget.is_(None),
            _SPENT + api_keys.c.held + sa.bindparam("amount") <= api_keys.c.budget,
        ),
        api_keys.c.user_id.in_(sa.select(users.c.id).where(users.c.status == "active")),
    )
    .values(held=api_keys.c.held + sa.bindparam("amount"), spent=_SPENT, window_start=_WINDOW)
)
_SETTLE = (
    sa.update(api_keys)
    .where(api_keys.c.id == sa.bindparam("which"))
    .values(
        held=api_keys.c.held - sa.bindparam("release"),
        spent=_SPENT + sa.bindparam("charge"),
        window_start=_WINDOW,
        last_used_at=sa.bindparam("now"),
    )
)
_AUTHENTICATE = (
    sa.select(api_keys, users.c.role, users.c.status, accounts.c.status.label("account_status"))
    .join(users, users.c.id == api_keys.c.user_id)
    .join(accounts, accounts.c.id == api_keys.c.account_id)
    .where(api_keys.c.token_hash == sa.bindparam("wanted"))
)


@dataclass(frozen=True)
class KeyLimits:
    """What a key may do; None is no limit of its own.

    Attributes:
        models: names of the models it may use.
        budget: micro-units it may spend in a period.
        budget_period: ``total`` for once and for all, ``day`` or ``month`` in UTC.
        requests_per_minute: most requests begun in a minute.
        tokens_per_minute: most tokens of prompts and answers in a minute.
        max_concurrent: most requests at a time.
        expires_at: when it ends, milliseconds since 1970.

    Raises:
        FieldError: a value is not allowed.
    """

    models: tuple[str, ...] | None = None
    budget: int | None = None
    budget_period: str = "total"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    expires_at: int | None = None

    def __post_init__(self) -> None:
        if self.models is not None:
            if isinstance(self.models, str) or not 1 <= len(self.models) <= MAX_MODELS:
                raise FieldError("models", f"must be 1 to {MAX_MODELS} names")
            for place, model in enumerate(self.models):
                check_text(f"models[{place}]", model)
        check_choice("budget_period", self.budget_period, PERIODS)
        if self.budget is not None:
            check_integer("budget", self.budget)
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
            if (value := getattr(self, name)) is not None:
                check_integer(name, value, least=1)
        if self.expires_at is not None:
            check_integer("expires_at", self.expires_at)


@dataclass(frozen=True)
class ApiKey:
    """A key as its owner sees it, without the secret.

    Attributes:
        id: unguessable.
        account_id: who pays.
        user_id: who made it.
        name: the user's own.
        prefix: first digits of the secret, to tell keys apart.
        limits: what it may do.
        spent: micro-units of the budget's period so far.
        held: micro-units that requests under way may still cost.
        created_at: milliseconds since 1970.
        revoked_at: when it was revoked, or None.
        last_used_at: when a request with it last ended, or None.
    """

    id: str
    account_id: str
    user_id: str
    name: str
    prefix: str
    limits: KeyLimits
    spent: int
    held: int
    created_at: int
    revoked_at: int | None
    last_used_at: int | None


@dataclass(frozen=True)
class Caller:
    """Who is behind a key that is good at this moment.

    Attributes:
        key: the key.
        role: its user's.
    """

    key: ApiKey
    role: str

    def may_use(self, model: str) -> bool:
        """Whether the key is for this model."""
        return self.key.limits.models is None or model in self.key.limits.models


def create_key(
    db: Connection,
    *,
    account_id: str,
    user_id: str,
    name: str,
    now: int,
    limits: KeyLimits | None = None,
    actor: str | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        db: a write transaction.
        account_id: who pays; the user must belong to it.
        user_id: whose key it is.
        name: the user's own, 1 to 200 characters.
        now: milliseconds since 1970.
        limits: what it may do; None for everything the account may.
        actor: who makes it, if not the user.

    Returns:
        The key, and its secret, which nobody can be told a second time.

    Raises:
        FieldError: the name is not allowed.
        NotFoundError: there is no such user in the account.
        ConflictError: the account has ``MAX_KEYS`` keys.
    """
    check_text("name", name)
    limits = limits or KeyLimits()
    member = sa.and_(users.c.id == user_id, users.c.account_id == account_id)
    if db.execute(sa.select(users.c.id).where(member)).one_or_none() is None:
        raise NotFoundError("user", user_id)
    live = sa.and_(api_keys.c.account_id == account_id, api_keys.c.revoked_at.is_(None))
    if db.execute(sa.select(sa.func.count()).where(live)).scalar_one() >= MAX_KEYS:
        raise ConflictError(f"the account has {MAX_KEYS} keys; revoke one first", "too_many")
    token = new_token("sk")
    row = {
        "id": new_id("key"),
        "account_id": account_id,
        "user_id": user_id,
        "name": name,
        "token_hash": hash_token(token),
        "prefix": prefix_of(token),
        "window_start": window_start(limits.budget_period, now),
        "spent": 0,
        "held": 0,
        "created_at": now,
    }
    key_id = str(row["id"])
    db.execute(sa.insert(api_keys).values(row | _limit_columns(limits)))
    audit.record(db, actor=actor or user_id, action="key.create", subject=key_id, now=now)
    return get_key(db, account_id, key_id), token


def get_key(db: Connection, account_id: str, key_id: str) -> ApiKey:
    """A key of an account.

    Raises:
        NotFoundError: the account has no such key, whether or not another one has.
    """
    own = sa.and_(api_keys.c.id == key_id, api_keys.c.account_id == account_id)
    row = db.execute(sa.select(api_keys).where(own)).one_or_none()
    if row is None:
        raise NotFoundError("key", key_id)
    return _key(row)


def names_of(db: Connection, ids: Collection[str]) -> dict[str, str]:
    """Names of keys by id, whoever has them, without ids that are no keys'."""
    columns = api_keys.c
    rows = db.execute(sa.select(columns.id, columns.name).where(columns.id.in_(ids)))
    return {row.id: row.name for row in rows}


def list_keys(
    db: Connection, account_id: str, *, limit: int = MAX_KEYS, offset: int = 0
) -> list[ApiKey]:
    """Keys of an account: first those that are not revoked, each kind with the newest first."""
    columns = api_keys.c
    query = sa.select(api_keys).where(columns.account_id == account_id)
    query = query.order_by(columns.revoked_at.is_not(None), columns.created_at.desc(), columns.id)
    query = query.limit(check_integer("limit", limit, least=1, most=MAX_KEYS))
    return [_key(row) for row in db.execute(query.offset(check_integer("offset", offset)))]


def change_limits(
    db: Connection, account_id: str, key_id: str, limits: KeyLimits, *, actor: str, now: int
) -> ApiKey:
    """Give a key other limits, from its next request on.

    What was spent counts on, unless the period of the budget becomes another one.

    Raises:
        NotFoundError: the account has no such key.
    """
    known = get_key(db, account_id, key_id)
    values: dict[str, Any] = _limit_columns(limits)
    if limits.budget_period != known.limits.budget_period:
        values |= {"window_start": window_start(limits.budget_period, now), "spent": 0}
    db.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(values))
    audit.record(db, actor=actor, action="key.limit", subject=key_id, now=now)
    return get_key(db, account_id, key_id)


def rename_key(
    db: Connection, account_id: str, key_id: str, name: str, *, actor: str, now: int
) -> ApiKey:
    """Give a key another name.

    Raises:
        NotFoundError: the account has no such key.
        FieldError: the name is none.
    """
    get_key(db, account_id, key_id)
    change = sa.update(api_keys).where(api_keys.c.id == key_id)
    db.execute(change.values(name=check_text("name", name)))
    audit.record(db, actor=actor, action="key.rename", subject=key_id, now=now)
    return get_key(db, account_id, key_id)


def revoke_key(db: Connection, account_id: str, key_id: str, *, actor: str, now: int) -> ApiKey:
    """End a key for good; requests under way end as they would have.

    Raises:
        NotFoundError: the account has no such key.
    """
    known = get_key(db, account_id, key_id)
    if known.revoked_at is None:
        change = sa.update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        db.execute(change.values(revoked_at=now))
        audit.record(db, actor=actor, action="key.revoke", subject=key_id, now=now)
    return get_key(db, account_id, key_id)


def authenticate(db: Connection, token: str, *, now: int) -> Caller:
    """Who a secret belongs to.

    It is found by its hash, so the time this takes tells nothing about any secret.

    Raises:
        AuthenticationError: nobody's; the key has ended; or its user or account is suspended.
    """
    wanted = hash_token(token)
    row = db.execute(_AUTHENTICATE, {"wanted": wanted}).one_or_none()
    same = hmac.compare_digest(_NOBODY if row is None else row.token_hash, wanted)
    if row is None or not same:
        raise AuthenticationError("unknown key")
    if row.revoked_at is not None:
        raise AuthenticationError(f"key {row.id} is revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise AuthenticationError(f"key {row.id} has expired")
    if row.status != "active" or row.account_status != "active":
        raise AuthenticationError(f"user or account of key {row.id} is suspended")
    return Caller(_key(row), row.role)


def hold(db: Connection, key_id: str, amount: int, *, now: int) -> None:
    """Set aside part of a key's budget, if the key may be used and the budget has it.

    Raises:
        SuspendedError: the key has ended, or its user is suspended.
        BudgetError: the budget has not so much left.
    """
    if db.execute(_HOLD, {"which": key_id, "amount": amount, "now": now} | _starts(now)).rowcount:
        return
    row = db.execute(sa.select(api_keys).where(api_keys.c.id == key_id)).one()
    ended = row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now)
    spent = 0 if row.window_start < window_start(row.budget_period, now) else row.spent
    left = None if row.budget is None else row.budget - spent - row.held
    if ended or left is None or left >= amount:
        raise SuspendedError("the key has ended" if ended else "the key's user is suspended")
    raise BudgetError(amount, left, load_settings(db).currency)


def settle(db: Connection, key_id: str, held: int, charge: int, *, now: int) -> None:
    """Turn what a request held of a budget into what it has cost, in the period of its end."""
    amounts = {"which": key_id, "release": held, "charge": charge, "now": now}
    db.execute(_SETTLE, amounts | _starts(now))


def give_back(db: Connection, key_id: str, charge: int, *, at: int) -> None:
    """Take a refunded charge out of the budget's period, if it was made in this one."""
    columns = api_keys.c
    left = sa.case((columns.spent >= charge, columns.spent - charge), else_=0)
    change = sa.update(api_keys).where(columns.id == key_id, columns.window_start <= at)
    db.execute(change.values(spent=left))


def window_start(period: str, now: int) -> int:
    """When the period of a budget began that ``now`` is in; 0 for ``total``."""
    if period == "total":
        return 0
    moment = datetime.fromtimestamp(now // 1000, UTC).replace(hour=0, minute=0, second=0)
    if period == "month":
        moment = moment.replace(day=1)
    return int(moment.timestamp()) * 1000


def _starts(now: int) -> dict[str, int]:
    return {f"{period}_start": window_start(period, now) for period in ("day", "month")}


def _limit_columns(limits: KeyLimits) -> dict[str, Any]:
    return {
        "models": None if limits.models is None else json.dumps(list(limits.models)),
        "budget": limits.budget,
        "budget_period": limits.budget_period,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "max_concurrent": limits.max_concurrent,
        "expires_at": limits.expires_at,
    }


def _key(row: Any) -> ApiKey:
    models: Sequence[str] | None = None if row.models is None else json.loads(row.models)
    limits = KeyLimits(
        models=None if models is None else tuple(models),
        budget=row.budget,
        budget_period=row.budget_period,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        max_concurrent=row.max_concurrent,
        expires_at=row.expires_at,
    )
    return ApiKey(
        id=row.id,
        account_id=row.account_id,
        user_id=row.user_id,
        name=row.name,
        prefix=row.prefix,
        limits=limits,
        spent=row.spent,
        held=row.held,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
