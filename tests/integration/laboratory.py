"""What the tests of jobs have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from beamhub.access import Principal
from beamhub.catalogue import Catalogue
from beamhub.credits import grant
from beamhub.engine import Engine
from beamhub.events import Feed, Live, emit
from beamhub.jobs import Jobs
from beamhub.licences import Licences
from beamhub.rules import Rules
from beamhub.runners import Phase, Runner
from beamhub.runners.local import LocalRunner
from beamhub.schemas import (
    Event,
    ExperimentState,
    InstrumentCreate,
    Job,
    JobCreate,
    JobState,
    LicenceCreate,
    Profile,
    Role,
    TriggerCreate,
    TriggerEvent,
)
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Task

from tests.records import rotation

ADA = Principal("ada", "user")  # PI
BEN = Principal("ben", "user")  # viewer
SAM = Principal("sam", "user")  # staff
EVE = Principal("eve", "user")  # nobody here
OPERATOR = Principal("root", "user", operator=True)
GIB = 1024**3
PROFILES = [
    Profile(name="cpu-1", title="1 CPU", cpus=1, memory=4 * GIB, walltime=600),
    Profile(name="cpu-2", title="2 CPUs", cpus=2, memory=8 * GIB, walltime=600),
    Profile(name="brief", title="1 CPU, briefly", cpus=1, memory=4 * GIB, walltime=1),
    Profile(name="small", title="1 CPU, little memory", cpus=1, memory=GIB, walltime=600),
]


def template(folder: Path, name: str, *cells: str, live: bool = False) -> None:
    """A template with two parameters, `n` and `label`."""
    v4: Any = nbformat.v4
    properties = {
        "n": {"type": "integer", "title": "N", "description": "A number.", "default": 1},
        "label": {"type": "string", "title": "Label", "description": "A text.", "default": ""},
    }
    notebook = v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "beamhub": {
                "title": name.capitalize(),
                "technique": "testing",
                "description": "For a test.",
                "live": live,
                "parameters": {"type": "object", "additionalProperties": False, "properties": properties},
            },
        },
        cells=[
            v4.new_code_cell("data = ''\ncpus = 1\nn = 1\nlabel = ''", metadata={"tags": ["parameters"]}),
            *(v4.new_code_cell(cell) for cell in cells),
        ],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(v4.writes(notebook))


class Lab:
    """An instrument, two experiments, a dataset, a licence, and an engine that can be switched on."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.templates = folder / "templates"
        self.url = url or f"sqlite:///{folder / 'beamhub.db'}"
        self.store = Store(self.url)
        self.store.migrate()
        self.feed = Feed(self.store)
        self.live = Live()
        self.catalogue = Catalogue([self.templates])
        self.jobs = Jobs(self.store, self.catalogue, PROFILES, self.data_dir)
        self.rules = Rules(self.store, self.catalogue, PROFILES)
        self.licences = Licences(self.store)
        self.experiment, self.other, self.dataset = self.store.write_sync(self._found)
        for experiment in (self.experiment, self.other):
            for area in ("raw", "processed", "shared", ".incoming"):
                (self.data_dir / experiment / area).mkdir(parents=True)
            (self.data_dir / experiment / "raw" / "lyso_master.h5").write_text(f"data of {experiment}")
            (self.data_dir / experiment / ".incoming" / "half").write_text("half a file")

    def _found(self, tx: Transaction) -> tuple[str, str, int]:
        tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
        experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
        other = tx.experiments.create("sim-mx", "Secret", "eve")
        tx.experiments.change(experiment, state=ExperimentState.RUNNING)
        tx.instruments.change("sim-mx", active_experiment=experiment)
        tx.members.add(experiment, "ada", Role.PI, "sam")
        tx.members.add(experiment, "ben", Role.VIEWER, "sam")
        tx.members.add(other, "eve", Role.PI, "sam")
        lab = LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"])
        tx.licences.create(lab)
        grant(tx, "lab", 100 * 3600, actor="root")
        dataset = rotation(tx, experiment, "lyso", frames=100)
        return experiment, other, dataset

    def engine(self, runner: Runner | None = None) -> Engine:
        return Engine(self.store, self.live, self.jobs, {"local": runner or self.runner()}, self.data_dir)

    def runner(self, kind: type[LocalRunner] = LocalRunner) -> LocalRunner:
        return kind(2, self.folder / "state", self.data_dir, warm=False)

    @contextlib.asynccontextmanager
    async def running(self, engine: Engine | None = None) -> AsyncIterator[None]:
        task = asyncio.create_task((engine or self.engine()).run_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def running_ready(self, ready: int = 1) -> AsyncIterator[LocalRunner]:
        """With so many interpreters that wait for jobs of the experiment."""
        self.store.write_sync(lambda tx: tx.instruments.change("sim-mx", active_experiment=self.experiment))
        runner = LocalRunner(2, self.folder / "state", self.data_dir, warm=False, ready=ready)

        async def wait() -> bool:
            return runner.pool.ready(self.data_dir / self.experiment) == ready

        async with self.running(self.engine(runner)):
            await condition(wait)
            yield runner

    async def end(self) -> None:
        """Nothing of it lives on, whatever a test that failed has left."""
        for pid in processes(str(self.folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(self.store.close)

    async def submit(self, name: str, profile: str = "cpu-1", **parameters: Any) -> Job:
        request = JobCreate(
            template=name, parameters=parameters, inputs=[self.dataset], profile=profile, sponsor="lab"
        )
        return await self.jobs.submit(ADA, self.experiment, request)

    async def until(self, job: Job, *states: JobState) -> Job:
        """The job when it has come to one of these states, or has ended."""
        async for event in self.feed.follow(0):
            if event.kind.startswith("job.") and event.subject == str(job.id):
                state = event.kind.removeprefix("job.")
                if state != "created" and (state in states or JobState(state).ended):
                    break
        return await self.jobs.get(ADA, job.id)

    async def says(self, job: Job, text: str) -> None:
        """Until the job's log has this text."""

        async def said() -> bool:
            now = await self.jobs.get(ADA, job.id)
            assert not now.state.ended, now.reason
            return text in (await self.jobs.log(ADA, job.id))[0]

        await condition(said)

    def kinds(self, job: Job) -> list[str]:
        def work(tx: Transaction) -> list[str]:
            events = tx.events.after(0, limit=1000)
            return [one.kind for one in events if one.subject == str(job.id) and one.kind.startswith("job.")]

        return self.store.read_sync(work)

    def assert_settled(self, *jobs: Job) -> None:
        """Each hold was charged or released exactly once, and nothing is held any more."""

        def work(tx: Transaction) -> None:
            lines = tx.licences.ledger("lab", after=None, limit=1000).items
            for job in jobs:
                amounts = {
                    kind: [line.cpu_seconds for line in lines if line.job == job.id and line.kind == kind]
                    for kind in ("hold", "charge", "release")
                }
                now = tx.jobs.get(job.id)
                assert now
                assert len(amounts["hold"]) == 1
                assert amounts["charge"] == ([now.cpu_seconds] if now.cpu_seconds else [])
                assert len(amounts["release"]) <= 1
                assert sum(amounts["hold"]) == sum(amounts["charge"]) + sum(amounts["release"])
            licence = tx.licences.get("lab")
            assert licence
            assert licence.held == 0
            assert licence.charged == sum(line.cpu_seconds for line in lines if line.kind == "charge")

        self.store.read_sync(work)

    def told(self, kind: str) -> Event:
        """A new event about the dataset."""
        return self.store.write_sync(
            lambda tx: emit(
                tx,
                kind,
                actor="sim-mx",
                instrument="sim-mx",
                experiment=self.experiment,
                subject=str(self.dataset),
            )
        )


async def condition(holds: Callable[[], Awaitable[bool]]) -> None:
    """Until it holds."""
    while not await holds():  # noqa: ASYNC110 (what it waits for happens in other processes)
        await asyncio.sleep(0.02)


def processes(marker: str) -> list[int]:
    """The living processes that have this text in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


LABEL = (
    '\'); raise SystemExit #\n""" {data} %s \\ \N{RIGHT-TO-LEFT OVERRIDE}Å'  # text, whatever it looks like
)
SLEEP = """
import subprocess, time
subprocess.Popen(["setsid", "sleep", MARK])
print("sleeping", flush=True)
time.sleep(600)
"""
ENGINE = """
import asyncio, sys
from pathlib import Path
from beamhub.engine import Engine
from beamhub.events import Live
from beamhub.jobs import Jobs
from beamhub.runners.local import LocalRunner
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import Profile
from beamhub.store import Store
from beamhub.catalogue import Catalogue

folder = Path(sys.argv[1])
store = Store(sys.argv[2])
jobs = Jobs(store, Catalogue([folder / "templates"]), [], folder / "data")
runner = LocalRunner(2, folder / "state", folder / "data", warm=False)
asyncio.run(Engine(store, Live(), jobs, {"local": runner}, folder / "data").run_forever())
"""
COUNT = """
import time
with open("runs.txt", "a") as runs:
    runs.write("once\\n")
print("begun", flush=True)
while not __import__("os").path.exists(data.replace("lyso_master.h5", "go")):
    time.sleep(0.02)
"""


async def rule(lab: Lab, name: str, **changes: Any) -> None:
    request = TriggerCreate.model_validate(
        {
            "title": "All",
            "event": TriggerEvent.DATASET_COMPLETE,
            "template": name,
            "profile": "cpu-1",
            "sponsor": "lab",
        }
        | changes
    )
    await lab.rules.create(SAM, "sim-mx", request)


def made(lab: Lab) -> Sequence[Job]:
    page = lab.store.read_sync(lambda tx: tx.jobs.list(only=None, after=None, limit=100))
    return sorted(page.items, key=lambda job: job.id)


async def gone(runner: LocalRunner, task: Task) -> None:
    async def is_gone() -> bool:
        return (await runner.poll([task.runner_ref or {}]))[0].phase is Phase.GONE

    await condition(is_gone)
