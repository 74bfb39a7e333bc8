"""``/api/account``: what a member has and where it came from; ``/user/balance`` for programs.

| method, path | who | what |
|---|---|---|
| GET ``/api/account/balance`` | signed in | the books, in micro-units (10^-6 of the currency) |
| GET ``/user/balance``, ``/v1/user/balance`` | API key | the same in DeepSeek's form |
| POST ``/api/account/redeem`` | member | put a redemption code's money in |
| GET ``/api/account/transfers`` | signed in | movements of money, newest first, in pages |
| GET ``/api/account/prices`` | signed in | what tokens of each model cost now |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import Connection

from dsv2.service.inference.answers import BalanceInfo, UserBalance, encode
from dsv2.service.platform.desk import Before, Body, Desk, Limit, Member, address_of, wait_or_refuse
from dsv2.service.store import codes, ledger, prices
from dsv2.service.store.amounts import MICRO
from dsv2.service.store.ledger import Balance, Transfer
from dsv2.service.store.prices import Price
from dsv2.service.store.settings import load_settings
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.openapi import described

router = APIRouter()


class Redemption(Body):
    """A code's secret."""

    code: str = Field(min_length=1, max_length=200)


@router.get("/api/account/balance")
async def balance(caller: SignedIn, office: Desk) -> Any:
    """What the account has, in micro-units."""

    def read(db: Connection) -> dict[str, Any]:
        found = balance_shape(ledger.balance(db, caller.account_id))
        return found | {"currency": load_settings(db).currency}

    return await office.read(read)


@router.get("/v1/user/balance", **described(None, UserBalance))
@router.get("/user/balance", **described(None, UserBalance))
async def deepseek_balance(caller: SignedIn, office: Desk) -> Response:
    """What the account has as DeepSeek says it: decimal strings, cut to whole hundredths."""

    def read(db: Connection) -> tuple[Balance, str]:
        return ledger.balance(db, caller.account_id), load_settings(db).currency

    found, currency = await office.read(read)
    has_some = found.unlimited or found.available > 0
    info = BalanceInfo(
        currency, decimal(found.granted, found.paid), decimal(found.granted), decimal(found.paid)
    )
    told = UserBalance(has_some and found.status == "active", [info])
    return Response(encode(told), media_type="application/json")


@router.post("/api/account/redeem")
async def redeem(body: Redemption, caller: Member, request: Request, office: Desk) -> Any:
    """Put a code's money into the account, once."""
    name = f"redeem {caller.account_id} {address_of(request)}"
    wait_or_refuse(lambda: office.log_ins.take(name))

    def take(db: Connection) -> dict[str, Any]:
        amount = codes.redeem(
            db, body.code, caller.account_id, actor=caller.user_id, now=office.clock()
        )
        return {"amount": amount} | balance_shape(ledger.balance(db, caller.account_id))

    answer = await office.write(take)
    office.log_ins.give_back(name)
    return answer


@router.get("/api/account/transfers")
async def transfers(
    caller: SignedIn, office: Desk, before: Before = None, limit: Limit = 100
) -> Any:
    """Movements of money, newest first. ``next`` is the ``before`` of the next page, or null."""
    rows = await office.read(
        lambda db: ledger.transfers_of(db, caller.account_id, before=before, limit=limit)
    )
    return {
        "transfers": [transfer_shape(row) for row in rows],
        "next": rows[-1].id if len(rows) == limit else None,
    }


@router.get("/api/account/prices")
async def current_prices(caller: SignedIn, office: Desk) -> Any:
    """What a million tokens of each model cost now, in micro-units."""
    return {"prices": latest(await office.read(prices.list_prices))}


def latest(found: list[Price]) -> list[dict[str, Any]]:
    """Each model's newest price; they come by model and version."""
    return list({price.model: asdict(price) for price in found}.values())


def balance_shape(found: Balance) -> dict[str, Any]:
    """The books as the site shows them, in micro-units."""
    return asdict(found) | {"total": found.total, "available": found.available}


def transfer_shape(row: Transfer) -> dict[str, Any]:
    """A transfer as its account's owner sees it: who among the operators did it is not told."""
    return {
        "id": row.id, "kind": row.kind, "cause": row.cause, "memo": row.memo,
        "created_at": row.created_at, "moves": dict(row.moves), "model": row.model,
    }  # fmt: skip


def decimal(*amounts: int) -> str:
    """Micro-units as a decimal with two places, never more than there is.

    Several amounts are each cut before they are summed, so that a total is the sum of its parts.
    """
    hundredths = sum(amount * 100 // MICRO for amount in amounts)
    return f"{hundredths // 100}.{hundredths % 100:02d}"
