"""``dsv2 admin``: users, keys, money and the database, for whoever may read its file."""

from __future__ import annotations

import typer

try:
    from dsv2.cli.admin import database, keys, money, records, users
except ModuleNotFoundError as error:
    raise ValueError(
        f"{error}; the platform is installed with: pip install 'dsv2[serve]'"
    ) from None

admin = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@admin.callback()
def root() -> None:
    """Administer the platform: users, keys, money, records and the database.

    The commands work on the database itself, beside a running server or without one. Amounts are
    decimals of the currency, such as 12.50; in JSON they are micro-units. Users are named by their
    address or their id.
    """


admin.add_typer(users.app, name="users")
admin.add_typer(keys.app, name="keys")
admin.add_typer(money.prices_app, name="prices")
admin.add_typer(money.codes_app, name="codes")
admin.add_typer(records.settings_app, name="settings")
for command in (
    money.top_up, money.withdraw, money.balance, money.refund, records.usage, records.audit,
    database.verify, database.backup, database.restore, database.migrate, database.export,
):  # fmt: skip
    admin.command()(command)

__all__ = ["admin"]
