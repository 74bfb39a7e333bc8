"""The tables. A change here is a revision in ``migrations/versions``; a test compares the two.

Every column is a text, an integer or bytes, and SQLite checks that too (``STRICT``): no float can
get into the books. Amounts are micro-units, times milliseconds since 1970 in UTC; lists and
objects are JSON texts.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

INT = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits everywhere; SQLite's own integers have them, and its row ids must be called INTEGER."""

APPEND_ONLY = ("transfers", "entries", "prices", "audit_log")
"""Tables whose rows triggers protect from change and removal."""
SECRETS = {
    "users": ("password_hash",),
    "sessions": ("token_hash",),
    "api_keys": ("token_hash",),
    "redemption_codes": ("code_hash",),
    "idempotency_keys": ("response",),
    "conversations": ("title", "tags", "system"),
    "messages": ("content", "attachments", "tokens"),
    "presets": ("name", "system"),
}
"""Columns an export leaves out: what opens doors, and what people have written and were told."""

BOOKS = ("granted", "paid", "spent", "issued")
ROLES = ("user", "admin")
STATUSES = ("active", "suspended")
PERIODS = ("total", "day", "month")
STATES = ("open", "settled", "released")
MESSAGE_ROLES = ("user", "assistant")
MESSAGE_STATES = ("complete", "running", "stopped", "failed")
TRANSFER_KINDS = ("grant", "top_up", "withdraw", "charge", "refund")
MAX_ISSUED = 10**18
"""Most micro-units that an account is ever given: its books can always be added up in 64 bits."""


def _text(name: str, *rest: Any, **options: Any) -> Column[str]:
    return Column(name, Text, *rest, nullable=options.pop("nullable", False), **options)


def _int(name: str, *rest: Any, **options: Any) -> Column[int]:
    return Column(name, INT, *rest, nullable=options.pop("nullable", False), **options)


