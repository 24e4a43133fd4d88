"""What all versions of a file have in common, to find them by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from beamhub import folders

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column(
        "uploads", sa.Column("first_path", sa.String(length=1000), nullable=False, server_default="")
    )
    op.execute("UPDATE uploads SET first_path = path")
    uploads = sa.table("uploads", sa.column("id"), sa.column("path"), sa.column("first_path"))
    connection = op.get_bind()
    later = sa.select(uploads.c.id, uploads.c.path).where(uploads.c.path.like("%/version-%"))
    for id_, path in connection.execute(later).all():
        first = uploads.update().where(uploads.c.id == id_)
        connection.execute(first.values(first_path=folders.unversioned(path)))
    op.create_index("ix_uploads_experiment_first_path", "uploads", ["experiment", "first_path"])
