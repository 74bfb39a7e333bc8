"""``dsv2 admin keys``: API keys."""

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
from dsv2.service.store import keys
from dsv2.service.store.keys import ApiKey, KeyLimits

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

COLUMNS = ("id", "name", "prefix", "models", "budget", "spent", "revoked_at", "last_used_at")


@app.command()
def create(
    who: Who,
    name: Annotated[str, typer.Option(help="To tell keys apart.")] = "key",
    model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None,
    budget: Annotated[str | None, typer.Option(help="Most it may spend.")] = None,
    period: Annotated[str, typer.Option(help="Of the budget: total, day or month.")] = "total",
    requests_per_minute: Annotated[int | None, typer.Option()] = None,
    tokens_per_minute: Annotated[int | None, typer.Option()] = None,
    max_concurrent: Annotated[int | None, typer.Option()] = None,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is printed now, and cannot be had again."""
    limits = KeyLimits(
        models=tuple(model) if model else None,
        budget=None if budget is None else micro_units(budget),
        budget_period=period,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
    )
    with opened(database) as store:
        user = find(store, who)
        with store.write() as db:
            key, secret = keys.create_key(
                db, account_id=user.account_id, user_id=user.id, name=name, now=now(),
                limits=limits, actor=ACTOR,
            )  # fmt: skip
    print_row(_shape(key) | {"secret": secret}, as_json)


@app.command("list")
def list_keys(who: Who, database: Database = None, as_json: AsJson = False) -> None:
    """List a user's keys, the newest first."""
    with opened(database) as store:
        user = find(store, who)
        with store.read() as db:
            found = keys.list_keys(db, user.account_id)
    print_rows([_shape(key) for key in found], COLUMNS, as_json)


@app.command()
def revoke(
    who: Who,
    key: Annotated[str, typer.Argument(help="The key's id.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """End a key for good."""
    with opened(database) as store:
        user = find(store, who)
        with store.write() as db:
            revoked = keys.revoke_key(db, user.account_id, key, actor=ACTOR, now=now())
    print_row(_shape(revoked), as_json)


def _shape(key: ApiKey) -> dict[str, Any]:
    row = asdict(key)
    return row | row.pop("limits")
