"""Terms of lab licences; grants with a validity of their own; attempts in the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("licences", sa.Column("terms", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("licences", sa.Column("low", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("ledger", sa.Column("attempt", sa.Integer(), nullable=True))
    op.create_table(
        "grants",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("licence", sa.String(length=40), nullable=False),
        sa.Column("cpu_seconds", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("expired", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.Boolean(), nullable=False),
        sa.Column("valid_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["licence"], ["licences.id"], name=op.f("fk_grants_licence_licences")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    op.create_index(op.f("ix_grants_licence"), "grants", ["licence"], unique=False)
    # what was granted before is one grant without an end
    op.execute(
        "INSERT INTO grants (licence, cpu_seconds, used, expired, counts, valid_from, created, actor, note) "
        "SELECT id, granted, charged, 0, true, valid_from, valid_from, 'beamhub', 'all grants until now' "
        "FROM licences WHERE granted > 0"
    )
