"""Copies of everything, taken and brought back while others write."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from dsv2.service.store import Store, StoreError, backup, migrations, models, open_store
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.ledger import balance
from dsv2.service.store.users import list_users
from dsv2.service.store.verify import verify_books
from tests.service.store import postgres
from tests.service.store.make import Customer, customer, deposit, price, reserve, settle


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pg_dump`` of the server that the tests run, which may not be on the path."""
    if (folder := postgres.programs()) is not None:
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def who(store: Store) -> Customer:
    with store.write() as db:
        price(db)
        who = customer(db, granted=100, paid=1000)
        reserve(db, who)
        settle(db)
        reserve(db, who, "r2")
    return who


def test_a_backup_is_taken_and_brought_back_while_others_write(
    store: Store, who: Customer, tmp_path: Path
) -> None:
    file = tmp_path / "folder" / "backup"
    stop = threading.Event()
    written = []

    def write() -> None:
        while not stop.is_set():
            with store.write() as db:
                deposit(db, who.account_id, "paid", 1, str(len(written)))
            written.append(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while len(written) < 3:
            stop.wait(0.005)
        backup.back_up(store, file)
    finally:
        stop.set()
        writer.join()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == ["backup"]
    with pytest.raises(StoreError, match="overwrites nothing"):
        backup.back_up(store, file)
    with store.write() as db:
        after = balance(db, who.account_id)
        customer(db, "later@example.org", paid=5)
        settle(db, "r2")
    assert backup.restore(store, file) == []
    with store.write() as db:
        assert [user.email for user in list_users(db)] == ["a@example.org"]
        found = balance(db, who.account_id)
        assert 963 <= found.total <= after.total
        assert (found.spent, found.held) == (140, 200)
        assert verify_books(db) == []
        # What was under way can go on, and what is written stays so.
        settle(db, "r2")
        assert verify_books(db) == []
    with pytest.raises(sa.exc.DatabaseError, match="append-only"), store.write() as db:
        db.execute(sa.delete(models.entries))


def test_what_is_no_backup_changes_nothing(store: Store, who: Customer, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    contents = [b"", b"nonsense" * 1000]
    if store.is_sqlite:
        good = tmp_path / "good"
        backup.back_up(store, good)
        whole = good.read_bytes()
        contents += [whole[: len(whole) // 2], whole[:20_000] + bytes(9000) + whole[29_000:]]
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(StoreError):
            backup.restore(store, bad)
    with pytest.raises(StoreError, match="is not there"):
        backup.restore(store, tmp_path / "missing")
    with store.read() as db:
        assert balance(db, who.account_id).held == 200
        assert verify_books(db) == []


def test_books_that_do_not_agree_can_be_saved_and_are_told_of(
    store: Store, who: Customer, tmp_path: Path
) -> None:
    with store.write() as db:
        db.execute(sa.update(models.accounts).values(held=7))
    backup.back_up(store, tmp_path / "wrong")
    [problem] = backup.restore(store, tmp_path / "wrong")
    assert "hold 7, open reservations 200" in problem


def test_a_backup_of_a_newer_program_is_refused(
    store: Store, who: Customer, tmp_path: Path
) -> None:
    version = sa.text("UPDATE alembic_version SET version_num = :to")
    with store.write() as db:
        db.execute(version, {"to": "9999"})
    try:
        backup.back_up(store, tmp_path / "newer")
    finally:
        with store.write() as db:
            db.execute(version, {"to": migrations.head()})
    with pytest.raises(StoreError, match="revision 9999, which this program does not know"):
        backup.restore(store, tmp_path / "newer")
    migrations.check(store)


def test_a_database_that_stays_locked_is_not_restored(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "LOCK_SECONDS", 0.1)
    store = open_store(sqlite_url)
    backup.back_up(store, tmp_path / "backup")
    with store.write(), pytest.raises(UnavailableError, match="locked"):
        backup.restore(store, tmp_path / "backup")
    backup.restore(store, tmp_path / "backup")
    store.close()


def test_a_database_in_memory_has_no_backup(tmp_path: Path) -> None:
    store = open_store("sqlite://")
    with pytest.raises(StoreError, match="in memory"):
        backup.back_up(store, tmp_path / "a")
    assert os.listdir(tmp_path) == []
    store.close()


def test_without_the_programs_of_postgresql_there_is_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    store = open_store("postgresql://me:secret@nowhere/db")
    with pytest.raises(StoreError, match="pg_dump is not on the path"):
        backup.back_up(store, tmp_path / "a")


def test_files_may_have_any_name(sqlite_url: str, tmp_path: Path) -> None:
    store = open_store(sqlite_url)
    file = tmp_path / "a?b=c%20#d e.db"
    backup.back_up(store, file)
    assert backup.restore(store, file) == []
    assert os.listdir(tmp_path / "own") == ["store.db"]
    assert sorted(os.listdir(tmp_path)) == [file.name, "own"]
    store.close()


def test_a_password_is_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pg_dump"
    program.write_text(
        '#!/bin/sh\necho "$@" >&2; echo "$PGPASSWORD $PGHOST $PGPORT $PGUSER" >&2; exit 3'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    store = open_store("postgresql://me:s3cret@host:99/db")
    with pytest.raises(StoreError, match="ended with 3") as caught:
        backup.back_up(store, tmp_path / "a")
    arguments, environment = str(caught.value).split("\n")
    assert "s3cret" not in arguments
    assert environment == "s3cret host 99 me"


def test_an_export_has_everything_but_secrets(store: Store, who: Customer, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    rows = backup.export(store, folder)
    assert set(rows) == set(models.metadata.tables)
    assert rows["reservations"] == 2
    text = ""
    for name, count in rows.items():
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len([json.loads(line) for line in lines]) == count
        text += "".join(lines)
    assert who.account_id in text
    assert "hash" not in text
    with pytest.raises(StoreError, match="overwrites nothing"):
        backup.export(store, folder)


def test_a_backup_of_sqlite_is_a_database_of_its_own(sqlite_url: str, tmp_path: Path) -> None:
    store = open_store(sqlite_url)
    backup.back_up(store, tmp_path / "copy")
    store.close()
    connection = sqlite3.connect(tmp_path / "copy")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (
        migrations.head(),
    )
    connection.close()
