"""The few uploads that are on their way are found without looking at all others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    receiving = sa.text("state = 'receiving'")
    op.create_index(
        "ix_uploads_receiving",
        "uploads",
        ["created"],
        sqlite_where=receiving,
        postgresql_where=receiving,
    )
