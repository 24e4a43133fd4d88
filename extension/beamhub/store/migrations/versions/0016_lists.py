"""Indexes that have the rows of each list in their order, so that no page of it costs more than its rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_index("ix_jobs_experiment_state_id", "jobs", ["experiment", "state", "id"])
    op.create_index("ix_attempts_ended", "attempts", ["ended"])
    op.create_index("ix_datasets_state_id", "datasets", ["state", "id"])
    op.create_index("ix_uploads_instrument_created", "uploads", ["instrument", "created"])
    op.create_index("ix_uploads_state_created", "uploads", ["state", "created", "size"])
    op.drop_index("ix_uploads_receiving", "uploads")
    for table, column, more in (
        ("datasets", "experiment", ["id"]),
        ("uploads", "experiment", ["created"]),
        ("ledger", "licence", ["id"]),
        ("events", "experiment", ["id"]),
        ("events", "instrument", ["kind", "id"]),
        ("events", "subject", ["experiment"]),
    ):
        op.create_index("_".join(("ix", table, column, *more)), table, [column, *more])
        op.drop_index(f"ix_{table}_{column}", table)
    nowhere = sa.column("experiment").is_(None)
    op.create_index(
        "ix_events_nowhere",
        "events",
        ["instrument", "id"],
        sqlite_where=nowhere,
        postgresql_where=nowhere,
    )
