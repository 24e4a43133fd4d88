"""Jobs on a real Slurm of two nodes: munged, slurmctld and two slurmd on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from beamhub import checkup, cluster
from beamhub.app import BeamhubApp
from beamhub.cluster import Cluster
from beamhub.credits import correct
from beamhub.engine import Engine
from beamhub.jobs import Jobs
from beamhub.runners import Runner
from beamhub.runners.slurm import SlurmRunner, SlurmSettings
from beamhub.schemas import Attempt, Job, JobCancel, JobState, LedgerKind, NodeState, Profile, SlurmOptions
from beamhub.store import Transaction
from beamhub.testing import running_service
from beamhub.testing_slurm import running_cluster
from beamhub_hub.processes import end_stale
from traitlets import TraitError

from tests.conftest import StartDemo
from tests.integration.laboratory import ADA, GIB, LABEL, SLEEP, Lab, condition, processes, template

SLURM = {"memory": GIB, "walltime": 600, "runner": "slurm"}
PROFILES = [
    Profile.model_validate(profile)
    for profile in (
        {"name": "one", "title": "1 CPU", "cpus": 1, **SLURM},
        {"name": "node", "title": "a node", "cpus": 2, **SLURM},
        {"name": "urgent", "title": "1 CPU", "cpus": 1, **SLURM, "slurm": {"partition": "urgent"}},
        {"name": "wrong", "title": "1 CPU", "cpus": 1, **SLURM, "slurm": {"partition": "none"}},
        {"name": "local", "title": "1 CPU", "cpus": 1, "memory": 4 * GIB, "walltime": 600},
    )
]
WAIT = "import time\nprint('waiting', flush=True)\ntime.sleep(600)"


class SlurmLab(Lab):
    """A lab whose jobs run on a cluster, unless they are to run on this machine."""

    def __init__(self, folder: Path, cluster: Cluster, url: str = "") -> None:
        super().__init__(folder, url)
        self.cluster = cluster
        self.jobs = Jobs(self.store, self.catalogue, PROFILES, self.data_dir)

    def slurm(self, **settings: Any) -> SlurmRunner:
        known = {"conf": self.cluster.conf, "interval": 0.5, "patience": 1.0}
        return SlurmRunner(
            SlurmSettings.model_validate(known | settings), self.folder / "state", self.data_dir
        )

    def both(self, **settings: Any) -> Engine:
        runners: dict[str, Runner] = {"local": self.runner(), "slurm": self.slurm(**settings)}
        return Engine(self.store, self.live, self.jobs, runners, self.data_dir)

    async def number(self, job: Job) -> str:
        """Slurm's own number of a job, when it has one."""

        async def handed_over() -> bool:
            task = self.store.read_sync(lambda tx: tx.jobs.task(job.id))
            return task is not None and task.runner_ref is not None

        await condition(handed_over)
        task = self.store.read_sync(lambda tx: tx.jobs.task(job.id))
        assert task
        assert task.runner_ref
        return str(task.runner_ref["slurm"])

    async def tried(self, job: Job, times: int) -> None:
        async def begun() -> bool:
            return self.store.read_sync(lambda tx: tx.attempts.count(job.id)) == times

        await condition(begun)

    async def ask(self, *argv: str) -> str:
        return await asyncio.to_thread(self.cluster.command, *argv)

    async def accounted(self, number: str) -> int:
        """CPU-seconds of the ended job that was first to have this number, as Slurm's own record has them."""
        told = await self.ask("sacct", "-c", "-X", "-n", "-P", "-j", number, "-o", "ElapsedRaw,NCPUS")
        elapsed, cpus = told.splitlines()[0].split("|")
        return int(elapsed) * int(cpus)

    async def waits_for(self, job: Job, text: str) -> Job:
        """The job when its reason has this text."""

        async def told() -> bool:
            now = await self.jobs.get(ADA, job.id)
            assert not now.state.ended, now.reason
            return text in now.reason

        await condition(told)
        return await self.jobs.get(ADA, job.id)

    async def ended(self, job: Job) -> Job:
        async def has_ended() -> bool:
            return (await self.jobs.get(ADA, job.id)).state.ended

        await condition(has_ended)
        return await self.jobs.get(ADA, job.id)

    def ledger(self, job: Job, kind: LedgerKind) -> list[int]:
        lines = self.store.read_sync(lambda tx: tx.licences.ledger("lab", after=None, limit=1000)).items
        return [line.cpu_seconds for line in reversed(lines) if line.job == job.id and line.kind == kind]


