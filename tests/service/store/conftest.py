from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, migrations, models, open_store
from tests.service.store import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running server."""
    if postgres.programs() is None:
        message = (
            "POSTGRESQL IS NOT INSTALLED: the store was tested with SQLite only "
            "(Debian: apt-get install postgresql)"
        )
        if os.environ.get(postgres.REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    with postgres.server() as url:
        yield url


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of each kind with our tables."""
    # Nothing here outlives the tests, so SQLite may sync to memory instead of a disk.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="dsv2-store-", dir=memory) as folder:
        if request.param == "sqlite":
            found = f"sqlite:///{folder}/store.db"
        else:
            found = request.getfixturevalue("postgres_server")
        store = open_store(found)
        migrations.upgrade(store)
        store.close()
        yield found


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database of SQLite of the test's own, with our tables."""
    found = f"sqlite:///{tmp_path / 'own' / 'store.db'}"
    store = open_store(found)
    migrations.upgrade(store)
    store.close()
    return found


@pytest.fixture(scope="session")
def _opened(url: str) -> Iterator[Store]:
    # One for all tests: an engine learns SQLAlchemy's statements once.
    store = open_store(url, timeout=30, pool_size=40)
    yield store
    store.close()


@pytest.fixture
def store(_opened: Store) -> Store:
    """A store with nothing in it."""
    wipe(_opened)
    return _opened


def wipe(store: Store) -> None:
    """Empty all tables, past the triggers that otherwise forbid it."""
    tables = models.metadata.sorted_tables
    with store.write() as db:
        if not store.is_sqlite:
            db.exec_driver_sql("SET LOCAL session_replication_role = replica")
            names = ", ".join(table.name for table in tables)
            db.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY")
            return
        triggers = db.execute(sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
        found = list(triggers)
        for name, _ in found:
            db.exec_driver_sql(f"DROP TRIGGER {name}")
        for table in reversed(tables):
            db.execute(sa.delete(table))
        for _, sql in found:
            db.exec_driver_sql(sql)
