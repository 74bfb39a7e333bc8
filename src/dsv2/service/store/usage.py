"""What was used: one row per request, sums per day, key and model, and both as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store.checks import check_integer
from dsv2.service.store.engine import insert
from dsv2.service.store.errors import FieldError
from dsv2.service.store.models import reservations, usage_daily
from dsv2.service.store.prices import Usage

_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "charge")


@dataclass(frozen=True)
class DailyUsage:
    """Sums of the requests that ended on one day.

    Attributes:
        day: ``YYYY-MM-DD`` in UTC.
        account_id: whose.
        key_id: with which key; empty for requests without one.
        model: of which model.
        requests: how many.
        prompt_tokens: of all prompts.
        cached_tokens: of them, found in the prefix cache.
        completion_tokens: generated.
        charge: micro-units, refunds subtracted.
    """

    day: str
    account_id: str
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charge: int


@dataclass(frozen=True)
class RequestUsage:
    """One finished request. Nothing of its text is kept.

    Attributes:
        id: the request's.
        account_id: whose.
        key_id: with which key; empty without one.
        model: of which model.
        prompt_tokens: of the prompt.
        cached_tokens: of them, found in the prefix cache.
        completion_tokens: generated.
        cost: micro-units by the price of its beginning.
        charge: micro-units paid: the cost, or the hold where that was less.
        refunded: micro-units given back later.
        finish: how it ended.
        created_at: milliseconds since 1970.
        finished_at: milliseconds since 1970.
    """

    id: str
    account_id: str
    key_id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int
    charge: int
    refunded: int
    finish: str
    created_at: int
    finished_at: int


def day_of(at: int) -> str:
    """The day of a time in UTC, as ``YYYY-MM-DD``."""
    return datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%d")


def add_to_day(
    db: Connection,
    *,
    day: str,
    account_id: str,
    key_id: str | None,
    model: str,
    requests: int,
    usage: Usage,
    charge: int,
) -> None:
    """Add a request to its day's sums, or with ``requests`` 0 and a negative charge a refund."""
    names = {"day": day, "account_id": account_id, "key_id": key_id or "", "model": model}
    counts = {
        "requests": requests,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "charge": charge,
    }
    db.execute(_add(db.dialect.name), names | counts)


@cache
def _add(dialect: str) -> Any:
    new = insert(dialect, usage_daily)
    added = {name: usage_daily.c[name] + new.excluded[name] for name in _COUNTS}
    return new.on_conflict_do_update(index_elements=list(usage_daily.primary_key), set_=added)


def daily(
    db: Connection,
    *,
    first: str,
    last: str,
    account_id: str | None = None,
    key_id: str | None = None,
    model: str | None = None,
) -> list[DailyUsage]:
    """The sums of some days, by day, account, key and model.

    Args:
        db: a transaction.
        first: first day, ``YYYY-MM-DD``.
        last: last day.
        account_id: only this account's.
        key_id: only this key's; empty for requests without one.
        model: only this model's.

    Raises:
        FieldError: a day cannot be read.
    """
    columns = usage_daily.c
    query = sa.select(usage_daily).where(
        columns.day.between(_check_day("first", first), _check_day("last", last))
    )
    wanted = {"account_id": account_id, "key_id": key_id, "model": model}
    for name, value in wanted.items():
        if value is not None:
            query = query.where(columns[name] == value)
    order = (columns.day, columns.account_id, columns.key_id, columns.model)
    return [DailyUsage(*row) for row in db.execute(query.order_by(*order))]


def requests_of(
    db: Connection,
    account_id: str | None = None,
    *,
    since: int = 0,
    until: int = 2**62,
    limit: int = 100,
    offset: int = 0,
) -> list[RequestUsage]:
    """Finished requests, newest first.

    Args:
        db: a transaction.
        account_id: only this account's.
        since: only those that ended at or after this time.
        until: only those that ended before.
        limit: most rows, up to 10,000.
        offset: rows to leave out, to go on where a page ended.
    """
    columns = reservations.c
    names = [field.name for field in fields(RequestUsage)]
    query = sa.select(*(columns[name] for name in names)).where(
        columns.finished_at >= since, columns.finished_at < until
    )
    if account_id is not None:
        query = query.where(columns.account_id == account_id)
    query = query.order_by(columns.finished_at.desc(), columns.id)
    query = query.limit(check_integer("limit", limit, least=1, most=10_000))
    rows = db.execute(query.offset(check_integer("offset", offset))).mappings()
    return [RequestUsage(**dict(row) | {"key_id": row["key_id"] or ""}) for row in rows]


def csv_lines(rows: Iterable[DailyUsage] | Iterable[RequestUsage], kind: type) -> Iterator[str]:
    """Rows as CSV: a line of names, then one per row, each with its line end.

    Args:
        rows: of the same kind.
        kind: their class, which the names come from even if there are none.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    for row in rows:
        yield _taken(buffer)
        writer.writerow([_plain(value) for value in astuple(row)])
    yield _taken(buffer)


def _taken(buffer: io.StringIO) -> str:
    line = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return line


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: users choose the names in it."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _check_day(field: str, value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError) as error:
        raise FieldError(field, f"is {value!r:.40}, allowed is a day as YYYY-MM-DD") from error
