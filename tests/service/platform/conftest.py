from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv2.service.platform.admission import StoreAdmission
from dsv2.service.platform.office import Office
from dsv2.service.store import Store, migrations, open_store
from tests.service.platform.site import Site, add_price
from tests.service.store.make import cheap_passwords, wipe


@pytest.fixture(scope="session")
def shared_memory() -> Iterator[Path]:
    """A folder for what outlives no test, which need not be synced to a disk."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="dsv2-platform-", dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def empty_database(shared_memory: Path) -> Path:
    """A database with our tables, one price and cheap passwords."""
    file = shared_memory / "empty.sqlite"
    store = open_store(f"sqlite:///{file}")
    migrations.upgrade(store)
    cheap_passwords(store)
    add_price(store)
    store.close()
    return file


@pytest.fixture
def folder(shared_memory: Path) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=shared_memory))
    yield made
    shutil.rmtree(made)


@pytest.fixture(
    scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]
)
def _opened(request: pytest.FixtureRequest, shared_memory: Path) -> Iterator[Store]:
    # One for all tests: an engine learns SQLAlchemy's statements once.
    if request.param == "sqlite":
        store = open_store(f"sqlite:///{shared_memory / 'platform.sqlite'}")
    else:
        store = open_store(request.getfixturevalue("postgres_server"), pool_size=40)
        migrations.upgrade(store)
    yield store
    store.close()


@pytest.fixture
def store(_opened: Store, empty_database: Path) -> Store:
    """A store of each kind with nothing in it but a price."""
    if _opened.is_sqlite:
        _opened.close()  # its connections; it opens others when it is used
        shutil.copy(empty_database, str(_opened.engine.url.database))
    else:
        wipe(_opened)
        cheap_passwords(_opened)
        add_price(_opened)
    return _opened


@pytest.fixture
def one_line(store: Store) -> None:
    """For tests of writes that wait for each other, as SQLite's alone do."""
    if not store.is_sqlite:
        pytest.skip("PostgreSQL has no line of writes")


@pytest.fixture
def office(store: Store, folder: Path) -> Office:
    return Office(store, folder=folder)


@pytest.fixture
def site(office: Office) -> Iterator[Site]:
    site = Site(office)
    yield site
    site.close()


@pytest.fixture
def admission(office: Office) -> Iterator[StoreAdmission]:
    yield office.admission
    office.close()
