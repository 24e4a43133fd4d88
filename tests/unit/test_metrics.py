"""Metrics: what Prometheus reads is what is so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from beamhub import metrics
from beamhub.credits import grant
from beamhub.events import emit
from beamhub.schemas import InstrumentCreate, JobState, LicenceCreate, RunnerState
from beamhub.store import Store, Transaction
from beamhub.store.numbers import Account, Numbers
from prometheus_client.parser import text_string_to_metric_families

from tests.records import job

LONG_AGO = datetime(2026, 3, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
RUNNERS = [
    RunnerState(name="local", cpus=8, free=3),
    RunnerState(name="slurm", reason="Slurm does not answer."),
]
NAME = 'lab-"μ"\\x'  # as none is, but text is text


def read(text: bytes) -> dict[tuple[str, str], float]:
    """Name and label of each sample, and its value."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_prometheus_reads_them() -> None:
    numbers = Numbers(
        jobs={state: n for n, state in enumerate(JobState)},
        oldest_queued=NOW - timedelta(minutes=2),
        accounts=[Account(NAME, 100, 30, 20)],
        events=17,
        uploads={},
        uploaded=2**40 + 1,
    )
    found = read(metrics.render(numbers, RUNNERS, on_duty=True, now=NOW))
    assert found["beamhub_jobs", "running"] == list(JobState).index(JobState.RUNNING)
    assert found["beamhub_queue_oldest_seconds", ""] == 120
    assert [
        found[f"beamhub_licence_{what}_cpu_seconds", NAME] for what in ("granted", "charged", "held")
    ] == [
        100,
        30,
        20,
    ]
    assert (found["beamhub_runner_cpus", "local"], found["beamhub_runner_free_cpus", "local"]) == (8, 3)
    assert (found["beamhub_runner_up", "local"], found["beamhub_runner_up", "slurm"]) == (1, 0)
    assert ("beamhub_runner_cpus", "slurm") not in found
    assert found["beamhub_events_total", ""] == 17
    assert found["beamhub_uploaded_bytes_total", ""] == 2**40 + 1
    assert found["beamhub_on_duty", ""] == 1


def test_they_are_counted_in_the_store(store: Store) -> None:
    def work(tx: Transaction) -> None:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX"))
        tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
        grant(tx, "lab", 100, actor="root")
        emit(tx, "test.told", actor="ada")
        experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
        for queued in (None, LONG_AGO, LONG_AGO + timedelta(hours=1)):  # the first waits for credit
            made = job(tx, experiment, "lab")
            if queued is not None:
                tx.attempts.begin(made.id, "local")
                tx.attempts.note(made.id, queued=queued)
                tx.jobs.queue_all({made.id: 1})

    store.write_sync(work)
    numbers = store.read_sync(lambda tx: tx.counts.numbers())
    assert numbers.accounts == [Account("lab", 100, 0, 0)]
    assert (numbers.events, numbers.uploaded, numbers.oldest_queued) == (1, 0, LONG_AGO)
    assert {state: n for state, n in numbers.jobs.items() if n} == {JobState.PENDING: 1, JobState.QUEUED: 2}


def test_nothing_is_queued(store: Store) -> None:
    assert store.read_sync(lambda tx: tx.counts.numbers()).oldest_queued is None