def _one_of(column: str, words: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _table(name: str, *parts: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True)


# What has been put into an account is in it or was spent, statement by statement: the database
# refuses a row for which that, or a balance below zero, or a hold without cover, would be true.
accounts = _table(
    "accounts",
    _text("id", primary_key=True),
    _text("status"),
    _int("unlimited"),
    _int("granted"),
    _int("paid"),
    _int("held"),
    _int("spent"),
    _int("issued"),
    _int("created_at"),
    _one_of("status", STATUSES),
    CheckConstraint("unlimited IN (0, 1)", name="unlimited_flag"),
    CheckConstraint(
        "granted >= 0 AND paid >= 0 AND held >= 0 AND spent >= 0", name="none_negative"
    ),
    CheckConstraint("granted + paid >= held", name="holds_covered"),
    CheckConstraint("granted + paid + spent = issued", name="books_balance"),
    CheckConstraint(f"issued <= {MAX_ISSUED}", name="issued_bounded"),
)

users = _table(
    "users",
    _text("id", primary_key=True),
    _text("account_id", ForeignKey("accounts.id")),
    _text("email"),
    _text("password_hash", nullable=True),
    _text("role"),
    _text("status"),
    _int("created_at"),
    _int("password_changed_at"),
    UniqueConstraint("email"),
    _one_of("role", ROLES),
    _one_of("status", STATUSES),
    Index(None, "account_id"),
)

sessions = _table(
    "sessions",
    _text("token_hash", primary_key=True),
    _text("user_id", ForeignKey("users.id")),
    _int("created_at"),
    _int("expires_at"),
    Index(None, "user_id"),
)

api_keys = _table(
    "api_keys",
    _text("id", primary_key=True),
    _text("account_id", ForeignKey("accounts.id")),
    _text("user_id", ForeignKey("users.id")),
    _text("name"),
    _text("token_hash"),
    _text("prefix"),
    _text("models", nullable=True),
    _int("budget", nullable=True),
    _text("budget_period"),
    _int("window_start"),
    _int("spent"),
    _int("held"),
    _int("requests_per_minute", nullable=True),
    _int("tokens_per_minute", nullable=True),
    _int("max_concurrent", nullable=True),
    _int("created_at"),
    _int("expires_at", nullable=True),
    _int("revoked_at", nullable=True),
    _int("last_used_at", nullable=True),
    UniqueConstraint("token_hash"),
    _one_of("budget_period", PERIODS),
    CheckConstraint("spent >= 0 AND held >= 0", name="none_negative"),
    CheckConstraint("budget >= 0", name="budget_positive"),
    Index(None, "account_id"),
)

transfers = _table(
    "transfers",
    _int("id", primary_key=True, autoincrement=True),
    _text("account_id", ForeignKey("accounts.id")),
    _text("kind"),
    _text("cause"),
    _text("actor"),
    _text("memo"),
    _int("created_at"),
    UniqueConstraint("cause"),
    _one_of("kind", TRANSFER_KINDS),
    Index(None, "account_id", "id"),
)

entries = _table(
    "entries",
    _int("transfer_id", ForeignKey("transfers.id"), primary_key=True, autoincrement=False),
    _text("book", primary_key=True),
    _int("amount"),
    _one_of("book", BOOKS),
    CheckConstraint("amount <> 0", name="amount_moves"),
)

prices = _table(
    "prices",
    _int("id", primary_key=True, autoincrement=True),
    _text("model"),
    _int("version"),
    _int("input"),
    _int("cached_input"),
    _int("output"),
    _text("actor"),
    _int("created_at"),
    UniqueConstraint("model", "version"),
    CheckConstraint(
        "input >= cached_input AND cached_input >= 0 AND output >= 0", name="never_negative"
    ),
)

reservations = _table(
    "reservations",
    _text("id", primary_key=True),
    _text("account_id", ForeignKey("accounts.id")),
    _text("key_id", ForeignKey("api_keys.id"), nullable=True),
    _text("model"),
    _int("price_id", ForeignKey("prices.id")),
    _int("asked_prompt_tokens"),
    _int("asked_completion_tokens"),
    _int("hold"),
    _text("state"),
    _text("owner"),
    _int("created_at"),
    _int("expires_at"),
    _int("prompt_tokens"),
    _int("cached_tokens"),
    _int("completion_tokens"),
    _int("cost"),
    _int("charge"),
    _int("refunded"),
    _text("finish"),
    _int("finished_at", nullable=True),
    _one_of("state", STATES),
    CheckConstraint("hold >= 0 AND charge >= 0 AND charge <= hold", name="charge_held"),
    CheckConstraint("refunded >= 0 AND refunded <= charge", name="refund_charged"),
    CheckConstraint("cached_tokens >= 0 AND cached_tokens <= prompt_tokens", name="cached_known"),
    CheckConstraint("completion_tokens >= 0 AND cost >= 0", name="none_negative"),
    CheckConstraint("(state = 'open') = (finished_at IS NULL)", name="finished_once"),
    Index(None, "account_id", "finished_at"),
    Index(None, "key_id"),
    Index(None, "state", "expires_at"),
    Index(None, "state", "owner"),
)

usage_daily = _table(
    "usage_daily",
    _text("day", primary_key=True),
    _text("account_id", ForeignKey("accounts.id"), primary_key=True),
    _text("key_id", primary_key=True),
    _text("model", primary_key=True),
    _int("requests"),
    _int("prompt_tokens"),
    _int("cached_tokens"),
    _int("completion_tokens"),
    _int("charge"),
    Index(None, "account_id", "day"),
)

redemption_codes = _table(
    "redemption_codes",
    _text("id", primary_key=True),
    _text("code_hash"),
    _text("prefix"),
    _text("book"),
    _int("amount"),
    _int("max_uses"),
    _int("uses"),
    _text("actor"),
    _int("created_at"),
    _int("expires_at", nullable=True),
    _int("revoked_at", nullable=True),
    UniqueConstraint("code_hash"),
    _one_of("book", ("granted", "paid")),
    CheckConstraint("uses >= 0 AND uses <= max_uses", name="uses_bounded"),
    CheckConstraint("amount > 0", name="amount_positive"),
)

redemptions = _table(
    "redemptions",
    _text("code_id", ForeignKey("redemption_codes.id"), primary_key=True),
    _text("account_id", ForeignKey("accounts.id"), primary_key=True),
    _int("created_at"),
)

idempotency_keys = _table(
    "idempotency_keys",
    _text("account_id", ForeignKey("accounts.id"), primary_key=True),
    _text("key", primary_key=True),
    _text("request_hash"),
    _text("request_id"),
    _int("status", nullable=True),
    _text("content_type", nullable=True),
    Column("response", LargeBinary, nullable=True),
    _int("created_at"),
    _int("expires_at"),
    CheckConstraint("(status IS NULL) = (response IS NULL)", name="answered_whole"),
    Index(None, "expires_at"),
)

audit_log = _table(
    "audit_log",
    _int("id", primary_key=True, autoincrement=True),
    _int("at"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("detail"),
    Index(None, "subject"),
)

settings = _table(
    "settings",
    _text("name", primary_key=True),
    _text("value"),
    _int("updated_at"),
)

conversations = _table(
    "conversations",
    _text("id", primary_key=True),
    _text("user_id", ForeignKey("users.id")),
    _text("title"),
    _text("tags"),
    _text("system"),
    _text("params"),
    _text("leaf_id", nullable=True),
    _int("is_pinned"),
    _int("size"),
    _int("created_at"),
    _int("updated_at"),
    CheckConstraint("is_pinned IN (0, 1)", name="is_pinned_flag"),
    CheckConstraint("size >= 0", name="none_negative"),
    Index(None, "user_id", "is_pinned", "updated_at", "id"),
)

messages = _table(
    "messages",
    _text("id", primary_key=True),
    _text("conversation_id", ForeignKey("conversations.id")),
    _text("user_id", ForeignKey("users.id")),
    _text("parent_id", ForeignKey("messages.id"), nullable=True),
    _int("place"),
    _text("role"),
    _text("content"),
    _text("attachments"),
    _text("status"),
    _text("failure_code", nullable=True),
    _text("failure_message", nullable=True),
    _text("finish", nullable=True),
    _text("model", nullable=True),
    _int("prompt_tokens"),
    _int("cached_tokens"),
    _int("completion_tokens"),
    _int("milliseconds"),
    _text("tokens", nullable=True),
    _text("owner", nullable=True),
    _int("expires_at", nullable=True),
    _int("created_at"),
    UniqueConstraint("conversation_id", "place"),
    _one_of("role", MESSAGE_ROLES),
    _one_of("status", MESSAGE_STATES),
    CheckConstraint("(failure_code IS NULL) = (failure_message IS NULL)", name="failed_whole"),
    CheckConstraint("(status = 'running') = (owner IS NOT NULL)", name="running_owned"),
    CheckConstraint("(owner IS NULL) = (expires_at IS NULL)", name="owned_for_a_time"),
    CheckConstraint("cached_tokens >= 0 AND cached_tokens <= prompt_tokens", name="cached_known"),
    CheckConstraint("completion_tokens >= 0 AND milliseconds >= 0", name="none_negative"),
    Index(None, "user_id", "status"),
    Index(None, "status", "expires_at"),
    Index(None, "parent_id"),
)

presets = _table(
    "presets",
    _text("id", primary_key=True),
    _text("user_id", ForeignKey("users.id")),
    _text("name"),
    _text("system"),
    _text("params"),
    _int("created_at"),
    Index(None, "user_id", "created_at"),
)
