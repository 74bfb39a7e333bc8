"""Conversations of the chat site, their messages, and presets.

Revision 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text()


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "conversations",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("title", TEXT, nullable=False),
        sa.Column("tags", TEXT, nullable=False),
        sa.Column("system", TEXT, nullable=False),
        sa.Column("params", TEXT, nullable=False),
        sa.Column("leaf_id", TEXT, nullable=True),
        sa.Column("is_pinned", INT, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.Column("updated_at", INT, nullable=False),
        sa.CheckConstraint("is_pinned IN (0, 1)", name=op.f("ck_conversations_is_pinned_flag")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_conversations_none_negative")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_conversations_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_conversations_user_id_is_pinned_updated_at_id"),
        "conversations",
        ["user_id", "is_pinned", "updated_at", "id"],
        unique=False,
    )
    op.create_table(
        "messages",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("conversation_id", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("parent_id", TEXT, nullable=True),
        sa.Column("place", INT, nullable=False),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("content", TEXT, nullable=False),
        sa.Column("attachments", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("failure_code", TEXT, nullable=True),
        sa.Column("failure_message", TEXT, nullable=True),
        sa.Column("finish", TEXT, nullable=True),
        sa.Column("model", TEXT, nullable=True),
        sa.Column("prompt_tokens", INT, nullable=False),
        sa.Column("cached_tokens", INT, nullable=False),
        sa.Column("completion_tokens", INT, nullable=False),
        sa.Column("milliseconds", INT, nullable=False),
        sa.Column("tokens", TEXT, nullable=True),
        sa.Column("owner", TEXT, nullable=True),
        sa.Column("expires_at", INT, nullable=True),
        sa.Column("created_at", INT, nullable=False),
        sa.CheckConstraint("role IN ('user', 'assistant')", name=op.f("ck_messages_role_known")),
        sa.CheckConstraint(
            "status IN ('complete', 'running', 'stopped', 'failed')",
            name=op.f("ck_messages_status_known"),
        ),
        sa.CheckConstraint(
            "(failure_code IS NULL) = (failure_message IS NULL)",
            name=op.f("ck_messages_failed_whole"),
        ),
        sa.CheckConstraint(
            "(status = 'running') = (owner IS NOT NULL)", name=op.f("ck_messages_running_owned")
        ),
        sa.CheckConstraint(
            "(owner IS NULL) = (expires_at IS NULL)", name=op.f("ck_messages_owned_for_a_time")
        ),
        sa.CheckConstraint(
            "cached_tokens >= 0 AND cached_tokens <= prompt_tokens",
            name=op.f("ck_messages_cached_known"),
        ),
        sa.CheckConstraint(
            "completion_tokens >= 0 AND milliseconds >= 0", name=op.f("ck_messages_none_negative")
        ),
        sa.ForeignKeyConstraint(
            ["conversation_id"], ["conversations.id"], name=op.f("fk_messages_conversation_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_messages_user_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["messages.id"], name=op.f("fk_messages_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_messages")),
        sa.UniqueConstraint(
            "conversation_id", "place", name=op.f("uq_messages_conversation_id_place")
        ),
        sqlite_strict=True,
    )
    for columns in (["user_id", "status"], ["status", "expires_at"], ["parent_id"]):
        op.create_index(op.f(f"ix_messages_{'_'.join(columns)}"), "messages", columns, unique=False)
    op.create_table(
        "presets",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("system", TEXT, nullable=False),
        sa.Column("params", TEXT, nullable=False),
        sa.Column("created_at", INT, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_presets_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_presets")),
        sqlite_strict=True,
    )
    op.create_index(
        op.f("ix_presets_user_id_created_at"), "presets", ["user_id", "created_at"], unique=False
    )
