from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv2.service.store import Store, migrations, open_store
from tests.service.store.make import wipe


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
