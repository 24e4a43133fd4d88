"""What staff tell an instrument's agent, and what it tells them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("instruments", sa.Column("uploads_paused", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "commands",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("instrument", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("paths", sa.JSON(), nullable=False),
        sa.Column("pattern", sa.String(length=200), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("experiment", sa.String(length=60), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=255), nullable=False),
        sa.Column("obeyed", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_commands_experiment_experiments")
        ),
        sa.ForeignKeyConstraint(
            ["instrument"], ["instruments.id"], name=op.f("fk_commands_instrument_instruments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
    )
    op.create_index(op.f("ix_commands_instrument"), "commands", ["instrument"], unique=False)
    op.create_table(
        "agent_files",
        sa.Column("instrument", sa.String(length=40), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=1000), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instrument"], ["instruments.id"], name=op.f("fk_agent_files_instrument_instruments")
        ),
        sa.PrimaryKeyConstraint("instrument", "part", "number", name=op.f("pk_agent_files")),
    )
    op.create_table(
        "journal_reports",
        sa.Column("command", KEY, nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("last", sa.Boolean(), nullable=False),
        sa.Column("lines", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["command"], ["commands.id"], name=op.f("fk_journal_reports_command_commands")
        ),
        sa.PrimaryKeyConstraint("command", "part", name=op.f("pk_journal_reports")),
    )