@pytest.fixture
async def lab(tmp_path: Path, slurm: Cluster, database_url: str) -> AsyncIterator[SlurmLab]:
    lab = SlurmLab(tmp_path, slurm, database_url)
    yield lab
    await lab.end()


@pytest.fixture
async def own_lab(tmp_path: Path, own_slurm: Cluster, database_url: str) -> AsyncIterator[SlurmLab]:
    """One whose cluster may be damaged."""
    lab = SlurmLab(tmp_path, own_slurm, database_url)
    yield lab
    await lab.end()


REPORT = """
import os, pathlib, socket
from beamhub import report

def reads(path):
    try:
        return pathlib.Path(path).read_text()[:60]
    except OSError as error:
        return type(error).__name__

root = pathlib.Path(data).parents[1]
print(label.encode().hex())
report.metric("own", reads(data))
report.metric("other", reads(str(root.parent / OTHER / "raw" / "lyso_master.h5")))
report.metric("networks", len(socket.if_nameindex()))
report.metric("cpus", report.cpus())
report.progress(0.5, "half way")
"""


async def test_jobs_run_on_the_cluster_and_here_side_by_side(lab: SlurmLab) -> None:
    template(lab.templates, "try_it", f"OTHER = {lab.other!r}", REPORT)
    async with lab.running(lab.both()):
        job = await lab.submit("try_it", "node", label=LABEL)
        urgent = await lab.submit("try_it", "urgent")
        local = await lab.submit("try_it", "local")
        wrong = await lab.submit("try_it", "wrong")
        number = await lab.number(job)
        shown = await lab.ask("scontrol", "show", "job", number)
        assert "Partition=urgent" in await lab.ask("scontrol", "show", "job", await lab.number(urgent))
        done = [await lab.until(one) for one in (job, urgent, local)]
        refused = await lab.until(wrong)
    assert [(one.state, one.reason) for one in done] == [(JobState.FINISHED, "")] * 3
    for one in done:
        assert {name: metric.value for name, metric in one.metrics.items()} == {
            "own": f"data of {lab.experiment}",
            "other": "FileNotFoundError",
            "networks": 1,
            "cpus": one.profile.cpus,
        }
        assert lab.kinds(one) == ["job.created", "job.queued", "job.running", "job.finished"]
        assert (one.progress.fraction, one.progress.step) == (1.0, "half way")
    assert (refused.state, refused.reason) == (
        JobState.FAILED,
        (
            "The job could not be started: Slurm refuses it: "
            "invalid partition specified: none; Invalid partition name specified."
        ),
    )
    # nothing of what people chose is Slurm's to see
    assert f"JobName=beamhub-{lab.slurm()._prefix.split('-')[1]}-{job.id}" in shown
    assert LABEL not in shown
    assert (await lab.jobs.log(ADA, job.id))[0] == f"{LABEL.encode().hex()}\n"
    assert done[0].cpu_seconds == await lab.accounted(number)
    lab.assert_settled(job, urgent, local, wrong)


