"""Uploads in parts, files registered in place, quotas of experiments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("source", sa.Text(), nullable=True))
    op.add_column("uploads", sa.Column("concat", sa.Text(), nullable=True))
    op.add_column("experiments", sa.Column("quota", sa.BigInteger(), nullable=True))
