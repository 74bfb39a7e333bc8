"""``/api/account``: what a member's requests have used.

| method, path | who | what |
|---|---|---|
| GET ``/api/account/usage`` | signed in | sums per day, key and model |
| GET ``/api/account/usage.csv`` | signed in | the same for spreadsheets |
| GET ``/api/account/requests`` | signed in | finished requests, newest first: no text is kept |
| GET ``/api/account/requests.csv`` | signed in | the same for spreadsheets |

Days are UTC and written ``YYYY-MM-DD``; without any, the last thirty. Amounts are micro-units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from dsv2.service.platform.desk import Day, Desk, Limit, Offset
from dsv2.service.platform.office import Office
from dsv2.service.store.checks import DAY
from dsv2.service.store.usage import (
    DailyUsage,
    RequestUsage,
    csv_lines,
    daily,
    day_of,
    requests_of,
)
from dsv2.service.web.deps import SignedIn

router = APIRouter(prefix="/api/account")

Name = Annotated[str | None, Query(max_length=200)]


class Wanted:
    """Which days, key and model a request asks for."""

    def __init__(
        self, first: Day = None, last: Day = None, key: Name = None, model: Name = None
    ) -> None:
        self.first, self.last, self.key, self.model = first, last, key, model

    async def of(self, office: Office, account_id: str | None) -> list[DailyUsage]:
        """The sums of an account, or of all."""
        now = office.clock()
        return await office.read(
            lambda db: daily(
                db,
                first=self.first or day_of(now - 29 * DAY),
                last=self.last or day_of(now),
                account_id=account_id,
                key_id=self.key,
                model=self.model,
            )
        )


Days = Annotated[Wanted, Depends(Wanted)]


class CsvResponse(Response):
    """CSV in UTF-8."""

    media_type = "text/csv"


@router.get("/usage")
async def usage(caller: SignedIn, office: Desk, days: Days) -> Any:
    """Sums per day, key and model."""
    return {"usage": [asdict(row) for row in await days.of(office, caller.account_id)]}


@router.get("/usage.csv", response_class=CsvResponse)
async def usage_csv(caller: SignedIn, office: Desk, days: Days) -> CsvResponse:
    """Sums per day, key and model as CSV; no cell can be taken for a formula."""
    return csv_answer(await days.of(office, caller.account_id), DailyUsage)


@router.get("/requests")
async def requests(caller: SignedIn, office: Desk, limit: Limit = 100, offset: Offset = 0) -> Any:
    """Finished requests, newest first."""
    rows = await office.read(
        lambda db: requests_of(db, caller.account_id, limit=limit, offset=offset)
    )
    return {"requests": [asdict(row) for row in rows]}


@router.get("/requests.csv", response_class=CsvResponse)
async def requests_csv(
    caller: SignedIn, office: Desk, limit: Limit = 1000, offset: Offset = 0
) -> CsvResponse:
    """Finished requests as CSV, newest first."""
    rows = await office.read(
        lambda db: requests_of(db, caller.account_id, limit=limit, offset=offset)
    )
    return csv_answer(rows, RequestUsage)


def csv_answer(rows: Iterable[DailyUsage] | Iterable[RequestUsage], kind: type) -> CsvResponse:
    """Rows as a file to be saved."""
    return CsvResponse(
        "".join(csv_lines(rows, kind)),
        headers={"Content-Disposition": 'attachment; filename="usage.csv"'},
    )