async def test_a_job_is_cancelled_where_it_waits_and_where_it_runs(lab: SlurmLab) -> None:
    mark = f"{700 + os.getpid()}.125"
    template(lab.templates, "sleep", f"MARK = {mark!r}", SLEEP)
    async with lab.running(lab.both()):
        nodes = [await lab.submit("sleep", "node") for _ in range(2)]
        for node in nodes:
            await lab.says(node, "sleeping")
        assert processes(mark)
        waiting = await lab.submit("sleep", "node")
        told = await lab.waits_for(waiting, "Waits for free CPUs and memory in Slurm; it probably starts at ")
        assert told.state is JobState.QUEUED
        state = await lab.slurm().state()
        assert (state.cpus, state.free, state.cold, state.nodes) == (4, 0, 0, {NodeState.BUSY: 2})
        estimate = await lab.slurm().estimate(PROFILES[1], "sim-mx")
        assert estimate
        assert estimate - datetime.now(UTC) > timedelta(minutes=5)  # both nodes are taken for ten
        with pytest.raises(OSError, match="invalid partition"):
            await lab.slurm().estimate(PROFILES[3], "sim-mx")
        assert (await lab.jobs.cancel(ADA, waiting.id, JobCancel())).state is JobState.QUEUED
        gone = await lab.until(waiting)
        assert (gone.state, gone.reason, gone.cpu_seconds) == (JobState.CANCELLED, "Cancelled by ada.", 0)
        numbers = [await lab.number(node) for node in nodes]
        await lab.jobs.cancel(ADA, nodes[0].id, JobCancel(reason="wrong sample"))
        await lab.ask("scancel", numbers[1])  # by hand
        ended = [await lab.until(node) for node in nodes]
        assert processes(mark) == []
    assert [(one.state, one.reason) for one in ended] == [
        (JobState.CANCELLED, "Cancelled by ada: wrong sample."),
        (JobState.FAILED, "It was cancelled in Slurm, not here."),
    ]
    assert [one.cpu_seconds for one in ended] == [await lab.accounted(number) for number in numbers]
    lab.assert_settled(waiting, *nodes)


EAT = """
import multiprocessing, time

def eat():
    much = bytearray(b"x") * 400_000_000
    time.sleep(600)

for _ in range(4):
    multiprocessing.get_context("fork").Process(target=eat).start()
time.sleep(600)
"""


async def test_limits_of_time_and_memory_end_a_job(lab: SlurmLab) -> None:
    template(lab.templates, "wait", WAIT)
    template(lab.templates, "eat", EAT)
    async with lab.running(lab.both()):
        late, large = await lab.submit("wait", "one"), await lab.submit("eat", "one")
        await lab.says(late, "waiting")
        number = await lab.number(late)
        await lab.ask("scontrol", "update", f"JobId={number}", "EndTime=now")  # its minutes are over
        large, late = await lab.until(large), await lab.until(late)
    assert (large.state, large.reason) == (
        JobState.FAILED,
        "It used more than 1 GiB of memory: choose a profile with more.",
    )
    assert (late.state, late.reason) == (JobState.FAILED, "It reached its time limit of 10 min.")
    assert late.cpu_seconds == await lab.accounted(number)
    lab.assert_settled(late, large)


COUNT = """
import os, time
with open("runs.txt", "a") as runs:
    runs.write("once\\n")
print("begun", flush=True)
while not os.path.exists(data.replace("lyso_master.h5", "go")):
    time.sleep(0.02)
"""


