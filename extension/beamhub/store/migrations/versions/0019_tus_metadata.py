"""What tus clients say of their files, which they may ask for again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("uploads", sa.Column("metadata", sa.Text))
