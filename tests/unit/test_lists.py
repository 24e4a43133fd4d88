"""Lists and whatever is looked up again and again: by an index, and in its order, however much there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from beamhub.schemas import (
    DatasetKind,
    DatasetState,
    InstrumentCreate,
    JobInput,
    JobState,
    LicenceCreate,
    Profile,
    Upload,
    UploadState,
    UsageKey,
)
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Draft
from beamhub.store.pages import APART, _encode
from beamhub.store.uploads import PARTIAL
from beamhub.store.usage import Report
from sqlalchemy import event, text

NUMBER = _encode([5])
MOMENT = _encode([datetime.now(UTC), "x"])
ONE, TWO = frozenset({"a"}), frozenset({"a", "b"})
MANY = frozenset(map(str, range(APART + 1)))

# what is asked -> the index that finds it; "pk": the primary key
ASKED: dict[str, tuple[Callable[[Transaction], Any], str]] = {
    "jobs": (lambda tx: tx.jobs.list(only=None, after=NUMBER, limit=9), "pk"),
    "jobs of an experiment": (
        lambda tx: tx.jobs.list(only=TWO, experiment="a", after=NUMBER, limit=9),
        "ix_jobs_experiment_id",
    ),
    "jobs of two experiments": (
        lambda tx: tx.jobs.list(only=TWO, after=NUMBER, limit=9),
        "ix_jobs_experiment_id",
    ),
    "jobs of many experiments": (
        lambda tx: tx.jobs.list(only=MANY, after=NUMBER, limit=9),
        "ix_jobs_experiment_id",
    ),
    "jobs of this name": (
        lambda tx: tx.jobs.list(only=ONE, name="lyso", after=NUMBER, limit=9),
        "ix_jobs_experiment_id",
    ),
    "failed jobs": (
        lambda tx: tx.jobs.list(only=None, state=JobState.FAILED, after=NUMBER, limit=9),
        "ix_jobs_state_id",
    ),
    "failed jobs of an experiment": (
        lambda tx: tx.jobs.list(only=ONE, state=JobState.FAILED, after=NUMBER, limit=9),
        "ix_jobs_experiment_state_id",
    ),
    "failed jobs of two experiments": (
        lambda tx: tx.jobs.list(only=TWO, state=JobState.FAILED, after=NUMBER, limit=9),
        "ix_jobs_experiment_state_id",
    ),
    "jobs on a dataset": (
        lambda tx: tx.jobs.list(only=TWO, dataset=3, state=JobState.FAILED, after=NUMBER, limit=9),
        "ix_jobs_dataset_id",
    ),
    "jobs on a dataset that have not ended": (lambda tx: tx.jobs.unfinished(3), "ix_jobs_dataset_id"),
    "an identical job": (lambda tx: tx.jobs.identical("a", "0"), "ix_jobs_fingerprint"),
    "runs of a template": (lambda tx: tx.jobs.runs("a", limit=9), "ix_jobs_template_id"),
    "jobs that wait": (lambda tx: tx.jobs.pending(), "ix_jobs_state_id"),
    "jobs in their turn": (
        lambda tx: tx.jobs.in_turn(JobState.QUEUED, ["a"], runner="local", live=True, limit=9),
        "ix_jobs_state_id",
    ),
    "attempts that are over": (
        lambda tx: tx.attempts.ended_since(datetime.now(UTC), "slurm", 9),
        "ix_attempts_ended",
    ),
    "uploads of an experiment": (
        lambda tx: tx.uploads.list(experiment="a", after=MOMENT, limit=9),
        "ix_uploads_experiment_created",
    ),
    "complete uploads of an experiment": (
        lambda tx: tx.uploads.list(experiment="a", state=UploadState.COMPLETE, after=MOMENT, limit=9),
        "ix_uploads_experiment_created",
    ),
    "failed uploads of an experiment": (
        lambda tx: tx.uploads.list(experiment="a", state=UploadState.FAILED, after=MOMENT, limit=9),
        "ix_uploads_state_created",
    ),
    "uploads of an instrument": (
        lambda tx: tx.uploads.list(instrument="a", after=MOMENT, limit=9),
        "ix_uploads_instrument_created",
    ),
    "files in quarantine": (
        lambda tx: tx.uploads.list(instrument="a", state=UploadState.QUARANTINED, after=MOMENT, limit=9),
        "ix_uploads_state_created",
    ),
    "files on their way": (lambda tx: tx.uploads.receiving(), "ix_uploads_state_created"),
    "files on their way to an experiment": (
        lambda tx: tx.uploads.on_their_way("a"),
        "ix_uploads_state_created",
    ),
    "number of files that a sender has on their way": (
        lambda tx: tx.uploads.count_on_their_way("a"),
        "ix_uploads_state_created",
    ),
    "files published at a path": (
        lambda tx: tx.uploads.published("a", ["raw/x"]),
        "ix_uploads_experiment_path",
    ),
    "versions of a file": (
        lambda tx: tx.uploads.versions("a", ["raw/x"]),
        "ix_uploads_experiment_first_path",
    ),
    "all files of an experiment": (lambda tx: tx.uploads.of("a"), "ix_uploads_experiment_"),
    "datasets of this name": (
        lambda tx: tx.datasets.list("a", name="lyso", after=NUMBER, limit=9),
        "ix_datasets_experiment_id",
    ),
    "datasets": (lambda tx: tx.datasets.list("a", after=NUMBER, limit=9), "ix_datasets_experiment_id"),
    "growing datasets of an experiment": (
        lambda tx: tx.datasets.list("a", state=DatasetState.RECEIVING, after=NUMBER, limit=9),
        "ix_datasets_",
    ),
    "growing datasets": (lambda tx: tx.datasets.receiving(), "ix_datasets_state_id"),
    "events": (lambda tx: tx.events.page(after=5, limit=9), "pk"),
    "events of an experiment": (
        lambda tx: tx.events.page(after=5, limit=9, experiments=ONE),
        "ix_events_experiment_id",
    ),
    "events of two experiments": (
        lambda tx: tx.events.page(after=5, limit=9, experiments=TWO),
        "ix_events_experiment_id",
    ),
    "events of an instrument": (
        lambda tx: tx.events.page(after=5, limit=9, experiments=frozenset(), instruments=ONE),
        "ix_events_nowhere",
    ),
    "a subject's last event": (
        lambda tx: tx.events.latest("a", "1", ["x"]),
        "ix_events_subject_experiment",
    ),
    "a subject's events": (lambda tx: tx.events.history("a", "1", ["x"]), "ix_events_subject_experiment"),
    "subjects": (lambda tx: tx.events.subjects("a", "b", "x"), "ix_events_instrument_kind_id"),
    "what happened last": (
        lambda tx: list(tx.events.latest_of("a", "x", experiment="b", limit=9)),
        "ix_events_instrument_kind_id",
    ),
    "what was used": (
        lambda tx: tx.usage.page(
            Report([UsageKey.LICENCE, UsageKey.MONTH], TWO, datetime.now(UTC), datetime.now(UTC)),
            after=_encode(["a", "2026-01"]),
            limit=9,
        ),
        "ix_ledger_kind_time",
    ),
    "a licence's ledger": (
        lambda tx: tx.licences.ledger("a", after=NUMBER, limit=9),
        "ix_ledger_licence_id",
    ),
}
FEW_ROWS = {  # that are sorted after they have been found
    *("jobs of two experiments", "failed jobs of two experiments", "jobs of many experiments"),
    *("jobs on a dataset", "jobs on a dataset that have not ended", "an identical job"),
    *("jobs that wait", "jobs in their turn", "files published at a path", "versions of a file"),
    *("events of two experiments", "all files of an experiment", "what was used"),
}
PLAIN = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"


def plan(store: Store, ask: Callable[[Transaction], Any]) -> str:
    """How the database goes about it, of the last statement; PostgreSQL if its tables were large."""
    asked: list[tuple[str, Any]] = []

    def keep(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    engine = store._read_engine
    event.listen(engine, "before_cursor_execute", keep)
    store.read_sync(ask)
    event.remove(engine, "before_cursor_execute", keep)
    statement, parameters = asked[-1]
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(PLAIN))
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            return "\n".join(row[0] for row in rows)
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "\n".join(row[3] for row in rows)


def test_jobs_that_a_runner_has_are_found_however_many_they_are(store: Store) -> None:
    """SQLite and PostgreSQL take so many parameters and no more, and each costs more than what it finds."""
    handed: list[int] = []
    parameters: list[Any] = []
    event.listen(store._read_engine, "before_cursor_execute", lambda *told: parameters.append(told[3]))

    def work(tx: Transaction) -> None:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
        experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
        profile = Profile(name="one", title="1 CPU", cpus=1, memory=1, walltime=1)
        tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
        draft = Draft(
            experiment=experiment,
            template="t",
            template_version="v",
            title="T",
            parameters={},
            inputs=[],
            profile=profile,
            sponsor="lab",
            launched_by="ada",
        )
        for job in tx.jobs.create_all([draft] * 100):
            tx.jobs.change(job.id, JobState.PENDING, state=JobState.RUNNING)
            handed.append(job.id)

    store.write_sync(work)
    found = store.read_sync(lambda tx: tx.jobs.handed_over({}))
    assert list(found) == handed
    again = store.read_sync(lambda tx: tx.jobs.handed_over(found))
    assert all(again[id_] is found[id_] for id_ in handed)
    assert max(map(len, parameters)) < 10


def test_uploads_are_forgotten_however_many_they_are(store: Store) -> None:
    def begin(tx: Transaction) -> None:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
        experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
        part = Upload(
            id="",
            experiment=experiment,
            instrument="sim-mx",
            path="raw/part",
            size=1,
            offset=0,
            digest=None,
            version=1,
            state=UploadState.RECEIVING,
            concat=PARTIAL,
            created=datetime.now(UTC),
            ended=None,
            created_by="ada",
        )
        tx.uploads.create(*(part.model_copy(update={"id": f"{number}"}) for number in range(9)))

    store.write_sync(begin)
    # more than there are parameters on either
    given_up = [f"{number}" for number in range(2, 300_000)]
    assert store.write_sync(lambda tx: tx.uploads.forget(given_up)) == 7
    assert store.write_sync(lambda tx: tx.uploads.forget(["0"])) == 1
    assert [upload.id for upload in store.read_sync(lambda tx: tx.uploads.receiving())] == ["1"]
    assert store.write_sync(lambda tx: tx.uploads.forget([])) == 0


NAMES = ("lyso_1", "LYSOzyme", "100%_done", "back\\slash", "<b>", "Ödland", "Straße", "ΛΥΣΟΖΎΜΗ ΘΉΒΑΣ")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lyso", {"LYSOzyme", "lyso_1"}),
        ("SO_", {"lyso_1"}),  # no pattern: % and _ are letters as others are
        ("%", {"100%_done"}),
        ("_", {"lyso_1", "100%_done"}),
        ("\\", {"back\\slash"}),
        ("dland", {"Ödland"}),
        *(("ö", {"Ödland"}), ("STRASSE", {"Straße"}), ("aß", {"Straße"}), ("ss", {"Straße"})),
        *(("λυσοζύμη", {"ΛΥΣΟΖΎΜΗ ΘΉΒΑΣ"}), ("θήβας", {"ΛΥΣΟΖΎΜΗ ΘΉΒΑΣ"})),
        ("' OR 1=1 --", set()),
    ],
)
def test_a_list_is_searched_for_a_part_of_a_name(store: Store, name: str, found: set[str]) -> None:
    def work(tx: Transaction) -> str:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
        tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
        experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
        made = [
            tx.datasets.create(
                experiment=experiment,
                name=one,
                path=f"raw/x/{one}.h5".replace("_", "-").replace("%", "-"),
                format="nxmx",
                kind=DatasetKind.ROTATION,
                open_ended=False,
                frames_announced=1,
                shape=(1, 1),
                metadata={},
                files=[],
            )
            for one in NAMES
        ]
        profile = Profile(name="one", title="1 CPU", cpus=1, memory=1, walltime=1)
        common: dict[str, Any] = {
            "experiment": experiment,
            "template_version": "v",
            "parameters": {},
            "profile": profile,
        }
        common |= {"sponsor": "lab", "launched_by": "ada", "template": "t"}
        on = [JobInput(kind="dataset", id=one.id, name=one.name) for one in made]
        drafts = [Draft(title="DIALS", inputs=[one], **common) for one in on]
        tx.jobs.create_all([*drafts, Draft(title="Merge", inputs=on[:2], **common)])
        return experiment

    here = store.write_sync(work)
    page = store.read_sync(lambda tx: tx.datasets.list(here, name=name, after=None, limit=9))
    assert {one.name for one in page.items} == found
    jobs = store.read_sync(lambda tx: tx.jobs.list(only=frozenset({here}), name=name, after=None, limit=9))
    first = {job.inputs[0].name for job in jobs.items if job.title == "DIALS"}
    assert first == found
    assert any(job.title == "Merge" for job in jobs.items) == bool(found & set(NAMES[:2]))
    titled = store.read_sync(lambda tx: tx.jobs.list(only=None, name="merge", after=None, limit=9))
    assert [job.title for job in titled.items] == ["Merge"]
    below = store.read_sync(lambda tx: tx.datasets.list(here, name="RAW/X", after=None, limit=9))
    assert len(below.items) == len(NAMES)


@pytest.mark.parametrize("what", ASKED)
def test_every_list_is_found_by_an_index_in_its_order(store: Store, what: str) -> None:
    ask, index = ASKED[what]
    found = plan(store, ask)
    if store._read_engine.dialect.name == "postgresql":
        assert "Seq Scan" not in found, found
        assert what in FEW_ROWS or not re.search(r"(?<!Incremental )Sort +\(cost", found), found
    else:
        assert index.replace("pk", "USING INTEGER PRIMARY KEY") in found, found
        assert not re.search("SCAN (jobs|events|uploads|datasets|ledger)", found), found
        assert what in FEW_ROWS or "USE TEMP B-TREE FOR ORDER BY" not in found, found