async def test_a_node_that_fails_costs_an_attempt_and_not_the_job(own_lab: SlurmLab) -> None:
    lab = own_lab
    template(lab.templates, "count", COUNT)
    async with lab.running(lab.both()):
        job = await lab.submit("count", "one")
        await lab.says(job, "begun")
        number = await lab.number(job)
        shown = json.loads(await lab.ask("squeue", "--json"))
        [node] = {one["nodes"] for one in shown["jobs"]}
        await asyncio.to_thread(lab.cluster.kill, node)
        await lab.ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=dead")
        await lab.until(job, JobState.PENDING)

        async def elsewhere() -> bool:
            return await lab.number(job) != number

        await condition(elsewhere)
        await lab.says(job, "begun")
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        done = await lab.ended(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert lab.kinds(job) == [
        *("job.created", "job.queued", "job.running"),
        *("job.pending", "job.queued", "job.running", "job.finished"),
    ]
    numbers = (number, str(int(number) + 1))
    attempts = [await lab.accounted(one) for one in numbers]
    assert lab.ledger(job, LedgerKind.CHARGE) == [used for used in attempts if used]
    assert done.cpu_seconds == sum(attempts)
    assert lab.ledger(job, LedgerKind.HOLD) == [600, 600]
    assert sum(lab.ledger(job, LedgerKind.RELEASE)) == 1200 - sum(attempts)


async def test_an_attempt_that_wakes_up_after_it_was_given_up_changes_nothing(own_lab: SlurmLab) -> None:
    lab = own_lab
    template(lab.templates, "count", COUNT)
    async with lab.running(lab.both()):
        job = await lab.submit("count", "one")
        await lab.says(job, "begun")
        number, folder = await lab.number(job), lab.data_dir / lab.experiment / job.folder
        shown = json.loads(await lab.ask("squeue", "--json"))
        [node] = {one["nodes"] for one in shown["jobs"]}
        asleep = processes(str(folder))
        for pid in (lab.cluster._processes[node].pid, *asleep):
            os.kill(pid, signal.SIGSTOP)
        await lab.until(job, JobState.PENDING)  # when Slurm has waited for long enough for the node

        async def elsewhere() -> bool:
            return await lab.number(job) != number

        await condition(elsewhere)
        await lab.says(job, "begun")
        second = (folder / "runs.txt").stat().st_ino
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        for pid in asleep:
            os.kill(pid, signal.SIGCONT)

        async def over() -> bool:
            return not processes(str(folder))

        await condition(over)
        done = await lab.ended(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (folder / "runs.txt").read_text() == "once\n"
    assert (folder / "runs.txt").stat().st_ino == second
    assert lab.kinds(job).count("job.finished") == 1
    attempts = [await lab.accounted(one) for one in (number, str(int(number) + 1))]
    assert lab.ledger(job, LedgerKind.CHARGE) == [used for used in attempts if used]


async def test_a_job_that_makes_room_for_another_runs_again(lab: SlurmLab) -> None:
    template(lab.templates, "count", COUNT)
    template(lab.templates, "try_it", "1")
    async with lab.running(lab.both()):
        jobs = [await lab.submit("count", "node") for _ in range(2)]
        for job in jobs:
            await lab.says(job, "begun")
        urgent = await lab.until(await lab.submit("try_it", "urgent"))
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        done = [await lab.ended(job) for job in jobs]
    assert urgent.state is JobState.FINISHED
    assert [one.state for one in done] == [JobState.FINISHED] * 2
    events = lab.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    [pending] = [event for event in events if event.kind == "job.pending"]
    assert pending.data["reason"] == (
        "Slurm ended it to make room for a job of higher priority. It is started again."
    )
    [again] = [job for job in done if str(job.id) == pending.subject]
    assert lab.ledger(again, LedgerKind.HOLD) == [1200, 1200]
    assert sum(lab.ledger(again, LedgerKind.CHARGE)) == again.cpu_seconds


async def test_a_node_that_is_switched_off_is_waited_for(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "slurm", power_saving=True) as own:
        lab = SlurmLab(tmp_path, own)
        template(lab.templates, "try_it", "1")
        await lab.ask("scontrol", "update", "NodeName=n1,n2", "State=POWER_DOWN")

        async def off() -> bool:
            return (await lab.ask("sinfo", "-h", "-p", "normal", "-o", "%t")).split() == ["idle~"]

        await condition(off)
        state = await lab.slurm().state()
        assert (state.cpus, state.free, state.cold, state.nodes) == (4, 0, 4, {NodeState.OFF: 2})
        async with lab.running(lab.both()):
            job = await lab.submit("try_it", "node")
            told = await lab.waits_for(job, "which is being switched on.")
            assert told.state is JobState.QUEUED
            await lab.jobs.cancel(ADA, job.id, JobCancel())
            gone = await lab.ended(job)
            assert gone.state is JobState.CANCELLED
            assert gone.cpu_seconds == await lab.accounted(await lab.number(job))  # as Slurm counts it
        await asyncio.to_thread(lab.store.close)


async def test_while_the_controller_is_away_jobs_stay_as_they_are(own_lab: SlurmLab) -> None:
    lab = own_lab
    template(lab.templates, "count", COUNT)
    async with lab.running(lab.both(timeout=1.0)):
        job, other = await lab.submit("count", "one"), await lab.submit("count", "node")
        await lab.says(job, "begun")
        await lab.says(other, "begun")
        await asyncio.to_thread(lab.cluster.stop_controller)
        late = await lab.submit("count", "one")
        for one, state in ((job, JobState.RUNNING), (late, JobState.QUEUED)):
            told = await lab.waits_for(one, "Slurm has not answered since")
            assert (told.state, told.reason.endswith("; its jobs are as they were.")) == (state, True)
        local = await lab.submit("count", "local")  # is in nobody's way
        await lab.says(local, "begun")
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        await asyncio.to_thread(lab.cluster.start_controller)
        done = [await lab.until(one) for one in (job, other, late, local)]
    assert [(one.state, one.reason) for one in done] == [(JobState.FINISHED, "")] * 4
    for one in done:
        assert (lab.data_dir / lab.experiment / one.folder / "runs.txt").read_text() == "once\n"
    lab.assert_settled(*done)


async def test_what_slurm_says_later_corrects_what_was_charged(lab: SlurmLab) -> None:
    template(lab.templates, "try_it", "import time\ntime.sleep(1)")
    engine = lab.both()
    async with lab.running(engine):
        job = await lab.submit("try_it", "node")
        number = await lab.number(job)
        done = await lab.until(job)
        used = await lab.accounted(number)
        assert done.cpu_seconds == used
        await lab.store.write(lambda tx: correct(tx, job.id, 1, used + 100, actor="root"))
        await engine.audit("slurm")
        await engine.audit("slurm")
        assert (await lab.jobs.get(ADA, job.id)).cpu_seconds == used
        assert lab.ledger(job, LedgerKind.CORRECTION) == [100, -100]

        def number_is_given_again(tx: Transaction) -> None:
            correct(tx, job.id, 1, used + 100, actor="root")
            tx.attempts.begin(job.id, "slurm")
            tx.attempts.note(job.id, ref=f"slurm {number}")

        await lab.store.write(number_is_given_again)
        await engine.audit("slurm")  # by a controller that had lost its records, which tells of the second
        over = {"ended": datetime.now(UTC), "cpu_seconds": used}
        await lab.store.write(lambda tx: tx.attempts.note(job.id, **over))
        await engine.audit("slurm")
    tried = lab.store.read_sync(partial(attempts, job=job.id))
    assert [one.cpu_seconds for one in tried] == [used + 100, used]


@pytest.mark.parametrize("record", [True, False], ids=["with accounts", "without accounts"])
async def test_what_the_controller_has_forgotten_is_found_in_accounts_and_folders(
    tmp_path: Path, record: bool
) -> None:
    with running_cluster(tmp_path / "slurm", record=record) as own:
        lab = SlurmLab(tmp_path, own)
        await forgotten(lab, record=record)
        await asyncio.to_thread(lab.store.close)


def attempts(tx: Transaction, job: int) -> Sequence[Attempt]:
    return tx.attempts.of_job(job)


async def forgotten(lab: SlurmLab, *, record: bool) -> None:
    template(lab.templates, "count", COUNT)
    template(lab.templates, "again", COUNT.replace('"go"', '"go again"'))
    async with lab.running(lab.both()):
        ended, lost = await lab.submit("count", "node"), await lab.submit("again", "one")
        for job in (ended, lost):
            await lab.says(job, "begun")
        number = await lab.number(ended)
        waiting = await lab.submit("again", "node")  # for which there is no room
        queued = await lab.number(waiting)

        async def let_go() -> bool:
            return "JobHeldUser" not in await lab.ask("squeue", "-h", "-o", "%r", "-j", queued)

        await condition(let_go)
    await lab.ask("scontrol", "hold", queued)  # nor will there be; an engine that saw it would let it go

    async def costs() -> bool:
        return (await lab.ask("squeue", "-h", "-o", "%M", "-j", number)).strip() != "0:00"

    await condition(costs)  # a run of less than a second is free
    (lab.data_dir / lab.experiment / "raw" / "go").touch()  # nobody looks

    async def written() -> bool:
        return (lab.data_dir / lab.experiment / ended.folder / "result.json").exists()

    async def completed() -> bool:
        return "COMPLETED" in await lab.ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", number)

    await condition(written)
    await condition(completed)
    await asyncio.to_thread(lab.cluster.forget)
    folder = lab.data_dir / lab.experiment / lost.folder

    async def ended_by_its_node() -> bool:
        return not processes(str(folder))

    await condition(ended_by_its_node)  # which takes a new job of this number for the old one until then
    async with lab.running(lab.both(silence=1.0)):
        done = await lab.until(ended)
        for job in (lost, waiting):
            await lab.tried(job, 2)
            await lab.says(job, "begun")
        (lab.data_dir / lab.experiment / "raw" / "go again").touch()
        again = [await lab.ended(job) for job in (lost, waiting)]
    for one in (done, *again):
        assert (one.state, one.reason) == (JobState.FINISHED, "")
        assert (lab.data_dir / lab.experiment / one.folder / "runs.txt").read_text() == "once\n"
    assert done.cpu_seconds > 0
    if record:
        assert done.cpu_seconds == await lab.accounted(number)
    for one, ran in zip(again, (True, False), strict=True):
        first, second = lab.store.read_sync(partial(attempts, job=one.id))
        assert (first.outcome, second.outcome) == ("interrupted", "finished")
        assert first.reason == (
            "Slurm does not know this job any more, and it has left no result. It is started again."
        )
        assert (first.cpu_seconds > 0) == ran
        assert one.cpu_seconds == first.cpu_seconds + second.cpu_seconds
        assert lab.ledger(one, LedgerKind.CHARGE) == [n for n in (first.cpu_seconds, second.cpu_seconds) if n]
    lab.assert_settled(ended)
    licence = lab.store.read_sync(lambda tx: tx.licences.get("lab"))
    assert licence
    assert licence.held == 0


VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from beamhub.engine import Engine
from beamhub.events import Live
from beamhub.jobs import Jobs
from beamhub.runners.slurm import SlurmRunner, SlurmSettings
from beamhub.store import Store
from beamhub.catalogue import Catalogue

class Victim(SlurmRunner):
    async def prepare(self, *args):
        await super().prepare(*args)
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
store = Store(sys.argv[2])
jobs = Jobs(store, Catalogue([folder / "templates"]), [], folder / "data")
runner = Victim(SlurmSettings(conf=sys.argv[3]), folder / "state", folder / "data")
asyncio.run(Engine(store, Live(), jobs, {"slurm": runner}, folder / "data").schedule("slurm"))
"""


async def submitted(lab: SlurmLab, job: Job) -> list[str]:
    """Slurm's numbers of all that was ever submitted for a job and that it knows."""
    rows = (await lab.ask("squeue", "-h", "-t", "all", "-o", "%i|%j")).splitlines()
    prefix = lab.slurm()._prefix
    return sorted(row.split("|")[0] for row in rows if row.endswith(f"|{prefix}{job.id}"))


async def test_a_service_killed_between_submitting_and_remembering_submits_once(lab: SlurmLab) -> None:
    template(lab.templates, "count", COUNT)
    (lab.data_dir / lab.experiment / "raw" / "go").touch()
    job = await lab.submit("count", "one")
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", VICTIM, str(lab.folder), lab.url, str(lab.cluster.conf)),
        stdin=subprocess.DEVNULL,
    )
    assert await victim.wait() == -signal.SIGKILL
    [number] = await submitted(lab, job)
    async with lab.running(lab.both()):
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (lab.data_dir / lab.experiment / job.folder / "runs.txt").read_text() == "once\n"
    assert await submitted(lab, job) == [number]
    lab.assert_settled(job)


async def test_what_was_submitted_for_a_job_that_is_no_longer_wanted_is_removed(
    lab: SlurmLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beamhub.runners.slurm.STRAY", -1.0)
    template(lab.templates, "count", COUNT)
    job = await lab.submit("count", "one")
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", VICTIM, str(lab.folder), lab.url, str(lab.cluster.conf)),
        stdin=subprocess.DEVNULL,
    )
    await victim.wait()
    await lab.jobs.cancel(ADA, job.id, JobCancel())
    [number] = await submitted(lab, job)
    async with lab.running(lab.both()):

        async def removed() -> bool:
            return "CANCELLED" in await lab.ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", number)

        await condition(removed)
    lab.assert_settled(job)


async def test_what_was_prepared_and_is_no_longer_there_is_not_taken_for_it(lab: SlurmLab) -> None:
    """Another service has been on duty meanwhile, and has dealt with it."""
    template(lab.templates, "count", COUNT)
    engine = lab.both()
    runner = engine._runners["slurm"]
    job = await lab.submit("count", "one")
    first = await engine._prepare(runner, job)
    assert await engine._prepare(runner, job) == first
    await lab.ask("scancel", str(first["slurm"]))
    second = await engine._prepare(runner, job)
    assert await submitted(lab, job) == sorted(str(ref["slurm"]) for ref in (first, second))
    await runner.cancel(second)


async def test_a_job_that_is_requeued_by_hand_goes_on(lab: SlurmLab) -> None:
    """One job of Slurm is one attempt: it may not be run again under the same number."""
    template(lab.templates, "count", COUNT)
    async with lab.running(lab.both()):
        job = await lab.submit("count", "one")
        await lab.says(job, "begun")
        number = await lab.number(job)
        with pytest.raises(subprocess.CalledProcessError):
            await lab.ask("scontrol", "requeue", number)
        (lab.data_dir / lab.experiment / "raw" / "go").touch()
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (lab.data_dir / lab.experiment / job.folder / "runs.txt").read_text() == "once\n"
    assert done.cpu_seconds == await lab.accounted(number)
    lab.assert_settled(job)


async def test_a_submission_that_seemed_to_fail_is_found_again(lab: SlurmLab) -> None:
    """`sbatch` succeeds, and does not come back to say so."""
    template(lab.templates, "count", COUNT)
    (lab.data_dir / lab.experiment / "raw" / "go").touch()
    programs = lab.folder / "programs"
    programs.mkdir()
    calls = lab.folder / "calls"
    (programs / "sbatch").write_text(f'#!/bin/sh\n/usr/bin/sbatch "$@"\necho once >> {calls}\nsleep 60\n')
    (programs / "sbatch").chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    async with lab.running(lab.both(timeout=2.0, path=path)):
        job = await lab.submit("count", "one")
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert calls.read_text() == "once\n"
    assert len(await submitted(lab, job)) == 1
    lab.assert_settled(job)


def test_a_service_that_was_killed_finds_its_jobs_on_the_cluster_again(
    tmp_path: Path, slurm: Cluster
) -> None:
    settings = {
        "profiles": [profile.model_dump() for profile in PROFILES],
        "slurm": {"conf": str(slurm.conf), "interval": 0.5},
    }
    with running_service(tmp_path / "service", **settings) as service:
        beamtime = service.beamtime()
        dataset, licence = service.dataset(beamtime), service.licence(beamtime)
        ada = service.client("ada")
        template(service.folder / "templates", "count", COUNT)
        job = ada.submit(beamtime.experiment, "count", dataset.id, sponsor=licence, profile="one")
        while "begun" not in ada.job_log(job.id)[0]:
            assert not ada.job(job.id).state.ended
        service.kill()
        service.start()
        experiment = service.data_dir / beamtime.experiment
        (experiment / "raw" / "go").touch()
        done = ada.wait(job.id)
        assert (done.state, done.reason) == (JobState.FINISHED, "")
        assert (experiment / done.folder / "runs.txt").read_text() == "once\n"
        paid = service.client("operator").licence(licence)
        assert (paid.held, paid.charged) == (0, done.cpu_seconds)


def test_the_demo_has_a_slurm_of_its_own_that_ends_with_it(start_demo: StartDemo, tmp_path: Path) -> None:
    if reason := cluster.missing():
        pytest.skip(reason)
    state = tmp_path / "demo"
    demo = start_demo("--slurm", "--no-acquisition", state=state)
    conf = state / "cluster" / "slurm.conf"
    nodes = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=normal", "--format=%N %T"],
        env=os.environ | {"SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert nodes.stdout.splitlines() == ["n1 idle", "n2 idle"]
    profiles = {profile.name: profile.runner for profile in demo.client("ada").profiles()}
    assert (profiles["cpu-1"], profiles["here-1"]) == ("slurm", "local")
    demo.acquire("--prefix=cluster", "--frames=4", "--rate=4").wait()
    ada, experiment = demo.client("ada"), demo.credentials.experiment
    next(event for event in ada.events(experiment, last_id=0) if event.kind == "job.created")
    done = ada.wait(list(ada.jobs(experiment))[-1].id)
    assert (done.template, done.state, done.reason) == ("fast_feedback", JobState.FINISHED, "")
    [attempt] = ada.attempts(done.id)
    assert (attempt.runner, attempt.ref.split()[0]) == ("slurm", "slurm")
    completed = subprocess.run(
        ["squeue", "--noheader", "--states=all", f"--jobs={attempt.ref.split()[1]}", "--format=%T"],
        env=os.environ | {"SLURM_CONF": str(conf)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.split() == ["COMPLETED"]
    demo.end()
    assert end_stale(state) == 0  # nothing was left to end


def test_wrong_settings_are_refused_with_what_is_wrong() -> None:
    one = PROFILES[0].model_dump()
    for wrong, what in (
        ({"profiles": [one | {"cpus": 0}]}, "greater than or equal to 1"),
        ({"profiles": [one, one]}, "has a name twice: one, one"),
        ({"profiles": [one | {"slurm": {"partition": "a b"}}]}, "partition"),
        ({"slurm": {"partition": "day"}}, "partition"),
        ({"slurm": {"instruments": {"sim-mx": {"reservation": "--all"}}}}, "reservation"),
    ):
        with pytest.raises(TraitError, match=what):
            BeamhubApp(**wrong)


async def test_a_job_of_a_cluster_that_is_gone_from_the_configuration_fails(lab: SlurmLab) -> None:
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it", "one")
    async with lab.running(lab.engine()):  # on this machine only
        done = await lab.until(job)
    assert (done.state, done.reason) == (
        JobState.FAILED,
        "There is no runner 'slurm' here any more: choose another profile.",
    )
    lab.assert_settled(job)


async def test_any_number_of_jobs_is_looked_after_with_one_question(lab: SlurmLab) -> None:
    programs = lab.folder / "programs"
    programs.mkdir()
    calls = lab.folder / "calls"
    for name in ("squeue", "sacct", "scontrol"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} >> {calls}\nexec /usr/bin/{name} "$@"\n')
        (programs / name).chmod(0o755)
    runner = lab.slurm(path=f"{programs}:{os.environ['PATH']}")
    (lab.folder / "sleep.sh").write_text("#!/bin/sh\nsleep 600\n")
    submit = ("sbatch", "--parsable", "--cpus-per-task=1", "--mem=10", f"{lab.folder}/sleep.sh")
    refs: list[dict[str, Any]] = []
    for n in range(20):
        name = f"{runner._prefix}{1000 + n}"
        number = int(await lab.ask(*submit[:1], f"--job-name={name}", "--output=/dev/null", *submit[1:]))
        refs.append({"slurm": number, "name": name, "folder": str(lab.folder), "walltime": 1, "memory": GIB})
    statuses = await runner.poll(refs)
    assert {status.phase for status in statuses} <= {"waiting", "running"}
    assert calls.read_text() == "squeue\n"
    for ref in refs:
        await runner.cancel(ref)


def test_options_of_a_profile_are_words_of_slurm() -> None:
    assert SlurmOptions(partition="gpu,cpu", account="mx.lab", constraint="a100&nvlink").qos == ""
    for wrong in ("a b", "--wrap=id", "x;id", "$(id)", "x\ny", "a/b"):
        with pytest.raises(ValueError):
            SlurmOptions(partition=wrong)


def test_the_doctor_asks_munge_and_the_controller(own_slurm: Cluster) -> None:
    assert checkup.munge(own_slurm.conf).fine
    assert checkup.slurm(own_slurm.conf).fine
    own_slurm.stop()
    assert not checkup.munge(own_slurm.conf).fine
