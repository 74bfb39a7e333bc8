"""The connection to the database: SQLite in one file, or PostgreSQL by URL.

Everything is written in transactions that hold the lock from their beginning, so that what was
read in them still holds when they write. SQLite: rollback journal, ``synchronous=FULL``,
``BEGIN IMMEDIATE``; the write-ahead log loses data in the versions most machines have, so it is
never used. PostgreSQL: READ COMMITTED is enough, because every guard stands in its UPDATE.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool, StaticPool

from dsv2.service.store.errors import FieldError, StoreError, UnavailableError

OLDEST_SQLITE = (3, 37, 0)
"""STRICT tables came with it; RETURNING and upserts are older."""
_WRITES = "dsv2_writes"
_IDLE_SECONDS = 60


@dataclass(frozen=True)
class Store:
    """One database. Connections come from a pool, so threads may share a store; forks may not."""

    engine: Engine

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite, where one writer at a time is all there can be."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database, whatever happens meanwhile.

        Raises:
            UnavailableError: the database cannot be read now.
            FieldError: a text or a number was looked for that cannot be in it.
        """
        with translated_errors(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is kept when the block ends and undone when it raises.

        An error of this package has to leave the block: what was written before it must go.

        Raises:
            UnavailableError: the database cannot be written now. Nothing was kept, unless the
                connection broke in the commit itself; repeating the block is safe for everything
                in this package that takes an id or a cause.
        """
        with translated_errors(), self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections of the pool."""
        self.engine.dispose()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Let errors of the database leave the block as the store's own."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError, PoolTimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise UnavailableError(f"the database is not available: {cause}") from error
    except (DataError, UnicodeEncodeError, OverflowError) as error:
        # What nobody can have stored, such as an id with a NUL: each database says it in its way.
        raise FieldError("value", "cannot be stored or looked for") from error
    except DatabaseError as error:
        # SQLite's own word for a damaged file; PostgreSQL's for a table that is not there or not
        # this user's, which SQLite calls operational.
        is_away = getattr(error.orig, "sqlstate", None) in ("42P01", "42501")
        if type(error) is not DatabaseError and not is_away:
            raise
        raise UnavailableError(f"the database is not available: {error.orig}") from error


def insert(dialect: str, table: sa.Table) -> Any:
    """An INSERT that knows ON CONFLICT, which the two databases spell alike."""
    return (sqlite if dialect == "sqlite" else postgresql).insert(table)


def open_store(url: str | URL, *, timeout: float = 30.0, pool_size: int = 10) -> Store:
    """Connect to a database; its tables are made by ``migrations.upgrade``.

    Args:
        url: ``sqlite:///FILE``, made with its folder if it is not there; ``sqlite://`` for one in
            memory that only the opening thread can use; or ``postgresql://USER@HOST/NAME``.
        timeout: seconds to wait for a lock or a free connection before UnavailableError.
        pool_size: most connections at a time.

    Raises:
        StoreError: the URL is none of these, or the SQLite library is too old.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError("the database's URL cannot be read, allowed are " + _ALLOWED) from error
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return Store(_sqlite(parsed, timeout, pool_size))
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return Store(_postgresql(parsed, timeout, pool_size))
    raise StoreError(f"no store is made for {parsed.drivername!r}, allowed are {_ALLOWED}")


_ALLOWED = "sqlite:///FILE and postgresql://USER@HOST/NAME"


def _sqlite(url: URL, timeout: float, pool_size: int) -> Engine:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(
            f"SQLite is {sqlite3.sqlite_version}, needed is {'.'.join(map(str, OLDEST_SQLITE))}"
        )
    memory = url.database in (None, "", ":memory:")
    options: dict[str, Any] = {"connect_args": {"timeout": timeout}}
    if memory:
        options["poolclass"] = StaticPool
        options["connect_args"]["check_same_thread"] = True
    else:
        _make_private(Path(str(url.database)))
        options |= {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0}
        options |= {"pool_timeout": timeout}
    engine = sa.create_engine(url, hide_parameters=True, **options)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where "begin" below says
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        if not memory and mode != "delete":
            mode = connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
            if mode != "delete":
                raise StoreError(
                    f"{url.database}: the journal mode is {mode!r}, needed is 'delete'"
                )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # Without it INSERT OR REPLACE would get past the triggers that forbid removal.
        connection.execute("PRAGMA recursive_triggers=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _make_private(file: Path) -> None:
    """Make an empty database that only its owner can read; SQLite's journals take its mode."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not file.exists():
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _postgresql(url: URL, timeout: float, pool_size: int) -> Engine:
    milliseconds = max(1, int(timeout * 1000))
    # A crash of the server must not lose what was answered for, whatever its default says.
    options = f"-c lock_timeout={milliseconds} -c synchronous_commit=on -c timezone=UTC"
    # A process that stands still in a transaction must not keep an account locked.
    options += f" -c idle_in_transaction_session_timeout={_IDLE_SECONDS * 1000}"
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=timeout,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={
            "options": options,
            "connect_timeout": max(1, int(timeout)),
            "application_name": "dsv2",
            # A server that is cut off is noticed; otherwise its threads would wait for hours.
            "keepalives_idle": _IDLE_SECONDS // 2,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": _IDLE_SECONDS * 1000,
        },
    )
