"""``/api/admin``: prices, codes, settings and records, for administrators.

| method, path | what |
|---|---|
| GET ``/api/admin/prices`` | every price there ever was |
| PUT ``/api/admin/prices`` | follow a model's price by another |
| GET, POST ``/api/admin/codes`` | list redemption codes; make one, whose secret is shown once |
| DELETE ``/api/admin/codes/{id}`` | revoke one |
| GET ``/api/admin/settings`` | all settings |
| PUT ``/api/admin/settings/{name}`` | change one |
| GET ``/api/admin/audit`` | who did what to whom, newest first, in pages |
| GET ``/api/admin/usage``, ``/api/admin/usage.csv`` | sums per day, account, key and model |
| GET ``/api/admin/requests`` | finished requests of everybody |
| POST ``/api/admin/verify`` | whether the books agree |
| POST ``/api/admin/export`` | every table as JSON lines, into a folder on the server |
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field, JsonValue
from sqlalchemy import Connection

from dsv2.service.platform.desk import Before, Body, Desk, Limit, Offset
from dsv2.service.routes.usage import CsvResponse, Days, csv_answer
from dsv2.service.store import audit, backup, codes, keys, prices, users
from dsv2.service.store.audit import AuditEntry
from dsv2.service.store.checks import new_id
from dsv2.service.store.settings import change_setting, load_settings
from dsv2.service.store.usage import DailyUsage, requests_of
from dsv2.service.store.verify import verify_books
from dsv2.service.web.deps import Administrator

router = APIRouter(prefix="/api/admin")

AT_A_TIME = 1000
"""Ids in one question to the database, which bounds the parameters of a statement."""

Account = Annotated[str | None, Query(max_length=100, description="Only this account's.")]


class NewPrice(Body):
    """Micro-units for a million tokens."""

    model: str = Field(min_length=1, max_length=200)
    input: int = Field(ge=0)
    cached_input: int = Field(ge=0)
    output: int = Field(ge=0)


class NewCode(Body):
    """A redemption code to be made."""

    amount: int = Field(ge=1)
    book: Literal["granted", "paid"] = "granted"
    max_uses: int = Field(default=1, ge=1, le=codes.MAX_USES)
    expires_at: int | None = Field(default=None, ge=0, le=2**62)


class NewValue(Body):
    """A setting's value."""

    value: JsonValue


@router.get("/prices")
async def list_prices(caller: Administrator, office: Desk) -> Any:
    """All prices by model and version; each model's last is its price now."""
    return {"prices": [asdict(price) for price in await office.read(prices.list_prices)]}


@router.put("/prices")
async def set_price(body: NewPrice, caller: Administrator, office: Desk) -> Any:
    """Set a model's price for requests that begin from now on."""
    made = await office.write(
        lambda db: prices.set_price(
            db, body.model, input=body.input, cached_input=body.cached_input, output=body.output,
            actor=caller.user_id, now=office.clock(),
        )
    )  # fmt: skip
    return asdict(made)


@router.get("/codes")
async def list_codes(caller: Administrator, office: Desk) -> Any:
    """All codes, the newest first, without secrets."""
    return {"codes": [asdict(code) for code in await office.read(codes.list_codes)]}


@router.post("/codes", status_code=201)
async def create_code(body: NewCode, caller: Administrator, office: Desk) -> Any:
    """Make a code. ``secret`` is shown now and never again."""
    code, secret = await office.write(
        lambda db: codes.create_code(
            db, amount=body.amount, actor=caller.user_id, now=office.clock(), book=body.book,
            max_uses=body.max_uses, expires_at=body.expires_at,
        )
    )  # fmt: skip
    return asdict(code) | {"secret": secret}


@router.delete("/codes/{code_id}")
async def revoke_code(code_id: str, caller: Administrator, office: Desk) -> Any:
    """Revoke a code; what was redeemed stays."""
    code = await office.write(
        lambda db: codes.revoke_code(db, code_id, actor=caller.user_id, now=office.clock())
    )
    return asdict(code)


@router.get("/settings")
async def get_settings(caller: Administrator, office: Desk) -> Any:
    """All settings as they are."""
    return (await office.read(load_settings)).model_dump()


@router.put("/settings/{name}")
async def set_setting(name: str, body: NewValue, caller: Administrator, office: Desk) -> Any:
    """Change a setting and return all; limits of accounts are heeded within some seconds."""
    changed = await office.write(
        lambda db: change_setting(db, name, body.value, actor=caller.user_id, now=office.clock())
    )
    return changed.model_dump()


@router.get("/audit")
async def audit_log(
    caller: Administrator,
    office: Desk,
    subject: Account = None,
    before: Before = None,
    limit: Limit = 100,
) -> Any:
    """Who did what to whom, newest first. ``next`` is the ``before`` of the next page, or null.

    Ids of users, accounts and keys come with their person's address, where there is one.
    """

    def read(db: Connection) -> tuple[list[AuditEntry], dict[str, str]]:
        rows = audit.entries_of(db, subject, before=before, limit=limit)
        ids = {name for row in rows for name in (row.actor, row.subject)}
        return rows, users.emails_of(db, ids)

    rows, emails = await office.read(read)
    return {
        "entries": [
            asdict(row)
            | {"actor_email": emails.get(row.actor), "subject_email": emails.get(row.subject)}
            for row in rows
        ],
        "next": rows[-1].id if len(rows) == limit else None,
    }


@router.get("/usage")
async def usage(caller: Administrator, office: Desk, days: Days, account: Account = None) -> Any:
    """Sums per day, account, key and model; of accounts and keys there are the names too."""
    rows = await days.of(office, account)

    def read(db: Connection) -> dict[str, dict[str, str]]:
        ids = sorted({name for row in rows for name in (row.account_id, row.key_id)})
        emails, key_names = dict[str, str](), dict[str, str]()
        for start in range(0, len(ids), AT_A_TIME):
            some = ids[start : start + AT_A_TIME]
            emails |= users.emails_of(db, some)
            key_names |= keys.names_of(db, some)
        return {"emails": emails, "key_names": key_names}

    return {"usage": [asdict(row) for row in rows]} | await office.read(read)


@router.get("/usage.csv", response_class=CsvResponse)
async def usage_csv(
    caller: Administrator, office: Desk, days: Days, account: Account = None
) -> CsvResponse:
    """Sums per day, account, key and model as CSV."""
    return csv_answer(await days.of(office, account), DailyUsage)


@router.get("/requests")
async def requests(
    caller: Administrator,
    office: Desk,
    account: Account = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Any:
    """Finished requests, newest first."""
    rows = await office.read(lambda db: requests_of(db, account, limit=limit, offset=offset))
    return {"requests": [asdict(row) for row in rows]}


@router.post("/verify")
async def verify(caller: Administrator, office: Desk) -> Any:
    """Whether the books agree: a sentence for each disagreement."""
    problems = await office.read(verify_books)
    return {"sound": not problems, "problems": problems}


@router.post("/export", status_code=201)
async def export(caller: Administrator, office: Desk) -> Any:
    """Write every table, without its secrets, into a new folder beside the server's data."""
    name = (
        f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(office.clock() // 1000))}-{new_id('export')}"
    )
    folder = office.folder / "exports" / name
    rows = await office.slowly(lambda: backup.export(office.store, folder))

    def note(db: Connection) -> None:
        detail = {"folder": name}
        audit.record(
            db, actor=caller.user_id, action="data.export", subject=name, detail=detail,
            now=office.clock(),
        )  # fmt: skip

    await office.write(note)
    return {"folder": str(folder), "rows": rows}
