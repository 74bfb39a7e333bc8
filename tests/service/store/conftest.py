from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, migrations, open_store
from tests.service.store import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server whose database ``template`` has our tables."""
    if postgres.programs() is None:
        message = (
            "POSTGRESQL IS NOT INSTALLED: the store was tested with SQLite only "
            "(Debian: apt-get install postgresql)"
        )
        if os.environ.get(postgres.REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    with postgres.server() as url:
        _create(url, "template", "template0")
        store = open_store(str(_named(url, "template")))
        migrations.upgrade(store)
        store.close()
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("store") / "template.db"
    store = open_store(f"sqlite:///{file}")
    migrations.upgrade(store)
    store.close()
    return file.read_bytes()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind with our tables and nothing in them."""
    if request.param == "sqlite":
        file = tmp_path / "store.db"
        file.write_bytes(request.getfixturevalue("sqlite_template"))
        return f"sqlite:///{file}"
    server = request.getfixturevalue("postgres_server")
    name = f"test_{uuid4().hex[:12]}"
    _create(server, name, "template")
    return str(_named(server, name))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url, timeout=30)
    yield opened
    opened.close()


def _named(url: str, name: str) -> sa.engine.URL:
    return sa.engine.make_url(url).set(database=name)


def _create(url: str, name: str, template: str) -> None:
    engine = sa.create_engine(
        sa.engine.make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.pool.NullPool,
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    engine.dispose()
