"""Datasets that move to another experiment."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "moves",
        sa.Column("dataset", KEY, nullable=False),
        sa.Column("source", sa.String(length=60), nullable=False),
        sa.Column("target", sa.String(length=60), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("committed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.id"], name=op.f("fk_moves_dataset_datasets")),
        sa.ForeignKeyConstraint(["source"], ["experiments.id"], name=op.f("fk_moves_source_experiments")),
        sa.ForeignKeyConstraint(["target"], ["experiments.id"], name=op.f("fk_moves_target_experiments")),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_moves")),
    )
