"""Digests of any algorithm, also such as the service has computed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("uploads") as uploads:
        uploads.alter_column("digest", type_=sa.String(length=80), nullable=True)
        uploads.add_column(
            sa.Column("digest_by", sa.String(length=10), nullable=False, server_default="sender")
        )
    op.execute("UPDATE uploads SET digest = 'sha256:' || digest")
    with op.batch_alter_table("uploads") as uploads:
        uploads.alter_column("digest_by", server_default=None)
