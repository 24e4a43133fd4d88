"""Datasets of more than one format; series, of which nobody knows how long they get."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # what is there already are HDF5 files with a master
    op.add_column("datasets", sa.Column("format", sa.String(20), nullable=False, server_default="nxmx"))
    op.add_column(
        "datasets", sa.Column("open_ended", sa.Boolean(), nullable=False, server_default=sa.false())
    )
