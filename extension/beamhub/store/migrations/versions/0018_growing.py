"""How many frames have come of data files that are still written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("dataset_files", sa.Column("growing", sa.Integer))
