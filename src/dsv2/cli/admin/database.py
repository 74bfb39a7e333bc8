"""``dsv2 admin migrate``, ``verify``, ``backup``, ``restore``, ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsv2.cli.admin.common import AsJson, Database, Yes, opened, print_row
from dsv2.service.store import backup as copies
from dsv2.service.store import migrations
from dsv2.service.store.verify import verify_books

NewFile = Annotated[Path, typer.Argument(help="A file that does not exist.")]
NewFolder = Annotated[Path, typer.Argument(help="A folder that does not exist.")]


def migrate(database: Database = None, as_json: AsJson = False) -> None:
    """Make the database, or bring its tables to this program's."""
    with opened(database, checked=False, new=True) as store:
        with store.read() as db:
            before = migrations.revision(db)
        migrations.upgrade(store)
    print_row({"before": before, "after": migrations.head()}, as_json)


def verify(database: Database = None, as_json: AsJson = False) -> None:
    """See whether the books agree; exit code 1 if they do not."""
    with opened(database) as store, store.read() as db:
        problems = verify_books(db)
    if as_json:
        print_row({"sound": not problems, "problems": problems}, as_json)
    else:
        for problem in problems or ["the books agree"]:
            typer.echo(problem)
    if problems:
        raise typer.Exit(1)


def backup(file: NewFile, database: Database = None, as_json: AsJson = False) -> None:
    """Copy the database into a file, while it is in use or not."""
    with opened(database) as store:
        copies.back_up(store, file)
    print_row({"file": str(file), "bytes": file.stat().st_size}, as_json)


def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    yes: Yes = False,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make the database what it was at a backup; exit code 1 if its books do not agree."""
    if not yes:
        typer.confirm("replace everything in the database?", abort=True, err=True)
    with opened(database, checked=False, new=True) as store:
        problems = copies.restore(store, file)
    print_row({"restored": str(file), "problems": problems}, as_json)
    if problems:
        raise typer.Exit(1)


def export(folder: NewFolder, database: Database = None, as_json: AsJson = False) -> None:
    """Write every table as JSON lines, without secrets."""
    with opened(database) as store:
        rows = copies.export(store, folder)
    print_row(rows, as_json)
