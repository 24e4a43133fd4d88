"""An index by which a report of usage finds the charges of its time, and reads nothing else of the ledger."""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_index("ix_ledger_kind_time", "ledger", ["kind", "time"])
