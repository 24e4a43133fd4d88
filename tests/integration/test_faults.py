"""What can die does, and jobs neither get lost, nor run twice, nor cost more than they used."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from beamhub.errors import Conflict
from beamhub.events import Feed
from beamhub.jobs import Jobs
from beamhub.runners import Phase, Ref
from beamhub.runners.local import _process
from beamhub.schemas import Job, JobCancel, JobState, LedgerKind
from beamhub.store import Store
from beamhub.testing_stores import running_postgresql
from sqlalchemy.exc import OperationalError

from tests.integration.laboratory import ADA, COUNT, ENGINE, PROFILES, Lab, condition, processes, template


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.end()


async def engine(
    lab: Lab, *program: str, script: str = ENGINE, **environment: str
) -> asyncio.subprocess.Process:
    """An engine in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(*program, sys.executable, "-c", script, str(lab.folder), lab.url),
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )


def folder(lab: Lab, job: Job) -> Path:
    return lab.data_dir / lab.experiment / job.folder


def let_go(lab: Lab, word: str = "go") -> None:
    """The jobs of COUNT end."""
    (lab.data_dir / lab.experiment / "raw" / word).touch()


async def begun(lab: Lab, *jobs: Job) -> None:
    async def all_have() -> bool:
        return all((folder(lab, job) / "runs.txt").exists() for job in jobs)

    await condition(all_have)


def kill(lab: Lab, job: Job) -> None:
    """All processes of a job."""
    for pid in processes(str(folder(lab, job))):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ledger(lab: Lab, job: Job, kind: LedgerKind) -> list[int]:
    lines = lab.store.read_sync(lambda tx: tx.licences.ledger("lab", after=None, limit=1000)).items
    return [line.cpu_seconds for line in reversed(lines) if line.job == job.id and line.kind == kind]


MANY = 20
# kills itself in the middle of finding out what became of the jobs of the one before
VICTIM = ENGINE.replace(
    "asyncio.run(",
    """
import itertools, os, signal, beamhub.store
beamhub.store.TOGETHER = 4  # changes in a commit
commits = itertools.count(1)
store.on_commit(lambda: next(commits) == 2 and os.kill(os.getpid(), signal.SIGKILL))
asyncio.run(""",
)


