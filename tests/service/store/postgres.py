"""A private PostgreSQL server in a temporary folder, if its programs are on this machine."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

REQUIRED = "DSV2_REQUIRE_POSTGRES"
"""Set it and a missing server fails the tests instead of skipping them."""


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; Debian keeps them off the path."""
    found = shutil.which("initdb")
    if found and Path(found).with_name("postgres").exists():
        return Path(found).parent
    newest = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return newest[-1].parent if newest else None


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: somebody else then has to."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("there is no user besides root to run PostgreSQL")


@contextmanager
def server() -> Iterator[str]:
    """Start a server that listens on a socket only, and give the URL of its first database."""
    folder = programs()
    assert folder is not None
    user = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="dsv2-postgres-"))
    try:
        if user is not None:
            shutil.chown(home, user)
        data = home / "data"
        subprocess.run(
            [folder / "initdb", "-D", data, "-U", "dsv2", "-A", "trust", "-E", "UTF8", "-N"],
            user=user,
            cwd=home,
            check=True,
            capture_output=True,
        )
        # Nothing here outlives the server, so it need not be synced to any disk.
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off "
        options += "-c max_connections=150 -c shared_buffers=32MB"
        log = home / "log"
        control = [folder / "pg_ctl", "-D", data, "-w"]
        subprocess.run(
            [*control, "-l", log, "-o", options, "start"],
            user=user,
            cwd=home,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield f"postgresql://dsv2@/postgres?host={home}"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"],
                user=user,
                cwd=home,
                check=True,
                stdout=subprocess.DEVNULL,
            )
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def empty_database(server_url: str) -> Iterator[str]:
    """The URL of a new database, in the form that operators write; it is dropped at the end."""
    parsed = sa.engine.make_url(server_url)
    engine = sa.create_engine(
        parsed.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    name = f"empty_{uuid4().hex[:8]}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield parsed.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()
