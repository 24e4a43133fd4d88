"""Every version of a trigger rule, what experiments change of them, and their priority."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
SAID = ("title", "event", "pattern", "condition", "template", "parameters", "profile", "sponsor", "enabled")


def upgrade() -> None:
    with op.batch_alter_table("triggers") as table:
        table.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("experiment", sa.String(length=60), nullable=True))
        table.create_foreign_key(
            op.f("fk_triggers_experiment_experiments"), "experiments", ["experiment"], ["id"]
        )
    with op.batch_alter_table("triggers") as table:
        table.alter_column("priority", server_default=None)
    op.add_column("jobs", sa.Column("rule_version", sa.Integer(), nullable=True))
    op.create_table(
        "trigger_overrides",
        sa.Column("trigger", KEY, nullable=False),
        sa.Column("experiment", sa.String(length=60), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trigger"], ["triggers.id"], name=op.f("fk_trigger_overrides_trigger_triggers")
        ),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_trigger_overrides_experiment_experiments")
        ),
        sa.PrimaryKeyConstraint("trigger", "experiment", name=op.f("pk_trigger_overrides")),
    )
    versions = op.create_table(
        "trigger_versions",
        sa.Column("id", KEY, autoincrement=True, nullable=False),
        sa.Column("trigger", KEY, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("author", sa.String(length=255), nullable=False),
        sa.Column("experiment", sa.String(length=60), nullable=True),
        sa.Column("change", sa.String(length=10), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trigger"], ["triggers.id"], name=op.f("fk_trigger_versions_trigger_triggers")
        ),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.id"], name=op.f("fk_trigger_versions_experiment_experiments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trigger_versions")),
        sa.UniqueConstraint("trigger", "version", name=op.f("uq_trigger_versions_trigger_version")),
    )
    _keep_what_is_there(versions)


def _keep_what_is_there(versions: sa.Table) -> None:
    """Of rules from before, only the newest version is known, and not who has written it."""
    connection = op.get_bind()
    rules = sa.table(
        "triggers",
        sa.column("id"),
        sa.column("version"),
        sa.column("deleted", sa.Boolean()),
        *(sa.column(name, sa.JSON() if name in ("condition", "parameters") else None) for name in SAID),
    )
    for row in connection.execute(sa.select(rules)).mappings().all():
        data = {name: row[name] for name in SAID} | {"enabled": bool(row["enabled"]), "priority": 0}
        connection.execute(
            versions.insert().values(
                trigger=row["id"],
                version=row["version"],
                time=datetime.now(UTC),
                author="beamhub",
                change="deleted" if row["deleted"] else "created",
                data=data,
            )
        )
    jobs = sa.table("jobs", sa.column("id"), sa.column("trigger_key"), sa.column("rule_version"))
    followed = sa.select(jobs.c.id, jobs.c.trigger_key).where(jobs.c.trigger_key.is_not(None))
    for id_, key in connection.execute(followed).all():
        version = key.partition("/")[0].partition(".")[2]
        if version.isdigit():
            connection.execute(jobs.update().where(jobs.c.id == id_).values(rule_version=int(version)))
