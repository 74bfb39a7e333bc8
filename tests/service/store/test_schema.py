"""Connection, revisions, and what the package imports and how it writes SQL."""

from __future__ import annotations

import ast
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import dsv2.service.store
from dsv2.service.store import Store, StoreError, chats, migrations, models, open_store, users
from dsv2.service.store.errors import SchemaError, UnavailableError

SOURCES = sorted(Path(dsv2.service.store.__file__).parent.glob("*.py"))


def test_the_revisions_make_the_tables_of_the_models(store: Store) -> None:
    with store.read() as db:
        assert compare_metadata(MigrationContext.configure(db), models.metadata) == []
        assert migrations.revision(db) == migrations.head()
        checks = {
            name: {
                one["name"]: one["sqltext"] for one in sa.inspect(db).get_check_constraints(name)
            }
            for name in models.metadata.tables
        }
        if store.is_sqlite:
            lax = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND NOT strict"
            names = db.exec_driver_sql(lax).scalars()
            assert {name for name in names if not name.startswith("sqlite_")} == {"alembic_version"}
    for name, table in models.metadata.tables.items():
        wanted = {
            one.name: str(one.sqltext)
            for one in table.constraints
            if isinstance(one, sa.CheckConstraint)
        }
        # PostgreSQL keeps a condition in words of its own.
        found = checks[name] if store.is_sqlite else dict.fromkeys(checks[name])
        assert found == (wanted if store.is_sqlite else dict.fromkeys(wanted)), name
    migrations.upgrade(store)
    migrations.check(store)


def test_a_database_of_another_revision_is_refused(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(SchemaError, match="revision None, this program needs 0002"):
        migrations.check(store)
    migrations.upgrade(store)
    with store.write() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="revision 9999"):
        migrations.check(store)
    with pytest.raises(SchemaError, match="revision 9999, which this program does not know"):
        migrations.upgrade(store)
    store.close()


def test_what_was_there_stays_where_the_chats_are_added(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    migrations.upgrade(store, "0001")
    with store.write() as db:
        user = users.add_user(db, "a@example.org", now=1)
    migrations.upgrade(store)
    migrations.check(store)
    with store.write() as db:
        chats.create_conversation(db, user.id, now=1)
    store.close()


def test_sqlite_is_set_up_for_money(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.db"
    store = open_store(f"sqlite:///{file}")
    with store.write() as db:
        found = {
            name: db.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "recursive_triggers")
        }
        assert found == {
            "journal_mode": "delete",
            "synchronous": 2,
            "foreign_keys": 1,
            "recursive_triggers": 1,
        }
        db.exec_driver_sql("CREATE TABLE t (a INTEGER) STRICT")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    # Somebody has switched it meanwhile: the next connection switches it back.
    store.close()
    other = sa.create_engine(f"sqlite:///{file}")
    with other.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar_one() == "wal"
    other.dispose()
    with store.read() as db:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"
    store.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_postgresql_is_set_up_for_money(store: Store) -> None:
    names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")
    with store.write() as db:
        found = [db.exec_driver_sql(f"SHOW {name}").scalar_one() for name in names]
        assert found == ["on", "30s", "1min"]
        level = db.exec_driver_sql("SHOW transaction_isolation").scalar_one()
        assert level == "read committed"
        parameters = db.connection.driver_connection.info.get_parameters()
        assert parameters["tcp_user_timeout"] == "60000"
        assert parameters["keepalives_idle"] == "30"


def test_a_float_gets_into_no_table(store: Store) -> None:
    change = sa.text("UPDATE settings SET updated_at = 0.5")
    with store.write() as db:
        row = {"name": "a", "value": "1", "updated_at": 0}
        db.execute(sa.insert(models.settings).values(row))
        if store.is_sqlite:
            with pytest.raises(sa.exc.IntegrityError, match="cannot store REAL"):
                db.execute(change)
        else:
            db.execute(change)
            found = db.execute(sa.select(models.settings.c.updated_at)).scalar_one()
            assert isinstance(found, int)


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://a@b/c", "sqlite+aiosqlite:///a.db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(StoreError, match=r"allowed are sqlite:///FILE and postgresql://"):
        open_store(url)


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    store = open_store(f"postgresql://secret:word@/db?host={tmp_path}", timeout=1)
    with pytest.raises(UnavailableError, match="not available") as caught, store.read():
        pass
    assert "word" not in str(caught.value)
    assert "word" not in repr(store)


def test_a_reader_sees_one_state(store: Store, url: str) -> None:
    query = sa.select(sa.func.count()).select_from(models.settings)
    row = {"name": "a", "value": "1", "updated_at": 0}
    other = open_store(url, timeout=0.1)
    with store.read() as reading:
        assert reading.execute(query).scalar_one() == 0
        if store.is_sqlite:
            with pytest.raises(UnavailableError, match="locked"), other.write() as db:
                db.execute(sa.insert(models.settings).values(row))
        else:
            with other.write() as db:
                db.execute(sa.insert(models.settings).values(row))
        assert reading.execute(query).scalar_one() == 0
    other.close()


def test_a_store_in_memory_stays_in_its_thread() -> None:
    store = open_store("sqlite://")
    errors: list[BaseException] = []

    def use() -> None:
        try:
            with store.read():
                pass
        except BaseException as error:
            errors.append(error)

    with store.read():
        pass
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "thread" in str(errors)
    store.close()


def test_the_store_is_light() -> None:
    program = "import sys, dsv2.service.store\n"
    names = [f"dsv2.service.store.{file.stem}" for file in SOURCES if file.stem != "__init__"]
    program += "".join(f"import {name}\n" for name in names)
    program += "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_sql_is_never_put_together_from_values() -> None:
    runs = {"text", "execute", "exec_driver_sql"}
    assert len(SOURCES) > 10
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = node.args[0]
                composed = isinstance(first, ast.JoinedStr) or (
                    isinstance(first, ast.BinOp) and not isinstance(first.op, ast.BitOr)
                )
                assert not (name in runs and composed), f"{file}:{node.lineno}"
