"""Interpreters that wait for jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from beamhub.run import READY
from beamhub.runners import pool
from beamhub.runners.local import LocalRunner
from beamhub.schemas import Job, JobState

from tests.integration.laboratory import ADA, ENGINE, Lab, condition, processes, template


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.end()


def waiting(lab: Lab) -> set[str]:
    """The folders that interpreters wait in, by name."""
    slots = lab.data_dir / lab.experiment / "processed" / ".slots"
    return {path.name for path in slots.iterdir()} if slots.exists() else set()


async def pid(lab: Lab, job: Job) -> int:
    task = await lab.store.read(lambda tx: tx.jobs.task(job.id))
    assert task
    assert task.runner_ref
    found = task.runner_ref["pid"]
    assert isinstance(found, int)
    return found


async def nobody(marker: str) -> None:
    """Until no process has this text in its command line."""

    async def gone() -> bool:
        return not processes(marker)

    await condition(gone)


CIRCUMSTANCES = """
import ctypes, os, pathlib, resource, sys
import numba
import numpy
from beamhub import report

[blas] = {line.split()[-1] for line in open("/proc/self/maps") if "/libscipy_openblas64_" in line}
report.metric("threads", [
    numba.config.NUMBA_NUM_THREADS,
    ctypes.CDLL(blas).scipy_openblas_get_num_threads64_(),
    int(os.environ["OMP_NUM_THREADS"]),
    report.cpus(),
])
report.metric("memory", resource.getrlimit(resource.RLIMIT_DATA)[1])
report.metric("cores", resource.getrlimit(resource.RLIMIT_CORE)[1])
threads = [int(thread) for thread in os.listdir("/proc/self/task")]
report.metric("niceness", sorted({os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}))
own = pathlib.Path(data).parents[1] / "processed" / JOB
report.metric("folders", int(pathlib.Path.cwd() == report.folder() == own))
report.metric("input", os.readlink("/proc/self/fd/0"))
mine = "mine ctypes os pathlib resource sys numba numpy report blas own threads"
known = set(dir()) - set(mine.split())
report.metric("variables", ",".join(sorted(name for name in known if not name.startswith("_"))))
"""


@pytest.mark.parametrize("ready", [0, 1], ids=["interpreter starts", "interpreter waits"])
async def test_what_a_profile_gives_is_the_same_for_interpreters_that_waited(lab: Lab, ready: int) -> None:
    template(lab.templates, "look", "JOB = str(n)", CIRCUMSTANCES)
    async with lab.running_ready(ready):
        done = await lab.until(await lab.submit("look", "cpu-2", n=1))
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert {name: metric.value for name, metric in done.metrics.items()} == {
        "threads": [2, 2, 2, 2],
        "memory": done.profile.memory,
        "cores": 0,
        "niceness": [10],
        "folders": 1,
        "input": "/dev/null",
        "variables": "In,JOB,Out,cpus,data,exit,get_ipython,label,n,open,quit",
    }


async def test_an_interpreter_serves_one_job_and_is_replaced(lab: Lab) -> None:
    template(lab.templates, "try_it", "print(n)")
    async with lab.running_ready() as runner:
        [slot] = runner.pool._slots
        first = await lab.submit("try_it", n=7)
        await lab.until(first, JobState.RUNNING)
        assert await pid(lab, first) == slot.process.pid
        assert (await lab.until(first)).state is JobState.FINISHED
        assert (await lab.jobs.log(ADA, first.id))[0] == "7\n"
        assert not slot.folder.exists()

        async def replaced() -> bool:
            return runner.pool.ready(lab.data_dir / lab.experiment) == 1

        await condition(replaced)
        [other] = runner.pool._slots
        assert other.process.pid != slot.process.pid
    assert waiting(lab) == set()
    await nobody(str(lab.data_dir))


LAST_WORDS = """
import atexit, pathlib, threading
atexit.register(pathlib.Path("at_exit.txt").write_text, "said")
def outlive():
    threading.main_thread().join()
    pathlib.Path("thread.txt").write_text("said")
