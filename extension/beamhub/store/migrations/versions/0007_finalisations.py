"""Experiments whose data are signed off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "finalisations",
        sa.Column("experiment", sa.String(length=60), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("command", KEY, nullable=True),
        sa.Column("differences", sa.JSON(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["command"], ["commands.id"], name=op.f("fk_finalisations_command_commands")),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_finalisations_experiment_experiments")
        ),
        sa.PrimaryKeyConstraint("experiment", name=op.f("pk_finalisations")),
    )
    op.create_table(
        "checksums",
        sa.Column("experiment", sa.String(length=60), nullable=False),
        sa.Column("path", sa.String(length=1000), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_checksums_experiment_experiments")
        ),
        sa.PrimaryKeyConstraint("experiment", "path", name=op.f("pk_checksums")),
    )
