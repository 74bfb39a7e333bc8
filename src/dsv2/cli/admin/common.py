"""What all commands of ``dsv2 admin`` share: the database, the output, amounts, passwords."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from dsv2.service.platform.folders import database_url
from dsv2.service.store import Store, StoreError, migrations, open_store, users
from dsv2.service.store.amounts import MICRO, shown
from dsv2.service.store.checks import MAX_AMOUNT, now_ms
from dsv2.service.store.errors import NotFoundError
from dsv2.service.store.users import User

ACTOR = "cli"

Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="DSV2_DATABASE",
        help="sqlite:///FILE or postgresql://USER@HOST/NAME; default: in the user's data folder.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Who = Annotated[str, typer.Argument(metavar="USER", help="The user's address or id.")]


@contextmanager
def opened(url: str | None, *, checked: bool = True, new: bool = False) -> Iterator[Store]:
    """The database of a command.

    Args:
        url: as the user named it, or None.
        checked: whether its tables must be this program's.
        new: whether it may be made.

    Raises:
        StoreError: there is none, or its tables do not fit.
    """
    url = url or database_url()
    if not new and (file := _missing_file(url)) is not None:
        raise StoreError(f"there is no database {file}; dsv2 admin migrate makes one")
    store = open_store(url)
    try:
        if checked:
            migrations.check(store)
        yield store
    finally:
        store.close()


def _missing_file(url: str) -> Path | None:
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None  # for open_store to refuse
    if not parsed.drivername.startswith("sqlite") or parsed.database in (None, "", ":memory:"):
        return None
    file = Path(str(parsed.database))
    return None if file.exists() else file


def find(store: Store, who: str) -> User:
    """A user by address or id.

    Raises:
        NotFoundError: there is none.
    """
    with store.read() as db:
        if "@" not in who:
            return users.get_user(db, who)
        user = users.find_user(db, who)
    if user is None:
        raise NotFoundError("user", who)
    return user


def now() -> int:
    """Milliseconds since 1970."""
    return now_ms()


def micro_units(text: str) -> int:
    """An amount of the currency, exactly.

    Raises:
        ValueError: it is none, or finer than a micro-unit.
    """
    try:
        amount = Decimal(text) * MICRO
        if abs(amount) <= MAX_AMOUNT and amount == int(amount):
            return int(amount)
    except ArithmeticError:  # no number, or no end of one
        pass
    raise ValueError(f"{text!r:.40} is no amount, allowed are decimals such as 12.50")


def moment(at: int | None) -> str:
    """A time in UTC as people read it."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at // 1000))


def read_password() -> str:
    """A password from the terminal, twice, or the first line of the standard input."""
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Rows as a table of some columns, or all of them as JSON."""
    if as_json:
        typer.echo(json.dumps(list(rows)))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*(name.replace("_", " ") for name in columns), box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(escape(_cell(name, row[name])) for name in columns))
    console = Console()
    if not console.is_terminal:  # no width there to fit into: nothing is to be cut
        console = Console(width=10_000)
    console.print(table)


def print_row(row: Mapping[str, Any], as_json: bool) -> None:
    """One thing as lines of name and value, or as JSON."""
    if as_json:
        typer.echo(json.dumps(dict(row)))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():
        typer.echo(f"{name.replace('_', ' '):{width}}  {_cell(name, value)}")


_AMOUNTS = ("amount", "granted", "paid", "held", "spent", "total", "available", "charge", "cost",
            "refunded", "budget", "hold")  # fmt: skip


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_at") or name == "at":
        return moment(value)
    if name in _AMOUNTS and isinstance(value, int):
        return shown(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    text = str(value)
    # What users choose, such as names of keys, must not steer the terminal.
    return text if text.isprintable() else ascii(text)
