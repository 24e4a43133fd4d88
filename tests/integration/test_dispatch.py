"""From an event to a job, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from beamhub.access import Principal
from beamhub.engine import CURSOR, FAR
from beamhub.errors import Conflict, Forbidden, Invalid, NotFound
from beamhub.events import emit
from beamhub.runners import Phase
from beamhub.runners.local import LocalRunner
from beamhub.schemas import (
    DatasetState,
    ExperimentState,
    Job,
    JobCancel,
    JobChange,
    JobState,
    TriggerChange,
    TriggerCondition,
    Upload,
    UploadState,
)
from beamhub.store import Transaction
from beamhub.triggers import JobRequest

from tests.integration.laboratory import ADA, BEN, EVE, SAM, Lab, condition, made, rule, template


async def test_a_job_that_follows_the_detector_waits_for_no_other(lab: Lab) -> None:
    template(lab.templates, "long", "while True: pass")
    template(lab.templates, "glance", "print(n)", live=True)
    async with lab.running():
        long = await lab.submit("long", "cpu-2")  # all CPUs
        await lab.until(long, JobState.RUNNING)
        waits = await lab.submit("long", "cpu-1")
        glance = await lab.submit("glance")
        assert (await lab.until(glance)).state is JobState.FINISHED
        assert (await lab.jobs.get(ADA, waits.id)).state is JobState.QUEUED
        for job in (waits, long):
            await lab.jobs.cancel(ADA, job.id, JobCancel())
            await lab.until(job)


async def test_two_rules_that_want_the_same_make_jobs_that_know_it(lab: Lab) -> None:
    template(lab.templates, "hello", "print('hello')")
    now = datetime.now(UTC)
    upload = Upload(
        id="1" * 32,
        experiment=lab.experiment,
        instrument="sim-mx",
        path="raw/lyso_master.h5",
        size=1,
        offset=1,
        digest=f"sha256:{'0' * 64}",
        version=1,
        state=UploadState.COMPLETE,
        created=now,
        ended=now,
        created_by="agent",
    )

    def work(tx: Transaction) -> Sequence[Job]:
        tx.uploads.create(upload)
        tx.datasets.change(lab.dataset, state=DatasetState.COMPLETE)
        experiment = tx.experiments.get(lab.experiment)
        assert experiment is not None
        wanted = [
            JobRequest(f"{rule}", rule, 1, "hello", {"n": n}, "cpu-1", "lab", datasets=(lab.dataset,))
            for rule, n in ((1, 1), (2, 1), (3, 2), (4, 1))
        ]
        return lab.jobs.follow(tx, *((one, experiment) for one in wanted))

    first, *others = await lab.store.write(work)
    assert [job.repeats for job in (first, *others)] == [None, first.id, None, first.id]
    assert [(await lab.jobs.get(ADA, job.id)).repeats for job in others] == [first.id, None, first.id]


class Waiting(LocalRunner):
    """Starts jobs that never begin."""

    async def release(self, ref: dict[str, Any]) -> None:
        pass


async def test_automatic_jobs_go_first_and_never_more_than_there_are_cpus(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it")
    jobs = [await lab.submit("try_it", profile) for profile in ("cpu-1", "cpu-2", "cpu-1")]
    runner = lab.runner(Waiting)
    engine = lab.engine(runner)
    lab.store.write_sync(lambda tx: tx.datasets.change(lab.dataset, frames_readable=100))
    lab.told("dataset.complete")
    await engine.dispatch()
    await engine.schedule()

    def running(tx: Transaction) -> list[int]:
        return [task.job.id for task in tx.jobs.tasks([JobState.RUNNING])]

    # the automatic one has overtaken two; the large one lets nobody smaller pass
    assert lab.store.read_sync(running) == [jobs[0].id, jobs[-1].id + 1]
    await engine.schedule()
    assert len(lab.store.read_sync(running)) == 2
    for task in lab.store.read_sync(lambda tx: tx.jobs.tasks([JobState.RUNNING])):
        assert task.runner_ref
        await runner.cancel(task.runner_ref)
        ref = task.runner_ref

        async def gone() -> bool:
            [status] = await runner.poll([ref])  # noqa: B023 (called before the next turn)
            return status.phase is Phase.GONE

        await condition(gone)


async def test_who_may_say_whose_turn_it_is(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it")
    lab.store.write_sync(lambda tx: tx.datasets.change(lab.dataset, frames_readable=100))
    mine = [await lab.submit("try_it") for _ in range(3)]
    lab.told("dataset.complete")
    await lab.engine().dispatch()
    [automatic] = [job for job in made(lab) if job.launched_by.startswith("trigger:")]
    assert (await lab.jobs.change(ADA, mine[0].id, JobChange(priority=-1))).priority == -1
    for principal, job, priority in (
        (ADA, mine[1], 1),
        (ADA, mine[0], 0),  # once lowered, it stays so
        (ADA, automatic, -1),  # not hers
        (BEN, mine[1], -1),  # a viewer
    ):
        with pytest.raises(Forbidden):
            await lab.jobs.change(principal, job.id, JobChange(priority=priority))
    with pytest.raises(NotFound):
        await lab.jobs.change(EVE, mine[1].id, JobChange(priority=-1))
    await lab.jobs.change(SAM, mine[2].id, JobChange(priority=5))

    def turns(*active: str) -> list[int]:
        return lab.store.read_sync(
            lambda tx: [job.id for job in tx.jobs.in_turn(JobState.QUEUED, active, runner="local")]
        )

    assert turns(lab.experiment) == [mine[2].id, automatic.id, mine[1].id, mine[0].id]
    # beamtime is over: nobody waits at the beamline
    assert turns() == [mine[2].id, mine[1].id, automatic.id, mine[0].id]
    gone = await lab.jobs.cancel(ADA, mine[0].id, JobCancel())
    with pytest.raises(Conflict):
        await lab.jobs.change(SAM, gone.id, JobChange(priority=1))
    told = lab.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    assert [(one.actor, one.data["priority"]) for one in told if one.kind == "job.priority"] == [
        ("ada", -1),
        ("sam", 5),
    ]


async def test_an_event_told_ten_times_at_once_starts_one_job(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it", parameters={"n": 7}, pattern="ly*", condition={"kind": "rotation"})
    await rule(lab, "try_it", pattern="other*")
    lab.store.write_sync(
        lambda tx: tx.datasets.change(lab.dataset, frames_readable=100, state=DatasetState.COMPLETE)
    )
    event = lab.told("dataset.complete")
    engines = [lab.engine() for _ in range(10)]
    await asyncio.gather(*(engine.handle(event) for engine in engines))
    await asyncio.gather(*(engine.dispatch() for engine in engines))
    again = lab.told("dataset.complete")
    await engines[0].handle(again)
    (job,) = made(lab)
    assert (job.launched_by, job.parameters, job.state) == (
        "trigger:1",
        {"n": 7, "label": ""},
        JobState.QUEUED,
    )
    assert lab.store.read_sync(lambda tx: tx.cursors.get("triggers")) == again.id


@pytest.mark.parametrize(
    ("event", "condition", "told", "many"),
    [
        ("dataset.started", {}, [0], 1),
        ("dataset.frames", {"every": 40}, [10, 40, 60, 79, 80, 100], 2),
        ("dataset.frames", {"at": [25, 50, 100]}, [10, 25, 40, 50, 75, 100], 3),
        ("dataset.complete", {}, [100], 1),
        ("dataset.incomplete", {}, [70], 1),
    ],
)
async def test_what_happens_to_a_dataset_starts_jobs(
    lab: Lab, event: str, condition: dict[str, Any], told: list[int], many: int
) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it", event=event, condition=condition)

    def tell(tx: Transaction, frames: int) -> None:
        tx.datasets.change(lab.dataset, frames_readable=frames)
        emit(
            tx,
            event,
            actor="sim-mx",
            instrument="sim-mx",
            experiment=lab.experiment,
            subject=str(lab.dataset),
            data={"frames_readable": frames},
        )

    for frames in (*told, told[-1]):  # the last one twice
        lab.store.write_sync(lambda tx, frames=frames: tell(tx, frames))  # type: ignore[misc]
    await lab.engine().dispatch()
    assert [(job.template, job.launched_by) for job in made(lab)] == [("try_it", "trigger:1")] * many


async def test_paused_automation_and_closed_experiments_start_nothing(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it")
    engine = lab.engine()
    lab.store.write_sync(lambda tx: tx.instruments.change("sim-mx", automation=False))
    lab.told("dataset.complete")
    await engine.dispatch()
    lab.store.write_sync(lambda tx: tx.instruments.change("sim-mx", automation=True))
    lab.store.write_sync(lambda tx: tx.experiments.change(lab.experiment, state=ExperimentState.CLOSED))
    lab.told("dataset.complete")
    await engine.dispatch()
    assert made(lab) == []


async def test_a_rule_that_cannot_be_followed_makes_a_failed_job(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it")
    (lab.templates / "try_it.ipynb").unlink()
    lab.store.write_sync(lambda tx: tx.datasets.change(lab.dataset, frames_readable=100))
    lab.told("dataset.complete")
    await lab.engine().dispatch()
    (job,) = made(lab)
    assert job.state is JobState.FAILED
    assert "no template 'try_it'" in job.reason
    assert lab.kinds(job) == ["job.created", "job.failed"]
    # nothing of it was ever laid down, and that is what one is told
    for look in (lab.jobs.open_notebook, lab.jobs.result):
        with pytest.raises(NotFound, match=f"ob {job.id} "):
            await look(ADA, job.id)


async def test_a_log_that_no_rule_waits_for_is_read_once(lab: Lab) -> None:
    for _ in range(FAR):
        lab.told("dataset.complete")
    await lab.engine().dispatch()
    read = lab.store.read_sync(lambda tx: tx.cursors.get(CURSOR))
    assert lab.store.read_sync(lambda tx: tx.events.head()) - read < FAR


async def test_staff_manage_rules(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await rule(lab, "try_it")
    (first,) = (await lab.rules.list(ADA, "sim-mx")).items
    with pytest.raises(NotFound):
        await lab.rules.list(Principal("nobody", "user"), "sim-mx")
    for who, error in ((ADA, Forbidden), (Principal("nobody", "user"), NotFound)):
        with pytest.raises(error):
            await lab.rules.change(who, first.id, TriggerChange(enabled=False))
        with pytest.raises(error):
            await lab.rules.delete(who, first.id)
    for wrong in ({"template": "none"}, {"parameters": {"m": 1}}, {"profile": "cpu-9"}, {"sponsor": "none"}):
        with pytest.raises((Invalid, NotFound)):
            await lab.rules.change(SAM, first.id, TriggerChange.model_validate(wrong))
    condition = TriggerCondition(min_frames=10)
    changed = await lab.rules.change(SAM, first.id, TriggerChange(condition=condition, parameters={"n": 2}))
    assert (changed.version, changed.parameters) == (2, {"n": 2})
    assert changed.condition == condition
    await lab.rules.delete(SAM, first.id)
    assert (await lab.rules.list(SAM, "sim-mx")).items == []
    with pytest.raises(NotFound):
        await lab.rules.delete(SAM, first.id)

    def kinds(tx: Transaction) -> list[str]:
        return [one.kind for one in tx.events.after(0, limit=100) if one.kind.startswith("trigger.")]

    assert lab.store.read_sync(kinds) == ["trigger.created", "trigger.changed", "trigger.deleted"]
