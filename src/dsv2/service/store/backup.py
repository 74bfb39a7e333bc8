"""Backup and restore while the platform runs, and an export that other programs can read.

SQLite is copied by its own backup interface, which gives one state of the database however many
write meanwhile; PostgreSQL by ``pg_dump`` and ``pg_restore``, whose major version must not be older
than the server's. A backup has everything, hashes of passwords included: keep it as the database.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.engine import URL

from dsv2.service.store import migrations
from dsv2.service.store.engine import Store, open_store
from dsv2.service.store.errors import SchemaError, StoreError, UnavailableError
from dsv2.service.store.models import SECRETS, metadata
from dsv2.service.store.outbox import sync_folder
from dsv2.service.store.verify import verify_books

LOCK_SECONDS = 30
"""How long a copy waits for others to let it."""


def back_up(store: Store, file: Path) -> None:
    """Write one state of the database to a file, which appears whole or not at all.

    Args:
        store: the database, in use or not.
        file: a new file; only its owner can read it.

    Raises:
        StoreError: the file exists, or ``pg_dump`` is missing or fails.
        UnavailableError: the database cannot be read now.
    """
    if file.exists():
        raise StoreError(f"{file} exists; a backup overwrites nothing")
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.tmp-{uuid4().hex[:12]}")
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        if store.is_sqlite:
            _copy(_file_of(store), fresh)
            _check_whole(fresh)
        else:
            _run_tool(store, "pg_dump", ["--format=custom", "--no-owner", f"--file={fresh}"])
        with open(fresh, "rb") as written:
            os.fsync(written.fileno())
        fresh.rename(file)
        sync_folder(file.parent)
    finally:
        fresh.unlink(missing_ok=True)


def restore(store: Store, file: Path) -> list[str]:
    """Make the database what it was at a backup, whoever uses it meanwhile.

    Requests under way whose reservations the backup does not have can no longer be settled. What
    was forbidden since the backup is allowed again: keys that were revoked, passwords and sessions
    that were ended. An older backup is brought to this program's revision.

    Args:
        store: the database; everything in it is replaced.
        file: a backup of the same kind of database.

    Returns:
        What :func:`verify_books` finds in it; nothing if its books are sound.

    Raises:
        StoreError: the file is no whole backup, or of a newer program; nothing was changed.
        UnavailableError: the database cannot be written now.
    """
    if not file.is_file():
        raise StoreError(f"{file} is not there")
    if store.is_sqlite:
        _check_revision(file, _check_whole(file))
        _copy(file, Path(_file_of(store)))
    else:
        rows = _run_tool(
            store,
            "pg_restore",
            ["--data-only", "--table=alembic_version", "--file=-", str(file)],
        )
        # COPY writes one row a line, between its command and a line of a backslash and a point.
        _, _, copied = rows.partition("FROM stdin;\n")
        _check_revision(file, copied.split("\n")[0] or None)
        options = ["--clean", "--if-exists", "--no-owner", "--single-transaction"]
        options += ["--exit-on-error", f"--dbname={_name_of(store)}", str(file)]
        _run_tool(store, "pg_restore", options)
    migrations.upgrade(store)
    with store.read() as db:
        return verify_books(db)


def export(store: Store, folder: Path) -> dict[str, int]:
    """Write every table as a file of JSON lines, all from one state, without the secrets.

    Args:
        store: the database. SQLite lets nobody write meanwhile; export from a backup if that
            takes too long.
        folder: a new folder.

    Returns:
        How many rows each table has.

    Raises:
        StoreError: the folder exists.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists; an export overwrites nothing")
    folder.mkdir(parents=True, mode=0o700)
    rows = {}
    with store.read() as db:
        for table in metadata.sorted_tables:
            hidden = SECRETS.get(table.name, ())
            columns = [column for column in table.columns if column.name not in hidden]
            # A piece at a time: a table may be larger than the memory.
            query = sa.select(*columns).order_by(*table.primary_key)
            found = db.execute(query.execution_options(yield_per=1000)).mappings()
            with open(folder / f"{table.name}.jsonl", "w", encoding="utf-8") as file:
                rows[table.name] = 0
                for row in found:
                    file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
                    rows[table.name] += 1
    return rows


def _file_of(store: Store) -> str:
    database = store.engine.url.database
    if database in (None, "", ":memory:"):
        raise StoreError("a database in memory has no backup")
    return str(database)


def _name_of(store: Store) -> str:
    return str(store.engine.url.database)


def _copy(source: str | Path, target: Path) -> None:
    """Copy a SQLite database whole, under its locks, so that others may use either meanwhile."""
    # Not read-only: what a killed writer has begun may have to be undone first.
    reading = sqlite3.connect(f"{Path(source).resolve().as_uri()}?mode=rw", uri=True, timeout=0)
    writing = sqlite3.connect(target, timeout=0)
    deadline = time.monotonic() + LOCK_SECONDS

    def give_up(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > deadline:
            raise UnavailableError(f"{source} or {target} was locked for {LOCK_SECONDS} seconds")

    try:
        writing.execute("PRAGMA synchronous=FULL")
        reading.backup(writing, progress=give_up, sleep=0.05)
    except sqlite3.Error as error:
        raise UnavailableError(f"{source} could not be copied: {error}") from error
    finally:
        writing.close()
        reading.close()


def _check_whole(file: Path) -> str | None:
    """Make sure that a file is an undamaged database, and return its revision."""
    # Not as a text: a file's name may have a question mark in it.
    url = URL.create("sqlite", database=str(file))
    store = open_store(url, timeout=5, pool_size=1)
    try:
        with store.read() as db:
            broken = db.exec_driver_sql("PRAGMA integrity_check(5)").scalars().all()
            if broken != ["ok"]:
                raise StoreError(f"{file} is damaged: {'; '.join(broken)}")
            return migrations.revision(db)
    except (sqlite3.DatabaseError, sa.exc.DatabaseError, UnavailableError) as error:
        raise StoreError(f"{file} is no sound database: {error}") from error
    finally:
        store.close()


def _check_revision(file: Path, known: str | None) -> None:
    if known is None:
        raise SchemaError(f"{file} is no database of this program's")
    if not migrations.knows(known):
        raise SchemaError(f"{file} is at revision {known}, which this program does not know")


def _run_tool(store: Store, tool: str, arguments: Sequence[str]) -> str:
    """Run one of PostgreSQL's programs on the store's database and return what it prints.

    What it needs to connect goes through the environment: arguments can be read by everybody on
    the machine, and there is a password in it.
    """
    program = shutil.which(tool)
    if program is None:
        raise StoreError(f"{tool} is not on the path; it comes with PostgreSQL's client programs")
    environment = os.environ | _connection_variables(store.engine.url)
    result = subprocess.run(  # noqa: S603 - a program of PostgreSQL's, without a shell
        [program, "--no-password", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode:
        raise StoreError(f"{tool} ended with {result.returncode}: {result.stderr.strip()[-500:]}")
    return result.stdout


def _connection_variables(url: URL) -> dict[str, str]:
    query: dict[str, Any] = dict(url.query)
    found = {
        "PGHOST": url.host or query.get("host"),
        "PGPORT": url.port or query.get("port"),
        "PGUSER": url.username or query.get("user"),
        "PGPASSWORD": url.password or query.get("password"),
        "PGDATABASE": url.database or query.get("dbname"),
        "PGSSLMODE": query.get("sslmode"),
        "PGSSLROOTCERT": query.get("sslrootcert"),
        "PGSERVICE": query.get("service"),
    }
    return {name: str(value) for name, value in found.items() if value is not None}