threading.Thread(target=outlive).start()
"""


async def test_what_a_notebook_leaves_for_the_end_is_done(lab: Lab) -> None:
    template(lab.templates, "leave", LAST_WORDS)
    async with lab.running_ready():
        done = await lab.until(await lab.submit("leave"))
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    folder = lab.data_dir / lab.experiment / done.folder
    assert [(folder / f"{name}.txt").read_text() for name in ("at_exit", "thread")] == ["said", "said"]


async def test_who_still_starts_is_not_moved(tmp_path: Path) -> None:
    """Its sandbox may not be made yet, of a folder that would be gone then."""

    def spawn(folder: Path, _: Path) -> subprocess.Popen[bytes]:
        starts = ["sh", "-c", f'read line; touch "$0/{READY}"; read line', str(folder)]
        return subprocess.Popen(starts, stdin=subprocess.PIPE, start_new_session=True)

    experiment, job = tmp_path / "experiment", tmp_path / "job"
    job.mkdir()
    (job / "job.json").touch()
    slots = pool.Pool(tmp_path, 1, 1, spawn)
    slots.expect([experiment])
    assert slots.take(job, experiment) is None
    assert [path.name for path in job.iterdir()] == ["job.json"]

    [slot] = slots._slots
    assert slot.process.stdin is not None
    slot.process.stdin.write(b"\n")
    slot.process.stdin.flush()

    async def ready() -> bool:
        return slots.ready(experiment) == 1

    await condition(ready)
    assert slots.take(job, experiment) is slot.process
    assert [path.name for path in job.iterdir()] == ["job.json"]
    assert not slot.folder.exists()
    slot.end()


async def test_no_more_wait_than_jobs_can_start(lab: Lab) -> None:
    experiments = [lab.data_dir / name for name in (lab.experiment, lab.other)]
    runner = LocalRunner(3, lab.folder / "state", lab.data_dir, warm=False, ready=2)

    async def enough() -> bool:
        await runner.expect(experiments)
        return sum(map(runner.pool.ready, experiments)) == 3

    await condition(enough)
    await runner.expect(experiments)
    assert len(runner.pool._slots) == 3
    await runner.expect(experiments[1:])  # the other one is not measured any more
    assert {slot.experiment for slot in runner.pool._slots} == {experiments[1]}
    assert waiting(lab) == set()
    await runner.expect([])
    assert not runner.pool._slots
    await nobody(str(lab.data_dir))


async def test_nobody_waits_where_memory_is_short(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    template(lab.templates, "try_it", "print(n)")
    async with lab.running_ready() as runner:
        monkeypatch.setattr(pool, "SPARE", 1)  # all of it

        async def ended() -> bool:
            return not runner.pool._slots

        await condition(ended)
        await nobody(str(lab.data_dir))
        assert (await lab.until(await lab.submit("try_it"))).state is JobState.FINISHED


async def test_a_job_starts_although_who_waited_for_it_has_died(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    template(lab.templates, "try_it", "print(n)")
    async with lab.running_ready() as runner:
        [slot] = runner.pool._slots
        os.killpg(slot.process.pid, signal.SIGKILL)
        await nobody(slot.folder.name)
        assert (await lab.until(await lab.submit("try_it"))).state is JobState.FINISHED


async def test_who_waits_ends_with_the_service_however_that_ends(lab: Lab) -> None:
    lab.store.write_sync(lambda tx: tx.instruments.change("sim-mx", active_experiment=lab.experiment))
    script = ENGINE.replace("warm=False", "warm=False, ready=1")
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(lab.folder), lab.url),
        stdin=subprocess.DEVNULL,
    )

    async def waits() -> bool:
        slots = lab.data_dir / lab.experiment / "processed" / ".slots"
        return bool(list(slots.glob("*/.ready")))

    await condition(waits)
    engine.kill()
    await engine.wait()
    await nobody(str(lab.data_dir))
    left = waiting(lab)
    assert left
    elsewhere = lab.data_dir / lab.other / "processed" / ".slots" / "0123"  # which is not measured any more
    elsewhere.mkdir(parents=True)
    async with lab.running_ready():
        assert not waiting(lab) & left
        assert not elsewhere.parent.exists()
    assert not (lab.data_dir / lab.experiment / "processed" / ".slots").exists()
