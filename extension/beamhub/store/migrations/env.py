"""Runs the migrations on the connection, and inside the transaction, that `Store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from beamhub.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite can't alter most things in place
)
context.run_migrations()
