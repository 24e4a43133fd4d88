"""The engine and its jobs, when one of them dies, hangs or loses something."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from beamhub.engine import Engine
from beamhub.jobstate import remember
from beamhub.runners import Phase, Status
from beamhub.runners.local import LocalRunner
from beamhub.schemas import Job, JobCancel, JobState
from beamhub.store.jobs import Task

from tests.integration.laboratory import ADA, COUNT, ENGINE, Lab, condition, gone, template


async def test_a_killed_engine_is_followed_by_one_that_adopts_its_jobs(lab: Lab) -> None:
    template(lab.templates, "count", COUNT)
    job = await lab.submit("count")
    waiting = await lab.submit("count", "cpu-2")  # no room for both
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENGINE, str(lab.folder), lab.url, stdin=subprocess.DEVNULL
    )
    await lab.says(job, "begun")
    engine.kill()
    await engine.wait()
    assert (await lab.jobs.get(ADA, job.id)).state is JobState.RUNNING
    assert (await lab.jobs.get(ADA, waiting.id)).state is JobState.QUEUED
    async with lab.running():
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        done, next_done = await lab.until(job), await lab.until(waiting)
    for one in (done, next_done):
        assert (one.state, one.reason) == (JobState.FINISHED, "")
        assert (lab.data_dir / lab.experiment / one.folder / "runs.txt").read_text() == "once\n"
        assert lab.kinds(one) == ["job.created", "job.queued", "job.running", "job.finished"]
    lab.assert_settled(job, waiting)


class Forgetful(LocalRunner):
    """Dies, as far as its jobs can tell, between remembering a job and letting it go."""

    async def release(self, ref: dict[str, Any]) -> None:
        child = self._children[ref["pid"]]
        assert child.stdin
        child.stdin.close()
        child.wait()


async def test_a_job_that_was_never_let_go_runs_under_the_next_engine(lab: Lab) -> None:
    template(lab.templates, "count", COUNT)
    (lab.data_dir / lab.experiment / "raw" / "go").touch()
    job = await lab.submit("count")
    await lab.engine(lab.runner(Forgetful)).schedule()
    assert (await lab.jobs.get(ADA, job.id)).state is JobState.RUNNING
    assert not (lab.data_dir / lab.experiment / job.folder / "notebook.ipynb").exists()
    async with lab.running():
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (lab.data_dir / lab.experiment / done.folder / "runs.txt").read_text() == "once\n"
    lab.assert_settled(job)


async def test_a_job_whose_notebook_is_lost_is_in_nobodys_way(lab: Lab) -> None:
    template(lab.templates, "lost", "1")
    template(lab.templates, "try_it", "1")
    lost = await lab.submit("lost")
    shutil.rmtree(lab.data_dir / ".templates")
    kept = await lab.submit("try_it")
    async with lab.running():
        failed, done = await lab.until(lost), await lab.until(kept)
    assert (failed.state, done.state) == (JobState.FAILED, JobState.FINISHED)
    assert failed.reason == (
        f"The job could not be started: The notebook that job {lost.id} was to run is not kept here. "
        "Run its template again."
    )
    lab.assert_settled(lost, kept)


LARGE = """
from beamhub import report
with open("large.bin", "wb") as file:
    file.truncate(4 << 30)
