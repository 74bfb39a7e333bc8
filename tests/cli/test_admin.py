"""``dsv2 admin``: what operators do on the database itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dsv2.cli.admin import admin
from dsv2.cli.admin.common import micro_units, print_rows
from dsv2.service.platform.folders import database_url
from dsv2.service.store import keys, migrations, open_store, users
from dsv2.service.store.amounts import shown
from dsv2.service.store.checks import now_ms
from tests.service.store.make import cheap_passwords

runner = CliRunner()
EMAIL = "a@example.org"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database of a user whose data folder is the test's own."""
    monkeypatch.setenv("DSV2_HOME", str(tmp_path))
    assert database_url() == f"sqlite:///{tmp_path}/platform.sqlite"
    return database_url()


@pytest.fixture
def database(url: str) -> str:
    store = open_store(url)
    migrations.upgrade(store)
    cheap_passwords(store)
    store.close()
    return url


def run(*arguments: str, typed: str | None = None) -> Result:
    return runner.invoke(admin, list(arguments), input=typed)


def tell(*arguments: str, typed: str | None = None) -> Any:
    result = run(*arguments, "--json", typed=typed)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def error(*arguments: str) -> str:
    """The message of a refusal, which the program prints as one line before exit code 2."""
    result = run(*arguments)
    assert isinstance(result.exception, ValueError)
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def user(database: str) -> Any:
    return tell("users", "create", EMAIL, typed="correct horse\n")


def test_a_database_is_made_by_migrate_and_nothing_else(url: str, tmp_path: Path) -> None:
    assert "dsv2 admin migrate makes one" in error("users", "list")
    assert not (tmp_path / "platform.sqlite").exists()
    assert tell("migrate") == {"before": None, "after": migrations.head()}
    assert tell("migrate")["before"] == migrations.head()
    assert tell("users", "list") == []


def test_users_are_made_found_suspended_and_given_roles(user: Any) -> None:
    assert user["email"] == EMAIL and user["role"] == "user"
    assert [one["id"] for one in tell("users", "list", "--search", "EXAMPLE")] == [user["id"]]
    assert tell("users", "suspend", EMAIL)["status"] == "suspended"
    assert tell("users", "activate", user["id"])["status"] == "active"
    assert tell("users", "role", EMAIL, "admin")["role"] == "admin"
    assert "allowed are user, admin" in error("users", "role", EMAIL, "king")
    assert "there is no user" in error("users", "suspend", "nobody@example.org")
    assert "there is no user" in error("users", "suspend", "user_0")


def test_passwords_come_from_the_standard_input(user: Any, database: str) -> None:
    tell("users", "password", EMAIL, typed="battery staple\n")
    store = open_store(database)
    found, _ = users.log_in(store, EMAIL, "battery staple", now=now_ms())
    store.close()
    assert found.id == user["id"]
    result = run("users", "password", EMAIL, typed="short\n")
    assert "8 to 1024 characters" in str(result.exception)
    assert "short\n" not in result.output


def test_a_keys_secret_is_printed_once_and_works(user: Any, database: str) -> None:
    made = tell("keys", "create", EMAIL, "--budget", "1.50", "--model", "tiny", "--name", "k")
    assert made["budget"] == 1_500_000 and made["models"] == ["tiny"]
    store = open_store(database)
    with store.read() as db:
        assert keys.authenticate(db, made["secret"], now=now_ms()).key.id == made["id"]
    store.close()
    listed = run("keys", "list", EMAIL).output
    assert made["id"] in listed and made["secret"][7:] not in listed
    assert tell("keys", "revoke", EMAIL, made["id"])["revoked_at"] is not None


def test_money_goes_in_and_out_exactly(user: Any) -> None:
    assert tell("top-up", EMAIL, "12.345678", "--cause", "r7")["paid"] == 12_345_678
    assert tell("top-up", EMAIL, "12.345678", "--cause", "r7")["moved"] is False
    assert tell("top-up", EMAIL, "1", "--granted")["granted"] == 1_000_000
    assert tell("withdraw", EMAIL, "2.345678")["paid"] == 10_000_000
    assert "available" in error("withdraw", EMAIL, "100")
    for wrong in ("0.0000001", "x", "NaN", "1e999999", "inf"):
        assert "is no amount" in error("top-up", EMAIL, wrong)
    assert tell("verify") == {"sound": True, "problems": []}


def test_prices_and_codes(user: Any) -> None:
    prices = ("--input", "0.14", "--cached-input", "0.014", "--output", "0.28")
    assert tell("prices", "set", "tiny", *prices)["cached_input"] == 14_000
    assert [row["version"] for row in tell("prices", "list")] == [1]
    code = tell("codes", "create", "5", "--uses", "3", "--days", "2")
    assert code["secret"].startswith("code-") and code["expires_at"] > now_ms()
    assert "secret" not in tell("codes", "list")[0]
    assert tell("codes", "revoke", code["id"])["revoked_at"] is not None


def test_settings_usage_and_the_log(user: Any) -> None:
    assert tell("settings", "set", "sign_up_open", "false") == {"sign_up_open": False}
    assert tell("settings", "set", "currency", "EUR") == {"currency": "EUR"}
    assert "allowed are" in error("settings", "set", "no_such", "1")
    assert tell("settings", "list")["currency"] == "EUR"
    assert tell("usage", "--user", EMAIL) == []
    assert run("usage", "--csv").output.startswith("day,account_id,")
    actions = [entry["action"] for entry in tell("audit", "--limit", "2")]
    assert actions == ["setting.change", "setting.change"]
    assert tell("audit", "--subject", user["id"])[0]["actor"] == "cli"


def test_a_backup_brings_back_what_was(user: Any, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    assert tell("backup", str(file))["bytes"] > 0
    assert "overwrites nothing" in error("backup", str(file))
    tell("top-up", EMAIL, "5")
    assert run("restore", str(file), typed="n\n").exit_code == 1
    assert tell("balance", EMAIL)["paid"] == 5_000_000
    assert tell("restore", str(file), "--yes")["problems"] == []
    assert tell("balance", EMAIL)["paid"] == 0
    assert tell("export", str(tmp_path / "out"))["users"] == 1


def test_books_that_do_not_agree_are_an_exit_code(user: Any, database: str) -> None:
    store = open_store(database)
    with store.write() as db:
        db.exec_driver_sql("UPDATE accounts SET held = 5, granted = 5, issued = 5")
    store.close()
    result = run("verify")
    assert result.exit_code == 1 and "hold 5" in result.output
    assert not json.loads(run("verify", "--json").output)["sound"]


def test_tables_are_for_people_and_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"name": "[red]\x1b[2J", "spent": 1_230_000, "revoked_at": None, "created_at": 0}]
    print_rows(rows, ("name", "spent", "revoked_at", "created_at"), False)
    output = capsys.readouterr().out
    assert "[red]\\x1b[2J" in output and "1.23" in output and "1970-01-01 00:00:00" in output


@pytest.mark.parametrize("amount", [0, 1, 14_000, 12_500_000, -1_000_001])
def test_amounts_are_read_as_they_are_shown(amount: int) -> None:
    assert micro_units(shown(amount)) == amount


def test_another_database_is_named_by_its_url(user: Any, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite'}"
    tell("migrate", "--database", other)
    assert tell("users", "list", "--database", other) == []
    assert "allowed are" in error("users", "list", "--database", "mysql://x/y")