async def test_a_service_that_is_killed_twice_loses_none_of_twenty_jobs(lab: Lab) -> None:
    """Half of them end while nobody looks, half run on all the time."""
    template(lab.templates, "count", COUNT.replace('"go"', "label"))
    ending, going = [
        [await lab.submit("count", label=label) for _ in range(MANY // 2)] for label in ("go", "later")
    ]
    jobs = [*ending, *going]
    first = await engine(lab, script=ENGINE.replace("LocalRunner(2,", f"LocalRunner({MANY},"))
    await begun(lab, *jobs)
    first.kill()
    await first.wait()
    let_go(lab)

    async def written() -> bool:
        return all((folder(lab, job) / "result.json").exists() for job in ending)

    await condition(written)
    second = await engine(lab, script=VICTIM)
    assert await second.wait() == -signal.SIGKILL
    states = {(await lab.jobs.get(ADA, job.id)).state for job in ending}
    assert states == {JobState.RUNNING, JobState.FINISHED}
    async with lab.running():
        for job in ending:
            await lab.until(job)
        for job in going:  # adopted, and left alone
            assert (await lab.jobs.get(ADA, job.id)).state is JobState.RUNNING
            assert processes(str(folder(lab, job)))
        let_go(lab, "later")
        for job in jobs:
            done = await lab.until(job)
            assert (done.state, done.reason) == (JobState.FINISHED, "")
            assert (folder(lab, job) / "runs.txt").read_text() == "once\n"
            assert lab.kinds(job) == ["job.created", "job.queued", "job.running", "job.finished"]
            assert done.started
            assert done.ended
            assert done.cpu_seconds == math.ceil((done.ended - done.started).total_seconds())
    lab.assert_settled(*jobs)


async def test_a_job_whose_processes_are_killed_is_tried_again_and_each_attempt_is_paid(lab: Lab) -> None:
    template(lab.templates, "count", COUNT)
    async with lab.running():
        job = await lab.submit("count")
        await begun(lab, job)
        kill(lab, job)
        await lab.until(job, JobState.PENDING)
        [paid] = ledger(lab, job, LedgerKind.CHARGE)[:1]  # before anything is started again
        await begun(lab, job)
        let_go(lab)

        async def finished() -> bool:
            return (await lab.jobs.get(ADA, job.id)).state.ended

        await condition(finished)
    done = await lab.jobs.get(ADA, job.id)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (folder(lab, job) / "runs.txt").read_text() == "once\n"
    first, second = ledger(lab, job, LedgerKind.CHARGE)
    assert min(first, second) > 0
    assert (paid, done.cpu_seconds) == (first, first + second)
    assert ledger(lab, job, LedgerKind.HOLD) == [600, 600]
    assert sum(ledger(lab, job, LedgerKind.RELEASE)) == 1200 - first - second
    attempts = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert [(one.outcome, one.cpu_seconds) for one in attempts] == [
        ("interrupted", first),
        ("finished", second),
    ]
    for one in attempts:
        assert one.started
        assert one.ended
        assert one.cpu_seconds == math.ceil((one.ended - one.started).total_seconds())


POISON = """
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
"""


async def test_a_job_that_kills_its_processes_three_times_is_not_started_again(lab: Lab) -> None:
    template(lab.templates, "poison", POISON)
    async with lab.running():
        job = await lab.submit("poison")

        async def ended() -> bool:
            return (await lab.jobs.get(ADA, job.id)).state.ended

        await condition(ended)
    done = await lab.jobs.get(ADA, job.id)
    assert (done.state, done.reason) == (
        JobState.FAILED,
        "Its processes were killed. It was started 3 times, and is not started again.",
    )
    assert lab.kinds(job).count("job.running") == 3
    attempts = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert [one.outcome for one in attempts] == ["interrupted", "interrupted", "failed"]
    assert len({one.ref for one in attempts}) == 3  # processes, each killed by what it ran
    assert len(ledger(lab, job, LedgerKind.HOLD)) == 3
    assert ledger(lab, job, LedgerKind.CHARGE) == [one.cpu_seconds for one in attempts]
    assert sum(one.cpu_seconds for one in attempts) == done.cpu_seconds
    licence = lab.store.read_sync(lambda tx: tx.licences.get("lab"))
    assert licence
    assert (licence.held, licence.charged) == (0, done.cpu_seconds)


async def test_a_job_that_was_stopped_beyond_its_time_has_no_late_result(lab: Lab) -> None:
    """Stopped and never resumed: processes that do not react are killed all the same."""
    template(lab.templates, "count", COUNT)
    async with lab.running():
        job = await lab.submit("count", "brief")
        await lab.until(job, JobState.RUNNING)
        stopped = processes(str(folder(lab, job)))
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        let_go(lab)
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FAILED, "It reached its time limit of 1 s.")
    for pid in stopped:
        assert _process(pid) is None
    assert not (folder(lab, job) / "result.json").exists()
    lab.assert_settled(job)


async def test_a_database_that_is_locked_delays_what_is_written_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than a writer waits, which is a minute's half otherwise."""
    monkeypatch.setattr("beamhub.store.BUSY_TIMEOUT", 0.2)
    lab = Lab(tmp_path)
    template(lab.templates, "count", COUNT)
    async with lab.running():
        job = await lab.submit("count")
        await begun(lab, job)
        with contextlib.closing(sqlite3.connect(tmp_path / "beamhub.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            let_go(lab)

            async def stumbled() -> bool:
                return "database is locked" in caplog.text

            await condition(stumbled)
            other.execute("ROLLBACK")
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    lab.assert_settled(job)
    await asyncio.to_thread(lab.store.close)


async def test_what_could_not_be_remembered_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that can be read and not written, as on a full disk: no process is left behind each time."""
    monkeypatch.setattr("beamhub.store.BUSY_TIMEOUT", 0.2)
    lab = Lab(tmp_path)
    template(lab.templates, "count", COUNT)
    job = await lab.submit("count")
    engine = lab.engine()

    async def nobody() -> bool:
        return not processes(str(folder(lab, job)))

    with contextlib.closing(sqlite3.connect(tmp_path / "beamhub.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with pytest.raises(OperationalError, match="locked"):
                await engine.schedule()
            assert folder(lab, job).exists()  # it was prepared
            await condition(nobody)
        other.execute("ROLLBACK")
    let_go(lab)
    async with lab.running(engine):
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (folder(lab, job) / "runs.txt").read_text() == "once\n"
    lab.assert_settled(job)
    await asyncio.to_thread(lab.store.close)


async def test_a_database_server_that_is_down_loses_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_postgresql() as server:
        lab = Lab(tmp_path, server.url.format("postgres"))
        template(lab.templates, "count", COUNT)
        async with lab.running():
            job = await lab.submit("count")
            await begun(lab, job)
            await asyncio.to_thread(server.stop)
            let_go(lab)

            async def stumbled() -> bool:
                return "the engine stumbled" in caplog.text

            async def written() -> bool:
                return (folder(lab, job) / "result.json").exists()

            await condition(stumbled)
            await condition(written)
            await asyncio.to_thread(server.start)
            done = await lab.until(job)
        assert (done.state, done.reason) == (JobState.FINISHED, "")
        lab.assert_settled(job)
        await asyncio.to_thread(lab.store.close)


FULL = '''
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from beamhub.schemas import JobState
from tests.integration.laboratory import Lab, template

FILL = """
import os
with open("filler", "wb") as file:
    try:
        while True:
            os.write(file.fileno(), bytes(4096))
    except OSError:
        pass
"""

async def main():
    lab = Lab(Path(sys.argv[1]), f"sqlite:///{sys.argv[2]}/beamhub.db")
    template(lab.templates, "fill", FILL)
    async with lab.running():
        done = await lab.until(await lab.submit("fill"))
    assert done.state is JobState.FAILED
    lab.assert_settled(done)
    print(done.reason)
    lab.store.close()

asyncio.run(main())
'''


async def test_a_disk_that_is_full_when_the_result_is_written_fails_the_job_with_that_reason(
    tmp_path: Path,
) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    small = tmp_path / "small"
    small.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("bwrap", "--dev-bind", "/", "/", "--size", str(2 * 2**20), "--tmpfs", small),
        *(sys.executable, "-c", FULL, small, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert told.decode().splitlines()[-1].startswith("The disk is full")


async def test_whoever_is_first_decides_when_a_job_is_cancelled_as_it_ends(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    async with lab.running():
        jobs = [await lab.submit("try_it") for _ in range(6)]

        async def cancel(job: Job) -> None:
            result = folder(lab, job) / "result.json"

            async def written() -> bool:
                return result.exists()

            await condition(written)
            with contextlib.suppress(Conflict):  # it was collected before
                await lab.jobs.cancel(ADA, job.id, JobCancel())

        await asyncio.gather(*(cancel(job) for job in jobs))
        done = [await lab.until(job) for job in jobs]
    for job in done:
        # its result was there first
        assert (job.state, job.reason) == (JobState.FINISHED, "")
        assert lab.kinds(job) == ["job.created", "job.queued", "job.running", "job.finished"]
    lab.assert_settled(*jobs)


async def test_a_process_id_that_was_given_away_again_is_neither_adopted_nor_killed(lab: Lab) -> None:
    runner = lab.runner()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:  # noqa: ASYNC220
        process = _process(stranger.pid)
        assert process
        ref: Ref = {"pid": stranger.pid, "start_time": process.start_time, "memory": 1 << 30, "began": 0.0}
        [known] = await runner.poll([ref])
        assert known.phase is Phase.RUNNING
        earlier: Ref = {**ref, "start_time": process.start_time - 1}
        [status] = await runner.poll([earlier])
        assert status.phase is Phase.GONE
        await runner.cancel(earlier)
        assert stranger.poll() is None
        started_again: Ref = {**ref, "boot": "another"}  # the machine was
        [status] = await runner.poll([started_again])
        assert (status.phase, status.elapsed) == (Phase.GONE, None)
        await runner.cancel(started_again)
        assert stranger.poll() is None
        await runner.cancel(ref)
        assert stranger.wait() == -signal.SIGKILL


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")  # the number that the kernel has given away last


async def test_a_stranger_with_the_process_id_of_a_job_is_left_alone(lab: Lab) -> None:
    """The job's process has died unseen, and the kernel gives its number to another."""
    assert os.geteuid() == 0, "only root chooses which process id is given away next: run this test as root"
    template(lab.templates, "count", COUNT)
    job = await lab.submit("count")
    first = await engine(lab)
    await begun(lab, job)
    first.kill()
    await first.wait()
    task = lab.store.read_sync(lambda tx: tx.jobs.task(job.id))
    assert task
    assert task.runner_ref
    pid = task.runner_ref["pid"]
    assert isinstance(pid, int)
    kill(lab, job)

    async def gone() -> bool:
        return _process(pid) is None

    await condition(gone)
    while True:
        await asyncio.to_thread(LAST_PID.write_text, str(pid - 1))
        with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:  # noqa: ASYNC220
            if stranger.pid == pid:
                let_go(lab)
                async with lab.running():
                    await lab.until(job, JobState.PENDING)  # it was not taken for the job
                    await lab.until(job, JobState.FINISHED)
                assert stranger.poll() is None
            stranger.kill()
        if stranger.pid == pid:  # else somebody else was quicker
            break
    assert (folder(lab, job) / "runs.txt").read_text() == "once\n"
    assert lab.kinds(job).count("job.running") == 2
    attempts = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert [one.outcome for one in attempts] == ["interrupted", "finished"]


BEFORE = "0010"  # a version of the tables


async def test_jobs_that_run_while_the_service_is_upgraded_are_adopted(lab: Lab, tmp_path: Path) -> None:
    template(lab.templates, "count", COUNT.replace('"go"', "label"))
    going, ending = [await lab.submit("count", label=label) for label in ("later", "go")]
    old = await engine(lab)
    await begun(lab, going, ending)
    old.kill()
    await old.wait()
    await asyncio.to_thread(lab.store.close)
    age(tmp_path / "beamhub.db", BEFORE)

    lab.store = Store(lab.url)
    assert not lab.store.migrated()
    lab.store.migrate()
    assert lab.store.migrated()
    lab.feed = Feed(lab.store)
    lab.jobs = Jobs(lab.store, lab.catalogue, PROFILES, lab.data_dir)
    let_go(lab)
    async with lab.running():
        done = [await lab.until(ending)]  # so it has looked at the other, too
        assert (await lab.jobs.get(ADA, going.id)).state is JobState.RUNNING
        let_go(lab, "later")
        done.append(await lab.until(going))
    for job in done:
        assert (job.state, job.reason) == (JobState.FINISHED, "")
        assert (folder(lab, job) / "runs.txt").read_text() == "once\n"
        assert lab.kinds(job) == ["job.created", "job.queued", "job.running", "job.finished"]
    lab.assert_settled(*done)


def age(path: Path, version: str) -> None:
    """Makes a database one of an earlier version, as far as that could tell the same."""
    older = path.with_suffix(".older")
    config = alembic.config.Config()
    config.set_main_option("script_location", "beamhub.store:migrations")
    config.set_main_option("path_separator", "os")
    store = Store(f"sqlite:///{older}")
    with store._write_engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, version)
    store.close()
    with contextlib.closing(sqlite3.connect(older, isolation_level=None)) as database:
        database.execute("ATTACH ? AS newer", (str(path),))
        tables = [
            row[0]
            for row in database.execute(
                "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
        ]
        for table in tables:
            if table == "alembic_version":
                continue
            columns = [
                {row[1] for row in database.execute(f"PRAGMA {schema}.table_info({table})")}
                for schema in ("main", "newer")
            ]
            both = ", ".join(sorted(columns[0] & columns[1]))
            database.execute(f"DELETE FROM main.{table}")
            database.execute(f"INSERT INTO main.{table} ({both}) SELECT {both} FROM newer.{table}")
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    older.rename(path)


def child(pid: int) -> int:
    """The only one of a process."""
    [found] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found)


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_by_an_hour_ends_no_job_and_costs_nothing(lab: Lab, hours: int) -> None:
    template(lab.templates, "count", COUNT)
    job = await lab.submit("count")
    before = await engine(lab)
    await begun(lab, job)
    before.kill()
    await before.wait()
    second = await lab.submit("count")
    after = await engine(lab, "faketime", "-f", f"{hours:+}h")
    try:
        await begun(lab, second)  # so it has looked at the first one
        assert (await lab.jobs.get(ADA, job.id)).state is JobState.RUNNING
        let_go(lab)
        done = [await lab.until(one) for one in (job, second)]
    finally:
        os.kill(child(after.pid), signal.SIGKILL)  # faketime waits for it, and tidies up after it
        await after.wait()
    for one in done:
        assert (one.state, one.reason) == (JobState.FINISHED, "")
        assert 0 < one.cpu_seconds < 300
    lab.assert_settled(job, second)