report.artifact("large.bin", "Much")
"""


async def test_a_result_that_takes_long_to_be_read_keeps_no_other_job_waiting(lab: Lab) -> None:
    template(lab.templates, "large", LARGE)
    template(lab.templates, "count", COUNT)
    async with lab.running():
        other = await lab.submit("count")
        await lab.says(other, "begun")
        large = await lab.submit("large")
        result = lab.data_dir / lab.experiment / large.folder / "result.json"

        async def written() -> bool:
            return result.exists()

        await condition(written)
        await lab.jobs.cancel(ADA, other.id, JobCancel())
        await lab.until(other)
        assert (await lab.jobs.get(ADA, large.id)).state is JobState.RUNNING
        done = await lab.until(large)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    [much] = [one for one in done.artifacts if one.path == "large.bin"]
    assert much.size == 4 << 30
    assert len(much.digest) == 64
    # read once: whoever asks for the result is told what was found then
    large_file = lab.data_dir / lab.experiment / large.folder / "large.bin"
    large_file.chmod(0o600)
    os.truncate(large_file, 0)
    assert (await lab.jobs.result(ADA, large.id)).artifacts == done.artifacts
    lab.assert_settled(other, large)


async def test_how_a_process_ended_is_told_until_it_is_settled(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    runner = lab.runner()
    engine = lab.engine(runner)
    job = await lab.submit("try_it")
    ref = await engine._prepare(runner, job)
    (lab.data_dir / lab.experiment / job.folder / "job.json").unlink()  # so it can't go on
    await runner.release(ref)

    async def is_gone() -> bool:
        return (await runner.poll([ref]))[0].phase is Phase.GONE

    await condition(is_gone)
    [status] = await runner.poll([ref])
    assert (status.exit_code, status.again) == (1, False)


async def counting(lab: Lab) -> tuple[LocalRunner, Engine, Job, Task]:
    """A job that has begun to count, and an engine which doesn't look at it by itself."""
    template(lab.templates, "count", COUNT)
    runner = lab.runner()
    engine = lab.engine(runner)
    job = await lab.submit("count")
    await engine.schedule()
    await lab.says(job, "begun")
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    return runner, engine, job, task


async def test_a_job_that_removes_its_folder_is_settled_all_the_same(lab: Lab) -> None:
    """As it can where no sandbox confines it."""
    runner, engine, job, task = await counting(lab)
    await runner.cancel(task.runner_ref or {})
    await gone(runner, task)
    shutil.rmtree(lab.data_dir / lab.experiment / job.folder)
    collector = engine.collectors["local"]
    watch = await collector._watch(task.job)
    await collector._attend(task, Status(Phase.GONE, exit_code=1), watch, None, time.monotonic())
    now = await lab.jobs.get(ADA, job.id)
    assert (now.state, now.reason) == (
        JobState.FAILED,
        "Its processes ended without a result: the end of its log may tell why.",
    )
    lab.assert_settled(job)


async def test_a_cancellation_that_comes_as_the_processes_die_is_no_new_attempt(lab: Lab) -> None:
    runner, engine, job, task = await counting(lab)
    assert task.runner_ref
    os.killpg(int(str(task.runner_ref["pid"])), signal.SIGKILL)
    await gone(runner, task)
    await lab.jobs.cancel(ADA, job.id, JobCancel(reason="enough"))  # after the engine has looked at it
    status = Status(Phase.GONE, "Its processes were killed.", again=True)
    collector = engine.collectors["local"]
    await collector._attend(task, status, await collector._watch(task.job), None, time.monotonic())
    now = await lab.jobs.get(ADA, job.id)
    assert (now.state, now.reason) == (JobState.CANCELLED, "Cancelled by ada: enough.")
    lab.assert_settled(job)


async def test_a_job_that_somebody_else_has_handed_over_is_theirs(lab: Lab) -> None:
    """Two services that both believe for a moment that they are on duty."""
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it")

    def handed_over(number: int) -> Job | None:
        return lab.store.write_sync(lambda tx: remember(tx, job, {"slurm": number}, begins=False))

    assert handed_over(5)
    assert handed_over(6) is None
    assert handed_over(5)  # both have found the same one
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    assert task.runner_ref == {"slurm": 5}
    [attempt] = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert attempt.ref == "slurm 5"


async def test_a_running_job_of_a_runner_that_is_gone_can_be_cancelled(lab: Lab) -> None:
    template(lab.templates, "count", COUNT)
    runner = lab.runner()
    job = await lab.submit("count")
    await lab.engine(runner).schedule()
    await lab.says(job, "begun")
    other = Engine(lab.store, lab.live, lab.jobs, {"slurm": runner}, lab.data_dir)
    await other.schedule("slurm")
    assert (await lab.jobs.get(ADA, job.id)).state is JobState.RUNNING  # it may come back
    await lab.jobs.cancel(ADA, job.id, JobCancel(reason="never mind"))
    later = Engine(lab.store, lab.live, lab.jobs, {"slurm": runner}, lab.data_dir)
    await later.schedule("slurm")
    now = await lab.jobs.get(ADA, job.id)
    assert (now.state, now.reason) == (JobState.CANCELLED, "Cancelled by ada: never mind.")
    lab.assert_settled(job)
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    await runner.cancel(task.runner_ref or {})
    await gone(runner, task)
