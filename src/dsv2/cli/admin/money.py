"""``dsv2 admin top-up``, ``withdraw``, ``balance``, ``refund``, ``prices``, ``codes``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from dsv2.cli.admin.common import (
    ACTOR,
    AsJson,
    Database,
    Who,
    find,
    micro_units,
    now,
    opened,
    print_row,
    print_rows,
)
from dsv2.service.store import codes, ledger, prices, reservations
from dsv2.service.store.amounts import shown
from dsv2.service.store.checks import DAY, new_id

prices_app = typer.Typer(no_args_is_help=True, help="What tokens cost.")
codes_app = typer.Typer(no_args_is_help=True, help="Redemption codes.")

Amount = Annotated[str, typer.Argument(help="Of the currency, such as 12.50.")]
Cause = Annotated[
    str | None, typer.Option(help="Such as the number of a receipt: it moves money once.")
]
Memo = Annotated[str, typer.Option(help="A remark.")]
Granted = Annotated[bool, typer.Option("--granted", help="Money given for free, not paid in.")]


def top_up(
    who: Who,
    amount: Amount,
    granted: Granted = False,
    cause: Cause = None,
    memo: Memo = "",
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Put money into a user's account."""
    _move(ledger.deposit, who, amount, granted, cause, memo, database, as_json)


def withdraw(
    who: Who,
    amount: Amount,
    granted: Granted = False,
    cause: Cause = None,
    memo: Memo = "",
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Take unspent money out of a user's account."""
    _move(ledger.withdraw, who, amount, granted, cause, memo, database, as_json)


def balance(who: Who, database: Database = None, as_json: AsJson = False) -> None:
    """Print what a user's account has."""
    with opened(database) as store:
        user = find(store, who)
        with store.read() as db:
            found = ledger.balance(db, user.account_id)
    print_row(_balance(found), as_json)


def refund(
    request: Annotated[str, typer.Argument(help="The request's id.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Give back what a request has cost, once."""
    with opened(database) as store, store.write() as db:
        found = reservations.refund(db, request, actor=ACTOR, now=now())
    row = {"id": found.ask.id, "account_id": found.ask.account_id, "charge": found.charge}
    print_row(row | {"refunded": found.refunded}, as_json)


@prices_app.command("list")
def list_prices(database: Database = None, as_json: AsJson = False) -> None:
    """List all prices, for a million tokens; a model's last one holds."""
    with opened(database) as store, store.read() as db:
        rows = [asdict(price) for price in prices.list_prices(db)]
    if not as_json:
        rows = [row | {name: shown(row[name]) for name in _PRICES} for row in rows]
    print_rows(rows, ("model", "version", *_PRICES), as_json)


@prices_app.command("set")
def set_price(
    model: Annotated[str, typer.Argument(help="The model's name in the API.")],
    input: Annotated[str, typer.Option(help="A million prompt tokens.")],
    cached_input: Annotated[str, typer.Option(help="A million of them found in the cache.")],
    output: Annotated[str, typer.Option(help="A million generated tokens.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Set a model's price for requests that begin from now on."""
    amounts = {
        "input": micro_units(input),
        "cached_input": micro_units(cached_input),
        "output": micro_units(output),
    }
    with opened(database) as store, store.write() as db:
        row = asdict(prices.set_price(db, model, **amounts, actor=ACTOR, now=now()))
    if not as_json:
        row |= {name: shown(row[name]) for name in _PRICES}
    print_row(row, as_json)


_CODE_COLUMNS = ("id", "prefix", "book", "amount", "uses", "max_uses", "expires_at", "revoked_at")
_PRICES = ("input", "cached_input", "output")


@codes_app.command("list")
def list_codes(database: Database = None, as_json: AsJson = False) -> None:
    """List all codes, the newest first."""
    with opened(database) as store, store.read() as db:
        rows = [asdict(code) for code in codes.list_codes(db)]
    print_rows(rows, _CODE_COLUMNS, as_json)


@codes_app.command("create")
def create_code(
    amount: Amount,
    uses: Annotated[int, typer.Option(help="How many accounts may redeem it, once each.")] = 1,
    days: Annotated[int | None, typer.Option(help="How long it can be redeemed.", min=1)] = None,
    paid: Annotated[bool, typer.Option("--paid", help="Counts as paid in, not as given.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a code. Its secret is printed now, and cannot be had again."""
    with opened(database) as store, store.write() as db:
        code, secret = codes.create_code(
            db, amount=micro_units(amount), actor=ACTOR, now=now(), max_uses=uses,
            book="paid" if paid else "granted",
            expires_at=None if days is None else now() + days * DAY,
        )  # fmt: skip
    print_row(asdict(code) | {"secret": secret}, as_json)


@codes_app.command("revoke")
def revoke_code(
    code: Annotated[str, typer.Argument(help="The code's id.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """End a code; what was redeemed stays."""
    with opened(database) as store, store.write() as db:
        row = asdict(codes.revoke_code(db, code, actor=ACTOR, now=now()))
    print_row(row, as_json)


def _move(
    move: Any,
    who: str,
    amount: str,
    granted: bool,
    cause: str | None,
    memo: str,
    database: str | None,
    as_json: bool,
) -> None:
    units = micro_units(amount)
    with opened(database) as store:
        user = find(store, who)
        with store.write() as db:
            moved = move(
                db, user.account_id, book="granted" if granted else "paid", amount=units,
                cause=f"admin:{cause or new_id('movement')}", actor=ACTOR, now=now(), memo=memo,
            )  # fmt: skip
            found = ledger.balance(db, user.account_id)
    print_row({"moved": moved} | _balance(found), as_json)


def _balance(found: ledger.Balance) -> dict[str, Any]:
    return asdict(found) | {"total": found.total, "available": found.available}
