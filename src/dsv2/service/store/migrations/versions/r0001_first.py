"""Accounts, keys, books, requests: the first tables.

Revision 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text()
APPEND_ONLY = ("transfers", "entries", "prices", "audit_log")


def upgrade() -> None:
    """Make them, and the triggers that forbid to change what has been written."""
    _create_tables()
    sqlite = op.get_bind().dialect.name == "sqlite"
    if not sqlite:
        op.execute(
            "CREATE FUNCTION dsv2_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
    for table in APPEND_ONLY:
        if sqlite:
            for event in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        else:
            op.execute(
                f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE "
                f"ON {table} FOR EACH STATEMENT EXECUTE FUNCTION dsv2_append_only()"
            )


def _create_tables() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("unlimited", INT, nullable=False),
        sa.Column("granted", INT, nullable=False),
        sa.Column("paid", INT, nullable=False),
        sa.Column("held", INT, nullable=False),
        sa.Column("spent", INT, nullable=False),
        sa.Column("issued", INT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'suspended')", name=op.f("ck_accounts_status_known")
        ),
        sa.CheckConstraint(
            "granted + paid + spent = issued", name=op.f("ck_accounts_books_balance")
        ),
        sa.CheckConstraint("granted + paid >= held", name=op.f("ck_accounts_holds_covered")),
        sa.CheckConstraint(
            "granted >= 0 AND paid >= 0 AND held >= 0 AND spent >= 0",
            name=op.f("ck_accounts_none_negative"),
        ),
        sa.CheckConstraint(
            "issued <= 1000000000000000000", name=op.f("ck_accounts_issued_bounded")
        ),
        sa.CheckConstraint("unlimited IN (0, 1)", name=op.f("ck_accounts_unlimited_flag")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_log",
        sa.Column("id", INT, autoincrement=True, nullable=False),
        sa.Column("at", INT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("detail", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_audit_log_subject"), "audit_log", ["subject"], unique=False)
    op.create_table(
        "prices",
        sa.Column("id", INT, autoincrement=True, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("version", INT, nullable=False),
        sa.Column("input", INT, nullable=False),
        sa.Column("cached_input", INT, nullable=False),
        sa.Column("output", INT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.CheckConstraint(
            "input >= cached_input AND cached_input >= 0 AND output >= 0",
            name=op.f("ck_prices_never_negative"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prices")),
        sa.UniqueConstraint("model", "version", name=op.f("uq_prices_model_version")),
        sqlite_strict=True,
    )
    op.create_table(
        "redemption_codes",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("code_hash", TEXT, nullable=False),
        sa.Column("prefix", TEXT, nullable=False),
        sa.Column("book", TEXT, nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.Column("max_uses", INT, nullable=False),
        sa.Column("uses", INT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=True),
        sa.Column("revoked_at", INT, nullable=True),
        sa.CheckConstraint(
            "book IN ('granted', 'paid')", name=op.f("ck_redemption_codes_book_known")
        ),
        sa.CheckConstraint("amount > 0", name=op.f("ck_redemption_codes_amount_positive")),
        sa.CheckConstraint(
            "uses >= 0 AND uses <= max_uses", name=op.f("ck_redemption_codes_uses_bounded")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redemption_codes")),
        sa.UniqueConstraint("code_hash", name=op.f("uq_redemption_codes_code_hash")),
        sqlite_strict=True,
    )
    op.create_table(
        "settings",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("updated_at", INT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
        sqlite_strict=True,
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("request_hash", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("status", INT, nullable=True),
        sa.Column("content_type", TEXT, nullable=True),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=False),
        sa.CheckConstraint(
            "(status IS NULL) = (response IS NULL)", name=op.f("ck_idempotency_keys_answered_whole")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_idempotency_keys_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_keys")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"], unique=False
    )
    op.create_table(
        "redemptions",
        sa.Column("code_id", TEXT, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_redemptions_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["code_id"], ["redemption_codes.id"], name=op.f("fk_redemptions_code_id")
        ),
        sa.PrimaryKeyConstraint("code_id", "account_id", name=op.f("pk_redemptions")),
        sqlite_strict=True,
    )
    op.create_table(
        "transfers",
        sa.Column("id", INT, autoincrement=True, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("cause", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("memo", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.CheckConstraint(
            "kind IN ('grant', 'top_up', 'withdraw', 'charge', 'refund')",
            name=op.f("ck_transfers_kind_known"),
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_transfers_account_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        sa.UniqueConstraint("cause", name=op.f("uq_transfers_cause")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_transfers_account_id_id"), "transfers", ["account_id", "id"], unique=False
    )
    op.create_table(
        "usage_daily",
        sa.Column("day", TEXT, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("key_id", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("requests", INT, nullable=False),
        sa.Column("prompt_tokens", INT, nullable=False),
        sa.Column("cached_tokens", INT, nullable=False),
        sa.Column("completion_tokens", INT, nullable=False),
        sa.Column("charge", INT, nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_usage_daily_account_id")
        ),
        sa.PrimaryKeyConstraint(
            "day", "account_id", "key_id", "model", name=op.f("pk_usage_daily")
        ),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_usage_daily_account_id_day"), "usage_daily", ["account_id", "day"], unique=False
    )
    op.create_table(
        "users",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("email", TEXT, nullable=False),
        sa.Column("password_hash", TEXT, nullable=True),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("password_changed_at", INT, nullable=False),
        sa.CheckConstraint("role IN ('user', 'admin')", name=op.f("ck_users_role_known")),
        sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f("ck_users_status_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_users_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_users_account_id"), "users", ["account_id"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("token_hash", TEXT, nullable=False),
        sa.Column("prefix", TEXT, nullable=False),
        sa.Column("models", TEXT, nullable=True),
        sa.Column("budget", INT, nullable=True),
        sa.Column("budget_period", TEXT, nullable=False),
        sa.Column("window_start", INT, nullable=False),
        sa.Column("spent", INT, nullable=False),
        sa.Column("held", INT, nullable=False),
        sa.Column("requests_per_minute", INT, nullable=True),
        sa.Column("tokens_per_minute", INT, nullable=True),
        sa.Column("max_concurrent", INT, nullable=True),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=True),
        sa.Column("revoked_at", INT, nullable=True),
        sa.Column("last_used_at", INT, nullable=True),
        sa.CheckConstraint(
            "budget_period IN ('total', 'day', 'month')",
            name=op.f("ck_api_keys_budget_period_known"),
        ),
        sa.CheckConstraint("budget >= 0", name=op.f("ck_api_keys_budget_positive")),
        sa.CheckConstraint("spent >= 0 AND held >= 0", name=op.f("ck_api_keys_none_negative")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_api_keys_account_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_keys_token_hash")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_api_keys_account_id"), "api_keys", ["account_id"], unique=False)
    op.create_table(
        "entries",
        sa.Column("transfer_id", INT, autoincrement=False, nullable=False),
        sa.Column("book", TEXT, nullable=False),
        sa.Column("amount", INT, nullable=False),
        sa.CheckConstraint(
            "book IN ('granted', 'paid', 'spent', 'issued')", name=op.f("ck_entries_book_known")
        ),
        sa.CheckConstraint("amount <> 0", name=op.f("ck_entries_amount_moves")),
        sa.ForeignKeyConstraint(
            ["transfer_id"], ["transfers.id"], name=op.f("fk_entries_transfer_id")
        ),
        sa.PrimaryKeyConstraint("transfer_id", "book", name=op.f("pk_entries")),
        sqlite_strict=True,
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_sessions")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("account_id", TEXT, nullable=False),
        sa.Column("key_id", TEXT, nullable=True),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("price_id", INT, nullable=False),
        sa.Column("asked_prompt_tokens", INT, nullable=False),
        sa.Column("asked_completion_tokens", INT, nullable=False),
        sa.Column("hold", INT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("owner", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("expires_at", INT, nullable=False),
        sa.Column("prompt_tokens", INT, nullable=False),
        sa.Column("cached_tokens", INT, nullable=False),
        sa.Column("completion_tokens", INT, nullable=False),
        sa.Column("cost", INT, nullable=False),
        sa.Column("charge", INT, nullable=False),
        sa.Column("refunded", INT, nullable=False),
        sa.Column("finish", TEXT, nullable=False),
        sa.Column("finished_at", INT, nullable=True),
        sa.CheckConstraint(
            "(state = 'open') = (finished_at IS NULL)", name=op.f("ck_reservations_finished_once")
        ),
        sa.CheckConstraint(
            "state IN ('open', 'settled', 'released')", name=op.f("ck_reservations_state_known")
        ),
        sa.CheckConstraint(
            "cached_tokens >= 0 AND cached_tokens <= prompt_tokens",
            name=op.f("ck_reservations_cached_known"),
        ),
        sa.CheckConstraint(
            "completion_tokens >= 0 AND cost >= 0", name=op.f("ck_reservations_none_negative")
        ),
        sa.CheckConstraint(
            "hold >= 0 AND charge >= 0 AND charge <= hold", name=op.f("ck_reservations_charge_held")
        ),
        sa.CheckConstraint(
            "refunded >= 0 AND refunded <= charge", name=op.f("ck_reservations_refund_charged")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_reservations_account_id")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_reservations_key_id")),
        sa.ForeignKeyConstraint(["price_id"], ["prices.id"], name=op.f("fk_reservations_price_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservations")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_reservations_account_id_finished_at"),
        "reservations",
        ["account_id", "finished_at"],
        unique=False,
    )
    op.create_index(op.f("ix_reservations_key_id"), "reservations", ["key_id"], unique=False)
    op.create_index(
        op.f("ix_reservations_state_expires_at"),
        "reservations",
        ["state", "expires_at"],
        unique=False,
    )
    op.create_index(
        op.f("ix_reservations_state_owner"), "reservations", ["state", "owner"], unique=False
    )
