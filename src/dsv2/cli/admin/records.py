"""``dsv2 admin settings``, ``usage``, ``audit``: what is set, and what was done."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from dsv2.cli.admin.common import (
    ACTOR,
    AsJson,
    Database,
    find,
    now,
    opened,
    print_row,
    print_rows,
)
from dsv2.service.store import audit as log
from dsv2.service.store.checks import DAY
from dsv2.service.store.settings import change_setting, load_settings
from dsv2.service.store.usage import DailyUsage, csv_lines, daily, day_of

settings_app = typer.Typer(no_args_is_help=True, help="What an operator may change.")

Day = Annotated[str | None, typer.Option(help="YYYY-MM-DD in UTC.")]
_USAGE = ("day", "account_id", "key_id", "model", "requests", "prompt_tokens", "cached_tokens",
          "completion_tokens", "charge")  # fmt: skip


@settings_app.command("list")
def list_settings(database: Database = None, as_json: AsJson = False) -> None:
    """Print all settings."""
    with opened(database) as store, store.read() as db:
        print_row(load_settings(db).model_dump(), as_json)


@settings_app.command("set")
def set_setting(
    name: Annotated[str, typer.Argument(help="The setting.")],
    value: Annotated[str, typer.Argument(help="As JSON, or a plain word.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Change a setting; a running server heeds it within some seconds."""
    try:
        content: Any = json.loads(value)
    except ValueError:
        content = value
    with opened(database) as store, store.write() as db:
        changed = change_setting(db, name, content, actor=ACTOR, now=now())
    print_row({name: getattr(changed, name)}, as_json)


def usage(
    who: Annotated[str | None, typer.Option("--user", help="Only this user's.")] = None,
    first: Day = None,
    last: Day = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for spreadsheets.")] = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Sums per day, account, key and model; without days, of the last thirty."""
    with opened(database) as store:
        account_id = None if who is None else find(store, who).account_id
        with store.read() as db:
            rows = daily(
                db, first=first or day_of(now() - 29 * DAY), last=last or day_of(now()),
                account_id=account_id,
            )  # fmt: skip
    if as_csv:
        for line in csv_lines(rows, DailyUsage):
            typer.echo(line, nl=False)
        return
    print_rows([asdict(row) for row in rows], _USAGE, as_json)


def audit(
    subject: Annotated[str | None, typer.Option(help="Only what was done to this id.")] = None,
    limit: Annotated[int, typer.Option(help="Most lines.")] = 100,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Who did what to whom, newest first."""
    with opened(database) as store, store.read() as db:
        found = log.entries_of(db, subject, limit=limit)
    columns = ("id", "at", "actor", "action", "subject", "detail")
    print_rows([asdict(entry) for entry in found], columns, as_json)
