"""Jobs in the making, and what happened while automation was paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("triggers", sa.Column("group", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "gatherings",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("trigger", KEY, nullable=False),
        sa.Column("experiment", sa.String(length=60), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("boot", sa.String(length=40), nullable=False),
        sa.Column("newest", sa.Float(), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("job", KEY, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["trigger"], ["triggers.id"], name=op.f("fk_gatherings_trigger_triggers")),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_gatherings_experiment_experiments")
        ),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_gatherings_job_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gatherings")),
    )
    op.create_index(op.f("ix_gatherings_trigger"), "gatherings", ["trigger"])
    op.create_index(op.f("ix_gatherings_ended"), "gatherings", ["ended"])
    op.create_table(
        "gathered",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("gathering", KEY, nullable=False),
        sa.Column("event", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["gathering"], ["gatherings.id"], name=op.f("fk_gathered_gathering_gatherings")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_gathered")),
    )
    op.create_index(op.f("ix_gathered_gathering"), "gathered", ["gathering"])
    op.create_table(
        "missed",
        sa.Column("event", KEY, nullable=False),
        sa.Column("instrument", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["events.id"], name=op.f("fk_missed_event_events")),
        sa.ForeignKeyConstraint(
            ["instrument"], ["instruments.id"], name=op.f("fk_missed_instrument_instruments")
        ),
        sa.PrimaryKeyConstraint("event", name=op.f("pk_missed")),
    )
    op.create_index(op.f("ix_missed_instrument"), "missed", ["instrument"])
