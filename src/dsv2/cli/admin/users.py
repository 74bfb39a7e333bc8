"""``dsv2 admin users``: people."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dsv2.cli.admin.common import (
    ACTOR,
    AsJson,
    Database,
    Who,
    find,
    now,
    opened,
    print_row,
    print_rows,
    read_password,
)
from dsv2.service.store import users
from dsv2.service.store.settings import load_settings

app = typer.Typer(no_args_is_help=True, help="List, make, suspend users; roles and passwords.")

COLUMNS = ("id", "email", "role", "status", "created_at")


@app.command("list")
def list_users(
    search: Annotated[str, typer.Option(help="Part of the address.")] = "",
    limit: Annotated[int, typer.Option(help="Most users.")] = 1000,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """List users in the order in which they came."""
    with opened(database) as store, store.read() as db:
        found = users.list_users(db, search=search, limit=limit)
    print_rows([asdict(user) for user in found], COLUMNS, as_json)


@app.command()
def create(
    email: Annotated[str, typer.Argument(help="The address.")],
    role: Annotated[str, typer.Option(help="user or admin.")] = "user",
    unlimited: Annotated[bool, typer.Option(help="Requests cost nothing.")] = False,
    password: Annotated[
        bool, typer.Option("--password/--no-password", help="Without one, nobody can log in.")
    ] = True,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a user, with a password from the terminal or the standard input."""
    with opened(database) as store:
        hashed = None
        if password:
            with store.read() as db:
                settings = load_settings(db)
            hashed = users.hash_password(settings, read_password())
        with store.write() as db:
            user = users.add_user(
                db, email, now=now(), password_hash=hashed, role=role, unlimited=unlimited,
                actor=ACTOR,
            )  # fmt: skip
    print_row(asdict(user), as_json)


@app.command()
def suspend(who: Who, database: Database = None, as_json: AsJson = False) -> None:
    """End a user's sessions and stop their keys, at once."""
    _set_status(who, "suspended", database, as_json)


@app.command()
def activate(who: Who, database: Database = None, as_json: AsJson = False) -> None:
    """Let a suspended user in again."""
    _set_status(who, "active", database, as_json)


@app.command()
def role(
    who: Who,
    role: Annotated[str, typer.Argument(help="user or admin.")],
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make somebody an administrator, or an ordinary user again."""
    with opened(database) as store:
        user = find(store, who)
        with store.write() as db:
            user = users.set_role(db, user.id, role, actor=ACTOR, now=now())
    print_row(asdict(user), as_json)


@app.command()
def password(who: Who, database: Database = None, as_json: AsJson = False) -> None:
    """Set a password, from the terminal or the standard input; all sessions end."""
    with opened(database) as store:
        user = find(store, who)
        with store.read() as db:
            settings = load_settings(db)
        hashed = users.hash_password(settings, read_password())
        with store.write() as db:
            users.set_password_hash(db, user.id, hashed, actor=ACTOR, now=now())
    print_row(asdict(user), as_json)


def _set_status(who: str, status: str, database: str | None, as_json: bool) -> None:
    with opened(database) as store:
        user = find(store, who)
        with store.write() as db:
            user = users.set_status(db, user.id, status, actor=ACTOR, now=now())
    print_row(asdict(user), as_json)
