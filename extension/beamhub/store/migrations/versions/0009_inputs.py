"""Jobs on several datasets, on other jobs, or on none; jobs of members' own notebooks; why jobs failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("notebook", sa.String(length=1000), nullable=True))
    op.add_column("jobs", sa.Column("failure", sa.JSON(none_as_null=True), nullable=True))
    op.create_table(
        "job_datasets",
        sa.Column("job", KEY, nullable=False),
        sa.Column("dataset", KEY, nullable=False),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.id"], name=op.f("fk_job_datasets_dataset_datasets")),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_job_datasets_job_jobs")),
        sa.PrimaryKeyConstraint("job", "dataset", name=op.f("pk_job_datasets")),
    )
    op.create_index(op.f("ix_job_datasets_dataset"), "job_datasets", ["dataset"], unique=False)
