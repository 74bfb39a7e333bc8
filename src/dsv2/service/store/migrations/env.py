"""What Alembic runs: the revisions, on the connection that ``upgrade`` opened."""

from __future__ import annotations

from alembic import context

from dsv2.service.store.models import metadata

# SQLite alters a table by making it anew, which Alembic does in batches.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
