"""What jobs cost, who pays, and what waits for it."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from beamhub.collector import TIDY
from beamhub.jobstate import admit, change
from beamhub.schemas import (
    ExperimentState,
    Grant,
    Job,
    JobChange,
    JobCreate,
    JobState,
    LabTerms,
    LicenceCreate,
    Role,
    SponsorshipRule,
    TriggerCreate,
    TriggerEvent,
)
from beamhub.store import Transaction
from sqlalchemy.event import listen

from tests.integration.laboratory import ADA, COUNT, OPERATOR, SAM, Lab, condition, gone, made, template


async def test_a_job_without_credit_waits_and_a_grant_lets_it_go_on(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await lab.licences.create(
        OPERATOR, LicenceCreate(id="poor", title="Poor", kind="user", owner="ada", cpu_hours=0.1)
    )
    request = JobCreate(template="try_it", inputs=[lab.dataset], profile="cpu-1", sponsor="poor")
    job = await lab.jobs.submit(ADA, lab.experiment, request)
    assert job.state is JobState.PENDING
    assert job.reason == ("Waits for credit: 1 CPU may use 0.17 CPU-h, and the licence poor has 0.1 left.")
    engine = lab.engine()
    await engine.schedule()
    assert lab.kinds(job) == ["job.created", "job.pending"]
    async with lab.running(engine):
        await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.05))
        still = await lab.until(job, JobState.PENDING)
        assert still.state is JobState.PENDING
        await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.1))
        done = await lab.until(job)
    assert done.state is JobState.FINISHED
    licence = await lab.licences.get(ADA, "poor")
    assert licence.held == 0
    assert licence.charged == done.cpu_seconds


async def test_a_lab_that_pays_during_the_beamtime_pays_for_nothing_that_still_waits_after_it(
    lab: Lab,
) -> None:
    template(lab.templates, "try_it", "1")
    beamtime = [SponsorshipRule(states=[ExperimentState.RUNNING])]
    await lab.licences.create(
        OPERATOR,
        LicenceCreate(id="poor", title="Poor", kind="lab", instruments=["sim-mx"], terms=beamtime),
    )
    request = JobCreate(template="try_it", inputs=[lab.dataset], profile="cpu-1", sponsor="poor")
    jobs = [await lab.jobs.submit(ADA, lab.experiment, request) for _ in range(2)]
    assert {job.state for job in jobs} == {JobState.PENDING}

    def becomes(state: ExperimentState) -> None:
        lab.store.write_sync(lambda tx: tx.experiments.change(lab.experiment, state=state))

    async def now() -> list[Job]:
        await engine._admit()
        return [await lab.jobs.get(ADA, job.id) for job in jobs]

    engine = lab.engine()
    becomes(ExperimentState.PROCESSING)
    await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.2))
    waiting = await now()
    assert {job.state for job in waiting} == {JobState.PENDING}
    why = "The licence poor pays on sim-mx only while the experiment is running"
    assert {job.reason for job in waiting} == {f"{why}: rerun the job with another sponsor."}
    assert (await lab.licences.get(SAM, "poor")).held == 0

    statements: list[str] = []
    listen(lab.store._read_engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    await engine._admit()  # it costs nothing to wait for what will perhaps never be
    assert not any("jobs.parameters" in one for one in statements), statements

    becomes(ExperimentState.RUNNING)  # the instrument's staff have decided so
    assert [job.state for job in await now()] == [JobState.QUEUED, JobState.PENDING]
    becomes(ExperimentState.CLOSED)
    await lab.licences.set_terms(SAM, "poor", LabTerms(rules=[]))
    await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=1))
    shut = (await now())[1]
    assert shut.state is JobState.PENDING
    assert shut.reason == f"{lab.experiment} is closed: the job can start when it is open again."
    becomes(ExperimentState.PROCESSING)
    assert [job.state for job in await now()] == [JobState.QUEUED, JobState.QUEUED]


async def test_each_attempt_has_to_be_paid_by_who_pays_then(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it")
    until = datetime.now(UTC) + timedelta(milliseconds=50)
    await lab.licences.set_terms(SAM, "lab", LabTerms(rules=[SponsorshipRule(valid_until=until)]))

    async def over() -> bool:
        return datetime.now(UTC) >= until

    await condition(over)

    def again(tx: Transaction) -> Job:
        queued = tx.jobs.get(job.id)
        assert queued is not None
        assert queued.state is JobState.QUEUED
        pending = change(tx, queued, JobState.PENDING, actor="beamhub", reason="Its node failed.")
        assert pending is not None
        return admit(tx, pending)

    waits = lab.store.write_sync(again)
    assert waits.state is JobState.PENDING
    assert "The licence lab pays on sim-mx only until " in waits.reason
    assert (await lab.licences.get(SAM, "lab")).held == 0


async def test_who_is_no_collaborator_any_more_has_nothing_paid_as_one(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it")

    def again(tx: Transaction) -> Job:
        queued = tx.jobs.get(job.id)
        assert queued is not None
        pending = change(tx, queued, JobState.PENDING, actor="beamhub", reason="Its node failed.")
        assert pending is not None
        return admit(tx, pending)

    await lab.licences.set_terms(SAM, "lab", LabTerms(rules=[SponsorshipRule(roles=[Role.PI])]))
    lab.store.write_sync(lambda tx: tx.members.change(lab.experiment, "ada", Role.COLLABORATOR))
    waits = lab.store.write_sync(again)
    assert waits.state is JobState.PENDING
    assert "only for the PI" in waits.reason


async def test_what_waits_costs_an_idle_engine_nothing(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await lab.licences.create(OPERATOR, LicenceCreate(id="poor", title="Poor", kind="user", owner="ada"))
    request = JobCreate(template="try_it", inputs=[lab.dataset], profile="cpu-1", sponsor="poor")
    jobs = [await lab.jobs.submit(ADA, lab.experiment, request) for _ in range(5)]
    engine = lab.engine()
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    listen(lab.store._read_engine, "before_cursor_execute", note)
    await engine.schedule()
    await engine.collectors["local"].collect()
    statements.clear()
    await engine.schedule()
    await engine.collectors["local"].collect()
    assert [one for one in statements if "FROM jobs" in one] == []
    assert len(statements) <= 2
    await lab.jobs.change(ADA, jobs[0].id, JobChange(priority=-1))  # an event, but not about credit
    statements.clear()
    await engine.schedule()
    assert not any("jobs.parameters" in one and "sponsor = " in one for one in statements), statements
    # the first in turn are queued, as far as the credit goes
    await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.35))
    await engine._admit()
    states = [(await lab.jobs.get(ADA, job.id)).state for job in jobs]
    assert states == ["pending", "queued", "queued", "pending", "pending"]


async def test_many_that_wait_are_looked_at_with_few_questions_and_told_no_news_twice(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    await lab.licences.create(OPERATOR, LicenceCreate(id="poor", title="Poor", kind="user", owner="ada"))
    await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.02))
    request = JobCreate(template="try_it", inputs=[lab.dataset], profile="cpu-1", sponsor="poor")
    jobs = [await lab.jobs.submit(ADA, lab.experiment, request) for _ in range(30)]
    engine = lab.engine()
    statements: list[str] = []
    listen(lab.store._read_engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    await engine._admit()
    assert len(statements) < 20

    def changes(tx: Transaction) -> int:
        return sum(event.kind == "job.pending" for event in tx.events.after(0, limit=1000))

    told = lab.store.read_sync(changes)
    # something else is paid, and another comes to wait: what is left is no news to those who wait already
    assert lab.store.write_sync(lambda tx: tx.licences.hold("poor", 36))
    jobs.append(await lab.jobs.submit(ADA, lab.experiment, request))
    await engine._admit()
    assert lab.store.read_sync(changes) - told <= 1
    await lab.licences.grant(OPERATOR, "poor", Grant(cpu_hours=0.01))  # that is
    await engine._admit()
    assert {(await lab.jobs.get(ADA, job.id)).reason for job in jobs} == {
        "Waits for credit: 1 CPU may use 0.17 CPU-h, and the licence poor has 0.02 left."
    }


async def test_time_that_the_service_was_away_is_not_charged(lab: Lab) -> None:
    """The end of a job is when it wrote its result, not when somebody looked."""
    template(lab.templates, "try_it", "1")
    engine = lab.engine()
    job = await lab.submit("try_it")
    await engine.schedule()
    result = lab.data_dir / lab.experiment / job.folder / "result.json"

    async def written() -> bool:
        return result.exists()

    async def collected() -> bool:
        await engine.collectors["local"].collect()
        return (await lab.jobs.get(ADA, job.id)).state.ended

    await condition(written)
    wrote = datetime.fromtimestamp(result.stat().st_ctime, UTC)
    await condition(collected)
    done = await lab.jobs.get(ADA, job.id)
    assert done.started
    assert done.ended
    assert abs(done.ended - wrote) < timedelta(seconds=0.1)
    assert done.cpu_seconds == math.ceil((done.ended - done.started).total_seconds())
    lab.assert_settled(job)


async def test_who_has_left_pays_for_no_rule_any_more(lab: Lab) -> None:
    """Nor could ada change the rule then."""
    template(lab.templates, "try_it", "1")
    await lab.licences.create(
        OPERATOR, LicenceCreate(id="own", title="Own", kind="user", owner="ada", cpu_hours=0.2)
    )
    request = TriggerCreate(
        title="All", event=TriggerEvent.DATASET_COMPLETE, template="try_it", profile="cpu-1", sponsor="own"
    )
    await lab.rules.create_for(ADA, lab.experiment, request)
    await lab.rules.create_for(ADA, lab.experiment, request)
    lab.store.write_sync(lambda tx: tx.datasets.change(lab.dataset, frames_readable=100))
    engine = lab.engine()
    lab.told("dataset.complete")
    await engine.dispatch()
    paid, waits = made(lab)
    assert (paid.state, waits.state) == (JobState.QUEUED, JobState.PENDING)
    lab.store.write_sync(lambda tx: tx.members.remove(lab.experiment, "ada"))
    await lab.licences.grant(OPERATOR, "own", Grant(cpu_hours=1))
    await engine._admit()
    why = f"The licence own is of ada, who does not belong to {lab.experiment}"
    assert [job.state for job in made(lab)] == [JobState.QUEUED, JobState.PENDING]
    assert made(lab)[1].reason == f"{why}: rerun the job with another sponsor."

    def another(tx: Transaction) -> None:
        changed = tx.triggers.list("sim-mx", after=None, limit=9).items
        assert changed == []
        for one in tx.triggers.applying("sim-mx", lab.experiment):
            tx.triggers.change(one.id, author="sam", title="Changed")  # for a new version: a new job

    lab.store.write_sync(another)
    lab.told("dataset.complete")
    await engine.dispatch()
    later = made(lab)[2:]
    assert [job.state for job in later] == [JobState.FAILED] * 2
    assert {
        job.reason.startswith("The rule that started this job cannot be followed: ") for job in later
    } == {True}
    assert all(f"{why}." in job.reason for job in later)


# Says that it has finished, works on, and ends what would say so in truth.
EARLY = """
import json, os, signal
from pathlib import Path
Path("early").write_text(json.dumps({"outcome": "finished"}))
os.rename("early", "result.json")
while not Path(data).with_name("enough").exists():
    sum(range(10000))
