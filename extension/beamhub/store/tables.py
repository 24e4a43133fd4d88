"""The tables of the store: what the migrations must arrive at (a test compares the two)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect


class UTCDateTime(TypeDecorator[datetime]):
    """A moment. SQLite forgets time zones: everything is stored in UTC and comes back with UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a time zone: {value}")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        moment: datetime = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment


# SQLite only auto-increments INTEGER primary keys
Key = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

instruments = Table(
    "instruments",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("title", String(200), nullable=False),
    Column("technique", String(200), nullable=False),
    Column("staff", JSON, nullable=False),  # names of users
    Column("active_experiment", String(60)),
    Column("automation", Boolean, nullable=False),
    Column(
        "token_digest", String(64), unique=True
    ),  # sha256 of the agent's token; the token itself is never stored
    Column("heartbeat", JSON),
    Column("heartbeat_at", UTCDateTime),
    Column("uploads_paused", JSON(none_as_null=True)),  # {reason, by, since}; None: they are not
    Column("created", UTCDateTime, nullable=False),
)

# what staff have told the agent to do
commands = Table(
    "commands",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("instrument", ForeignKey("instruments.id"), nullable=False, index=True),
    Column("kind", String(10), nullable=False),
    Column("paths", JSON, nullable=False),
    Column("pattern", String(200)),
    Column("reason", Text, nullable=False),
    Column("experiment", ForeignKey("experiments.id")),
    Column("created", UTCDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("obeyed", UTCDateTime),  # None: not yet, as far as is known
)

# what the agent has not sent, as it told last
agent_files = Table(
    "agent_files",
    metadata,
    Column("instrument", ForeignKey("instruments.id"), primary_key=True),
    Column("part", Integer, primary_key=True),  # of the agent's list, from 1
    Column("number", Integer, primary_key=True),  # in its part, from 1
    Column("name", String(1000), nullable=False),
    Column("state", String(10), nullable=False),
    Column("reason", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
)

# answers to commands that ask for the agent's journal, until they have been read
journal_reports = Table(
    "journal_reports",
    metadata,
    Column("command", ForeignKey("commands.id"), primary_key=True),
    Column("part", Integer, primary_key=True),  # from 1
    Column("last", Boolean, nullable=False),
    Column("lines", JSON, nullable=False),
)

experiments = Table(
    "experiments",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("instrument", ForeignKey("instruments.id"), nullable=False, index=True),
    Column("title", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("pi", String(255), nullable=False),
    Column("created", UTCDateTime, nullable=False),
    Column("started", UTCDateTime),
    Column("ended", UTCDateTime),
    Column("quota", BigInteger),  # bytes; None: as many as the disk holds
)

finalisations = Table(
    "finalisations",
    metadata,
    Column("experiment", ForeignKey("experiments.id"), primary_key=True),
    Column("state", String(20), nullable=False),
    Column("command", ForeignKey("commands.id")),  # that asks the agent; None: there is none to ask
    Column("differences", JSON, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", UTCDateTime, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("ended", UTCDateTime),
)

# what a finalisation has computed so far
checksums = Table(
    "checksums",
    metadata,
    Column("experiment", ForeignKey("experiments.id"), primary_key=True),
    Column("path", String(1000), primary_key=True),
    Column("sha256", String(64), nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("experiment", ForeignKey("experiments.id"), primary_key=True),
    Column("user", String(255), primary_key=True, index=True),
    Column("role", String(20), nullable=False),
    Column("added", UTCDateTime, nullable=False),
    Column("added_by", String(255), nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("experiment", ForeignKey("experiments.id"), nullable=False),
    Column("instrument", String(40)),
    Column("path", String(1000), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("digest", String(80)),  # algorithm:hexadecimal; None: not announced, and not all has come
    Column("digest_by", String(10), nullable=False),  # sender or service
    Column("version", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("error", Text, nullable=False),
    Column("created", UTCDateTime, nullable=False),
    Column("ended", UTCDateTime),
    Column("created_by", String(255), nullable=False),
    Column("frames", Integer),  # in a published detector file; None: it is none, or not yet published
    Column("source", Text),  # path of a file that was registered in place
    Column("concat", Text),  # tus: "partial", or "final;" and the uploads it was put together from
    Column("metadata", Text),  # tus: as its sender has announced it
    Column("deferred", Boolean, nullable=False),  # its length is still to come
    Column("digest_follows", String(10)),  # the algorithm of a digest that comes with the last bytes
    Column("first_path", String(1000), nullable=False),  # of the first version: what all versions share
    Index("ix_uploads_experiment_path", "experiment", "path"),
    Index("ix_uploads_experiment_first_path", "experiment", "first_path"),
    Index("ix_uploads_experiment_created", "experiment", "created"),
    Index("ix_uploads_instrument_created", "instrument", "created"),
    Index("ix_uploads_state_created", "state", "created", "size"),  # the size for sums of it
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("experiment", ForeignKey("experiments.id"), nullable=False),
    Column("name", String(1000), nullable=False),
    Column("path", String(1000), nullable=False),
    Column("format", String(20), nullable=False),  # as named in beamhub.frames.formats
    Column("kind", String(20), nullable=False),
    Column("state", String(20), nullable=False),
    Column("open_ended", Boolean, nullable=False),  # nobody knows how many frames will come
    Column("frames_announced", Integer, nullable=False),
    Column("frames_readable", Integer, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("columns", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),  # {name: {value, unit}}
    Column("created", UTCDateTime, nullable=False),
    Column("ended", UTCDateTime),
    UniqueConstraint("experiment", "path"),
    Index("ix_datasets_experiment_id", "experiment", "id"),
    Index("ix_datasets_state_id", "state", "id"),
)

# datasets on their way to another experiment of their instrument; a row goes when its move is over
moves = Table(
    "moves",
    metadata,
    Column("dataset", ForeignKey("datasets.id"), primary_key=True),
    Column("source", ForeignKey("experiments.id"), nullable=False),
    Column("target", ForeignKey("experiments.id"), nullable=False),
    Column("version", Integer, nullable=False),  # in the target
    Column("files", JSON, nullable=False),  # [[path in the source, path in the target], …]
    Column("reason", Text, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("created", UTCDateTime, nullable=False),
    Column("committed", Boolean, nullable=False),  # only the source's names are left to remove
)

# the data files that a master points to, arrived or not; the files of a series that have arrived
dataset_files = Table(
    "dataset_files",
    metadata,
    Column("dataset", ForeignKey("datasets.id"), primary_key=True),
    Column(
        "number", Integer, primary_key=True
    ),  # from 1, in the order of the master's links; or a series' own
    Column("path", String(1000), nullable=False),
    Column("frames", Integer),  # None: not arrived
    Column("growing", Integer),  # that have come of one that is still written
    Index("ix_dataset_files_path", "path"),
)

triggers = Table(
    "triggers",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("instrument", ForeignKey("instruments.id"), nullable=False, index=True),
    Column("version", Integer, nullable=False),
    Column("title", String(200), nullable=False),
    Column("event", String(40), nullable=False),
    Column("pattern", String(200), nullable=False),
    Column("condition", JSON, nullable=False),
    Column("group", JSON(none_as_null=True)),  # how what happens is gathered; None: each starts a job
    Column("template", String(63), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("profile", String(40), nullable=False),
    Column("sponsor", String(40), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("deleted", Boolean, nullable=False),  # jobs refer to rules: a rule is never removed
    Column("experiment", ForeignKey("experiments.id")),  # the only one that it is for; None: all
)

# what an experiment has changed of its instrument's rules, for itself
trigger_overrides = Table(
    "trigger_overrides",
    metadata,
    Column("trigger", ForeignKey("triggers.id"), primary_key=True),
    Column("experiment", ForeignKey("experiments.id"), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("changes", JSON, nullable=False),
)

# every change of a rule; those that an experiment makes for itself are counted together with the others
trigger_versions = Table(
    "trigger_versions",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("trigger", ForeignKey("triggers.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("time", UTCDateTime, nullable=False),
    Column("author", String(255), nullable=False),
    Column("experiment", ForeignKey("experiments.id")),  # None: of the rule itself
    Column("change", String(10), nullable=False),
    Column("data", JSON, nullable=False),
    UniqueConstraint("trigger", "version"),
)

# jobs in the making: what a rule gathers until nothing more has come for a while
gatherings = Table(
    "gatherings",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("trigger", ForeignKey("triggers.id"), nullable=False, index=True),
    Column("experiment", ForeignKey("experiments.id"), nullable=False),
    Column("value", Text, nullable=False),  # what all of it has in common
    Column("started", UTCDateTime, nullable=False),
    Column("boot", String(40), nullable=False),  # of the machine, whose uptime `newest` is
    Column("newest", Float, nullable=False),  # seconds, when something came last
    Column("ended", UTCDateTime, index=True),  # None: more may come
    Column("job", ForeignKey("jobs.id")),
    Column("reason", Text, nullable=False),  # why there is no job
)

# all that was ever gathered, each once
gathered = Table(
    "gathered",
    metadata,
    Column("key", String(200), primary_key=True),  # as a job's trigger_key
    Column("gathering", ForeignKey("gatherings.id"), nullable=False, index=True),
    Column("event", BigInteger, nullable=False),
)

# events on which a rule would have started a job, had automation not been paused
missed = Table(
    "missed",
    metadata,
    Column("event", ForeignKey("events.id"), primary_key=True),
    Column("instrument", ForeignKey("instruments.id"), nullable=False, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("experiment", ForeignKey("experiments.id"), nullable=False),
    Column("template", String(63), nullable=False),
    Column("template_version", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("notebook", String(1000)),  # path of a member's own notebook that it was made from
    Column("inputs", JSON, nullable=False),
    Column("dataset", ForeignKey("datasets.id")),  # the first of its inputs that is one
    Column("profile", JSON, nullable=False),  # as it was when the job was made
    Column("live", Boolean, nullable=False),  # follows a dataset that is still growing
    Column("sponsor", ForeignKey("licences.id"), nullable=False),
    Column("launched_by", String(255), nullable=False),
    Column("rule_version", Integer),  # of the trigger rule that has started it
    Column("priority", Integer, nullable=False),  # higher goes first
    Column("parent", ForeignKey("jobs.id"), index=True),
    Column("fingerprint", String(64), index=True),  # what its result depends on; None: that cannot be told
    Column("repeats", Key),  # an earlier job with the same fingerprint
    Column(
        "trigger_key", String(200), unique=True
    ),  # rule id, version, dataset, event: starts at most one job
    Column("created", UTCDateTime, nullable=False),
    Column("started", UTCDateTime),
    Column("ended", UTCDateTime),
    Column("cpu_seconds", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),  # CPU-seconds on hold now
    Column("progress", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("artifacts", JSON, nullable=False),
    Column("failure", JSON(none_as_null=True)),  # where it failed, and its last words
    Column("runner_ref", JSON(none_as_null=True)),  # how its runner finds it again after a restart
    Column("cancel_requested", String(800)),  # who and why, while a runner still has it
    Index("ix_jobs_experiment_id", "experiment", "id"),
    Index("ix_jobs_experiment_state_id", "experiment", "state", "id"),
    Index("ix_jobs_state_id", "state", "id"),
    Index("ix_jobs_dataset_id", "dataset", "id"),
    Index("ix_jobs_template_id", "template", "id"),
)

# a job begins one each time that credit is put on hold for it
attempts = Table(
    "attempts",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1
    Column("runner", String(40), nullable=False),
    Column("ref", String(200), nullable=False),  # the runner's own name for it
    Column("host", String(255), nullable=False),
    Column("queued", UTCDateTime, nullable=False),
    Column("started", UTCDateTime),
    Column("ended", UTCDateTime, index=True),
    Column("outcome", String(20)),
    Column("reason", Text, nullable=False),
    Column("cpu_seconds", BigInteger, nullable=False),  # charged for it
    Column("exit_code", Integer),
    Column("cell", Integer),  # that failed
)

# the other datasets of jobs that work on several
job_datasets = Table(
    "job_datasets",
    metadata,
    Column("job", ForeignKey("jobs.id"), primary_key=True),
    Column("dataset", ForeignKey("datasets.id"), primary_key=True, index=True),
)

licences = Table(
    "licences",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("title", String(200), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("owner", String(255), index=True),
    Column("instruments", JSON, nullable=False),
    Column("granted", BigInteger, nullable=False),
    Column("charged", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("valid_from", UTCDateTime, nullable=False),
    Column("valid_until", UTCDateTime),
    Column("terms", JSON, nullable=False),  # a lab's: SponsorshipRules, of which one has to fit
    Column("low", Boolean, nullable=False),  # little is left, and that has been told
    CheckConstraint("granted >= 0 AND charged >= 0 AND held >= 0", name="amounts"),
)

# the parts of an allowance, each with a validity of its own
grants = Table(
    "grants",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("licence", ForeignKey("licences.id"), nullable=False, index=True),
    Column("cpu_seconds", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False),  # charged, as long as it counted
    Column("expired", BigInteger, nullable=False),  # booked away after its end
    Column("counts", Boolean, nullable=False),  # it has begun: its line is in the ledger
    Column("valid_from", UTCDateTime, nullable=False),
    Column("valid_until", UTCDateTime),
    Column("created", UTCDateTime, nullable=False),
    Column("actor", String(255), nullable=False),
    Column("note", Text, nullable=False),
)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("licence", ForeignKey("licences.id"), nullable=False),
    Column("time", UTCDateTime, nullable=False),
    Column("kind", String(10), nullable=False),
    Column("cpu_seconds", BigInteger, nullable=False),
    Column("job", ForeignKey("jobs.id"), index=True),
    Column("attempt", Integer),  # of the job
    Column("actor", String(255), nullable=False),
    Column("note", Text, nullable=False),
    Index("ix_ledger_licence_id", "licence", "id"),
    Index("ix_ledger_kind_time", "kind", "time"),
)

events = Table(
    "events",
    metadata,
    Column("id", Key, primary_key=True, autoincrement=True),
    Column("time", UTCDateTime, nullable=False),
    Column("kind", String(60), nullable=False),
    Column("instrument", String(40)),
    Column("experiment", String(60)),
    Column("subject", String(255), nullable=False),
    Column("actor", String(255), nullable=False),
    Column("data", JSON, nullable=False),
    Index("ix_events_experiment_id", "experiment", "id"),
    Index("ix_events_instrument_kind_id", "instrument", "kind", "id"),
    Index("ix_events_subject_experiment", "subject", "experiment"),
)
NOWHERE = events.c.experiment.is_(None)  # of events that belong to no experiment
Index(
    "ix_events_nowhere",
    events.c.instrument,
    events.c.id,
    sqlite_where=NOWHERE,
    postgresql_where=NOWHERE,
)

# how far each consumer of the log has come
cursors = Table(
    "cursors",
    metadata,
    Column("name", String(60), primary_key=True),
    Column("event", BigInteger, nullable=False),
)

# answers of POSTs that carried an Idempotency-Key
idempotency = Table(
    "idempotency",
    metadata,
    Column("actor", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_digest", String(64), nullable=False),
    Column("status", Integer),  # None: the first request is still being answered
    Column("body", Text),
    Column("created", UTCDateTime, nullable=False, index=True),
)
