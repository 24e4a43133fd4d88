"""Attempts of jobs, one by one; priorities; fingerprints; indexes for lists of many jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("job", KEY, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("runner", sa.String(length=40), nullable=False),
        sa.Column("ref", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("queued", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("cpu_seconds", sa.BigInteger(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("cell", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_attempts_job_jobs")),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_attempts")),
    )
    # of jobs from before, the last attempt is known: its number is how often credit was held for it
    op.execute(
        "INSERT INTO attempts (job, number, runner, ref, host, queued, started, ended, outcome, reason, "
        "cpu_seconds) SELECT jobs.id, holds.number, 'local', '', '', holds.queued, jobs.started, jobs.ended, "
        "CASE WHEN jobs.ended IS NULL THEN NULL ELSE jobs.state END, jobs.reason, jobs.cpu_seconds "
        "FROM jobs JOIN (SELECT job, count(*) AS number, max(time) AS queued FROM ledger "
        "WHERE kind = 'hold' GROUP BY job) AS holds ON holds.job = jobs.id WHERE jobs.state != 'pending'"
    )
    op.add_column("jobs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("fingerprint", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("repeats", KEY, nullable=True))
    for column in ("experiment", "state", "dataset", "template"):
        if column != "template":
            op.drop_index(f"ix_jobs_{column}", table_name="jobs")
        op.create_index(f"ix_jobs_{column}_id", "jobs", [column, "id"])
    op.create_index("ix_jobs_fingerprint", "jobs", ["fingerprint"])
    op.create_index("ix_jobs_parent", "jobs", ["parent"])
    op.create_index("ix_events_subject", "events", ["subject"])