os.kill(os.getppid(), signal.SIGKILL)
"""


async def test_a_result_that_is_written_early_makes_a_job_no_cheaper(lab: Lab) -> None:
    template(lab.templates, "early", EARLY)
    runner = lab.runner()
    engine = lab.engine(runner)
    job = await lab.submit("early")
    await engine.schedule()
    result = lab.data_dir / lab.experiment / job.folder / "result.json"

    async def long_ago() -> bool:
        return result.exists() and time.time() - result.stat().st_ctime > TIDY + 1

    await condition(long_ago)
    seen = datetime.now(UTC)
    await engine.collectors["local"].collect()
    (lab.data_dir / lab.experiment / "raw" / "enough").touch()
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    await gone(runner, task)
    await engine.collectors["local"].collect()
    done = await lab.jobs.get(ADA, job.id)
    assert done.started
    assert done.ended
    assert done.ended >= seen - timedelta(seconds=0.1)
    assert done.cpu_seconds == math.ceil((done.ended - done.started).total_seconds())
    lab.assert_settled(done)


async def test_an_end_that_nobody_saw_costs_what_there_is_a_sign_of(lab: Lab) -> None:
    """Its processes were killed while the service was away."""
    template(lab.templates, "count", COUNT)
    runner = lab.runner()
    job = await lab.submit("count")
    await lab.engine(runner).schedule()
    await lab.says(job, "begun")
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    await runner.cancel(task.runner_ref or {})
    await gone(runner, task)
    folder = lab.data_dir / lab.experiment / job.folder
    wrote = max(
        datetime.fromtimestamp((folder / name).stat().st_ctime, UTC) for name in ("log.txt", "notebook.ipynb")
    )

    async def back() -> bool:
        return datetime.now(UTC) - wrote > timedelta(seconds=2)

    await condition(back)
    await lab.engine().collectors["local"].collect()
    [attempt, *_] = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert attempt.started
    assert attempt.ended
    assert abs(attempt.ended - wrote) < timedelta(seconds=0.1)
    assert attempt.cpu_seconds == math.ceil((attempt.ended - attempt.started).total_seconds())
