"""Uploads whose length or digest comes after their announcement."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("deferred", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("uploads", sa.Column("digest_follows", sa.String(length=10), nullable=True))
