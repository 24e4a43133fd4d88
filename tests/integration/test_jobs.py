"""Jobs from the wish to the result: real notebooks, in real sandboxes, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from beamhub.access import Principal
from beamhub.credits import Licences, grant
from beamhub.engine import CURSOR, FAR, Engine
from beamhub.errors import Conflict, Forbidden, Invalid, NotFound
from beamhub.events import Feed, Live, Message, emit
from beamhub.jobs import Jobs
from beamhub.jobstate import admit, change, remember
from beamhub.rules import Rules
from beamhub.runners import Phase, Runner, Status
from beamhub.runners.local import LocalRunner
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import (
    DatasetKind,
    DatasetState,
    Event,
    ExperimentState,
    Grant,
    InstrumentCreate,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobRerun,
    JobSpec,
    JobState,
    LabTerms,
    LicenceCreate,
    Profile,
    Role,
    SponsorshipRule,
    TriggerChange,
    TriggerCondition,
    TriggerCreate,
    TriggerEvent,
    Upload,
    UploadState,
)
from beamhub.store import Store, Transaction
from beamhub.store.jobs import Task
from beamhub.templates import Catalogue
from beamhub.triggers import JobRequest
from sqlalchemy.event import listen

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
        dataset = tx.datasets.create(
            experiment=experiment,
            name="lyso",
            path="raw/lyso_master.h5",
            format="nxmx",
            open_ended=False,
            kind=DatasetKind.ROTATION,
            frames_announced=100,
            shape=(10, 10),
            metadata={},
            files=[],
        )
        return experiment, other, dataset.id

    def engine(self, runner: Runner | None = None) -> Engine:
        return Engine(self.store, self.live, self.jobs, {"local": runner or self.runner()}, self.data_dir)

    def runner(self, kind: type[LocalRunner] = LocalRunner) -> LocalRunner:
        return kind(2, self.folder / "state", self.data_dir, warm=False)

    @contextlib.asynccontextmanager
    async def running(self, engine: Engine | None = None) -> AsyncIterator[None]:
        task = asyncio.create_task((engine or self.engine()).run_forever())
        yield
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


@pytest.fixture
async def lab(tmp_path: Path, database_url: str) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path, database_url)
    yield lab
    await asyncio.to_thread(lab.store.close)


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
REPORT = """
from beamhub import report
print("n is", n)
print(label.encode().hex())
report.progress(0.5, "half way")
report.metric("spots", 12 * n)
report.metric("resolution", 1.5, "Å")
for frame in range(3):
    report.series("per_frame", units={"frame": "", "spots": ""}, frame=frame, spots=frame * n)
with open("scaled.mtz", "w") as file:
    file.write("reflections")
report.artifact("scaled.mtz", "Scaled intensities")
assert open(data).read().startswith("data of")
assert cpus == report.cpus() == 1
"""


READY = pytest.mark.parametrize("ready", [False, True], ids=["interpreter starts", "interpreter waits"])


@READY
async def test_a_job_finishes_and_all_it_reported_is_there(lab: Lab, ready: bool) -> None:
    template(lab.templates, "try_it", REPORT)
    with lab.live.subscribe() as queue:
        async with lab.running_ready() if ready else lab.running():
            job = await lab.submit("try_it", n=3, label=LABEL)
            assert job.state is JobState.QUEUED
            done = await lab.until(job)
        messages: list[Message] = [queue.get_nowait() for _ in range(queue.qsize())]
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert done.parameters == {"n": 3, "label": LABEL}
    assert {name: (one.value, one.unit) for name, one in done.metrics.items()} == {
        "spots": (36, ""),
        "resolution": (1.5, "Å"),
    }
    assert (done.progress.fraction, done.progress.step) == (1.0, "half way")
    assert {one.path: one.size for one in done.artifacts}["scaled.mtz"] == 11
    assert done.started
    assert done.ended
    assert 0 < done.cpu_seconds <= (done.ended - done.started).total_seconds() + 1
    assert lab.kinds(job) == ["job.created", "job.queued", "job.running", "job.finished"]
    lab.assert_settled(job)

    assert (await lab.jobs.log(BEN, job.id))[0] == f"n is 3\n{LABEL.encode().hex()}\n"
    page = await lab.jobs.series(BEN, job.id, "per_frame", 1)
    assert page.items == [{"frame": 1, "spots": 3}, {"frame": 2, "spots": 6}]
    with await lab.jobs.open_notebook(BEN, job.id) as notebook:
        cells = json.load(notebook)["cells"]
    assert cells[2]["outputs"][0]["text"][0] == "n is 3\n"
    names = {file.path for file in await lab.jobs.files(BEN, job.id)}
    assert {"scaled.mtz", "log.txt", "result.json", "series/per_frame.jsonl"} <= names
    folder = lab.data_dir / lab.experiment / done.folder
    assert (folder / "scaled.mtz").stat().st_mode & 0o222 == 0
    assert folder.stat().st_mode & 0o222 == 0

    series = [message for message in messages if message.kind == "job.series"]
    assert [row for message in series for row in message.data["items"]] == [
        {"frame": frame, "spots": frame * 3} for frame in range(3)
    ]
    progress = [message.data for message in messages if message.kind == "job.progress"]
    assert progress[-1]["step"] == "half way"
    assert progress[-1]["metrics"]["spots"]["value"] == 36

    for look in (lab.jobs.log, lab.jobs.files, lab.jobs.open_notebook, lab.jobs.get):
        with pytest.raises(NotFound):
            await look(EVE, job.id)
    with pytest.raises(NotFound):
        await lab.jobs.open_file(BEN, job.id, "missing.txt")
    with pytest.raises(Conflict):
        await lab.jobs.cancel(ADA, job.id, JobCancel())


ESCAPE = """
import json, os, pathlib, socket, subprocess
from beamhub import report

def reads(path):
    try:
        return pathlib.Path(path).read_text()[:60] or "(empty)"
    except OSError as error:
        return type(error).__name__

def writes(path):
    try:
        pathlib.Path(path).write_text("mine")
        return "written"
    except OSError as error:
        return type(error).__name__

def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
        return "connected"
    except OSError as error:
        return type(error).__name__

root = pathlib.Path(data).parents[1]
report.metric("own", reads(data))
for name in ("other", "store", "half", "state"):
    report.metric(name, reads(json.loads(PATHS)[name]))
report.metric("compiled", reads(os.environ["NUMBA_CACHE_DIR"] + "/function"))
report.metric("own_cache", writes(os.environ["NUMBA_CACHE_DIR"] + "/function"))
report.metric("shared_cache", writes(json.loads(PATHS)["cache"]))
report.metric("raw", writes(root / "raw" / "new.h5"))
report.metric("shared", writes(root / "shared" / "new.txt"))
report.metric("port", connects(n))
report.metric("secrets", ",".join(sorted(name for name in os.environ if "TOKEN" in name or "SECRET" in name)))
report.metric("processes", sum(name.isdigit() for name in os.listdir("/proc")))
os.symlink(json.loads(PATHS)["other"], "stolen.h5")
os.symlink("/", "everything")
os.makedirs("series", exist_ok=True)
os.symlink(json.loads(PATHS)["other"], "series/stolen.jsonl")
"""


@READY
async def test_a_job_sees_its_experiment_and_nothing_else(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "secret")
    monkeypatch.setenv("MY_SECRET", "secret")
    paths = {
        "other": lab.data_dir / lab.other / "raw" / "lyso_master.h5",
        "store": lab.folder / "beamhub.db",
        "half": lab.data_dir / lab.experiment / ".incoming" / "half",
        "state": lab.folder / "state" / "secret",
        "cache": lab.folder / "state" / "warm" / "numba" / "function",
    }
    paths["cache"].parent.mkdir(parents=True)
    paths["cache"].write_text("compiled")
    paths["state"].write_text("secret")
    texts = {name: str(path) for name, path in paths.items()}
    template(lab.templates, "escape", f"PATHS = {json.dumps(texts)!r}", ESCAPE)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, lab.running_ready() if ready else lab.running():
        job = await lab.submit("escape", n=port)
        done = await lab.until(job)
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    seen = {name: metric.value for name, metric in done.metrics.items()}
    assert seen.pop("own") == f"data of {lab.experiment}"
    processes_seen = seen.pop("processes")
    assert isinstance(processes_seen, int)
    assert processes_seen < 10
    assert seen == {
        "other": "FileNotFoundError",
        "store": "FileNotFoundError",
        "half": "FileNotFoundError",
        "state": "FileNotFoundError",
        "raw": "OSError",
        "shared": "OSError",
        "port": "ConnectionRefusedError",
        "compiled": "compiled",
        "own_cache": "written",
        "shared_cache": "OSError",
        "secrets": "",
    }
    for path in ("stolen.h5", f"everything{paths['store']}", "../../raw/lyso_master.h5"):
        with pytest.raises((NotFound, Invalid)):
            await lab.jobs.open_file(ADA, job.id, path)
    assert (await lab.jobs.series(ADA, job.id, "stolen")).items == []


async def test_a_job_that_fails_says_why_and_where(lab: Lab) -> None:
    template(
        lab.templates, "wrong", "print('before')", "raise ValueError('the\\ncrystal <b>melted</b>')", "1"
    )
    template(lab.templates, "suicidal", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)")
    async with lab.running():
        job, dead = await lab.submit("wrong"), await lab.submit("suicidal")
        done, dead = await lab.until(job), await lab.until(dead)
    assert dead.state is JobState.FAILED
    assert "Python process died" in dead.reason
    assert done.state is JobState.FAILED
    assert done.reason == "ValueError: the crystal <b>melted</b> (in cell [4])"
    folder = lab.data_dir / lab.experiment / done.folder
    result = json.loads((folder / "result.json").read_text())
    cells = json.loads((folder / "notebook.ipynb").read_text())["cells"]
    assert "melted" in "".join(cells[result["cell"]]["source"])
    log, _ = await lab.jobs.log(ADA, job.id)
    assert log.startswith("before\n")
    assert "Traceback" in log
    lab.assert_settled(job, dead)
    [attempt] = await lab.jobs.attempts(ADA, job.id)
    assert (attempt.outcome, attempt.exit_code, attempt.cell) == ("failed", 1, result["cell"])


SLEEP = """
import subprocess, time
subprocess.Popen(["setsid", "sleep", MARK])
print("sleeping", flush=True)
time.sleep(600)
"""


async def test_cancelling_ends_all_processes_of_a_job(lab: Lab) -> None:
    mark = f"{600 + os.getpid()}.125"
    template(lab.templates, "sleep", f"MARK = {mark!r}", SLEEP)
    async with lab.running():
        job = await lab.submit("sleep")
        await lab.says(job, "sleeping")
        assert processes(mark)
        with pytest.raises(Forbidden):
            await lab.jobs.cancel(BEN, job.id, JobCancel())
        with pytest.raises(NotFound):
            await lab.jobs.cancel(EVE, job.id, JobCancel())
        assert (await lab.jobs.cancel(ADA, job.id, JobCancel(reason="wrong\nsample"))).state == "running"
        done = await lab.until(job)
        assert processes(mark) == []
    assert (done.state, done.reason) == (JobState.CANCELLED, "Cancelled by ada: wrong sample.")
    assert done.cpu_seconds > 0
    lab.assert_settled(job)
    [attempt] = await lab.jobs.attempts(ADA, job.id)
    assert (attempt.outcome, attempt.reason) == ("cancelled", done.reason)
    assert (attempt.number, attempt.cpu_seconds) == (1, done.cpu_seconds)
    assert attempt.runner == "local"
    assert attempt.ref.startswith("pid ")
    steps = [(step.state, step.actor, step.reason) for step in await lab.jobs.history(ADA, job.id)]
    assert steps == [
        ("pending", "ada", ""),
        ("queued", "ada", ""),
        ("running", "beamhub", ""),
        ("cancelled", "ada", done.reason),
    ]
    with pytest.raises(NotFound):
        await lab.jobs.history(EVE, job.id)
    with pytest.raises(NotFound):
        await lab.jobs.attempts(EVE, job.id)


HUNGRY = """
import multiprocessing, time

def eat():
    much = bytearray(b"x") * 300_000_000
    time.sleep(600)

for _ in range(4):
    multiprocessing.get_context("fork").Process(target=eat).start()
time.sleep(600)
"""


async def test_limits_end_a_job(lab: Lab) -> None:
    template(lab.templates, "sleep", "import time\ntime.sleep(600)")
    template(lab.templates, "hungry", HUNGRY)
    async with lab.running():
        brief = await lab.submit("sleep", "brief")
        small = await lab.submit("hungry", "small")
        late, large = await lab.until(brief), await lab.until(small)
    assert (late.state, late.reason) == (JobState.FAILED, "It reached its time limit of 1 s.")
    assert late.cpu_seconds == 1  # never more than was held
    assert (large.state, large.reason) == (
        JobState.FAILED,
        "It used more than 1 GiB of memory: choose a profile with more.",
    )
    lab.assert_settled(brief, small)


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
from beamhub.templates import Catalogue

folder = Path(sys.argv[1])
store = Store(sys.argv[2])
jobs = Jobs(store, Catalogue([folder / "templates"]), [], folder / "data")
runner = LocalRunner(2, folder / "state", folder / "data", warm=False)
asyncio.run(Engine(store, Live(), jobs, {"local": runner}, folder / "data").run_forever())
"""


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


async def test_without_bubblewrap_a_job_runs_and_a_warning_says_what_is_lost(lab: Lab) -> None:
    template(lab.templates, "hello", "import tempfile; print('hello', n, tempfile.mkdtemp())")
    job = await lab.submit("hello", n=7)
    programs = lab.folder / "programs"  # all that is on the PATH: no bubblewrap
    programs.mkdir()
    for name in ("nice", "python3"):
        (programs / name).symlink_to(shutil.which(name) or sys.executable)
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENGINE, str(lab.folder), lab.url),
        env={"PATH": str(programs)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert engine.stderr is not None
    warning = (await engine.stderr.readline()).decode()
    assert "without a sandbox" in warning
    assert "can read all experiments" in warning
    assert "bubblewrap (bwrap) is not installed" in warning
    done = await lab.until(job)
    engine.terminate()
    await engine.communicate()
    assert done.state is JobState.FINISHED, done.reason
    folder = lab.jobs.folder(done).path
    assert f"hello 7 {folder}/{TEMPORARY}/" in (await lab.jobs.log(ADA, job.id))[0]
    # nothing is left of what only the job itself and its kernel needed
    assert not (folder / TEMPORARY).exists()
    assert not list(folder.rglob("*ipc*"))


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


@pytest.mark.parametrize("kernel", ["python3", "own"])
def test_a_job_leaves_nothing_behind_but_its_results(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the folder for temporary files nor beside its results, also with a kernel of another
    kind."""
    own = tmp_path / "jupyter" / "kernels" / "own"
    shutil.copytree(Path(sys.prefix) / "share" / "jupyter" / "kernels" / "python3", own)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    template(tmp_path, "hello", "print('hello', n)")
    notebook = json.loads((tmp_path / "hello.ipynb").read_bytes())
    notebook["metadata"]["kernelspec"]["name"] = kernel
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "template.ipynb").write_text(json.dumps(notebook))
    spec = JobSpec(
        id=1,
        experiment="sim-mx-2026-00001",
        template="hello",
        template_version="0" * 16,
        parameters={"n": 7},
        inputs=[],
        cpus=1,
        memory=4 * 1024**3,
        folder=str(folder),
    )
    (folder / "job.json").write_text(spec.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "beamhub.run", str(folder)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + (folder / "log.txt").read_text()
    assert list((tmp_path / "tmp").iterdir()) == []
    names = {"job.json", "template.ipynb", "notebook.ipynb", "log.txt", "result.json"}
    assert {path.name for path in folder.iterdir()} <= names | {"report.jsonl"}


COUNT = """
import time
with open("runs.txt", "a") as runs:
    runs.write("once\\n")
print("begun", flush=True)
while not __import__("os").path.exists(data.replace("lyso_master.h5", "go")):
    time.sleep(0.02)
"""


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
    await engine.collect()
    statements.clear()
    await engine.schedule()
    await engine.collect()
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


async def test_a_pending_or_queued_job_is_cancelled_at_once(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it")
    gone = await lab.jobs.cancel(ADA, job.id, JobCancel())
    assert (gone.state, gone.reason, gone.cpu_seconds) == (JobState.CANCELLED, "Cancelled by ada.", 0)
    await lab.engine().schedule()
    assert (await lab.jobs.get(ADA, job.id)).state is JobState.CANCELLED
    lab.assert_settled(job)


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


async def gone(runner: LocalRunner, task: Task) -> None:
    async def is_gone() -> bool:
        return (await runner.poll([task.runner_ref or {}]))[0].phase is Phase.GONE

    await condition(is_gone)


async def test_a_job_that_removes_its_folder_is_settled_all_the_same(lab: Lab) -> None:
    """As it can where no sandbox confines it."""
    runner, engine, job, task = await counting(lab)
    await runner.cancel(task.runner_ref or {})
    await gone(runner, task)
    shutil.rmtree(lab.data_dir / lab.experiment / job.folder)
    watch = await engine._watch(task.job)
    await engine._attend(runner, task, Status(Phase.GONE, exit_code=1), watch, None)
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
    await engine._attend(runner, task, status, await engine._watch(task.job), None)
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


async def test_templates_are_on_disk_before_a_job_is_made_from_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[int] = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    template(lab.templates, "try_it", "1")
    await lab.submit("try_it")
    [kept] = (lab.data_dir / ".templates").iterdir()
    assert kept.stat().st_ino in flushed


async def test_many_jobs_at_once_keep_one_template(lab: Lab) -> None:
    for version in range(5):
        template(lab.templates, "try_it", str(version))
        await asyncio.gather(*(lab.submit("try_it") for _ in range(20)))
    kept = sorted(path.suffix for path in (lab.data_dir / ".templates").iterdir())
    assert kept == [".ipynb"] * 5


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
        await lab.rules.list(Principal("zoe", "user"), "sim-mx")
    for who, error in ((ADA, Forbidden), (Principal("zoe", "user"), NotFound)):
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


async def test_a_rerun_is_as_its_parent_but_for_what_is_changed(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    template(lab.templates, "other", "2")
    parent = await lab.submit("try_it", "cpu-2", n=5)
    same = await lab.jobs.rerun(ADA, parent.id, JobRerun())
    for field in ("template", "template_version", "parameters", "inputs", "profile", "sponsor", "experiment"):
        assert getattr(same, field) == getattr(parent, field)
    assert (same.parent, same.launched_by) == (parent.id, "ada")
    changed = await lab.jobs.rerun(SAM, parent.id, JobRerun(parameters={"n": 6}, profile="cpu-1"))
    assert (changed.parameters, changed.profile.name, changed.launched_by) == (
        {"n": 6, "label": ""},
        "cpu-1",
        "sam",
    )
    other = await lab.jobs.rerun(ADA, same.id, JobRerun(template="other"))
    assert (other.template, other.parameters, other.parent) == ("other", {"n": 1, "label": ""}, same.id)
    with pytest.raises(Forbidden):
        await lab.jobs.rerun(BEN, parent.id, JobRerun())
    with pytest.raises(NotFound):
        await lab.jobs.rerun(EVE, parent.id, JobRerun())
    with pytest.raises(Invalid):
        await lab.jobs.rerun(ADA, parent.id, JobRerun(sponsor="none"))


async def test_who_may_submit_what(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    request = JobCreate(template="try_it", inputs=[lab.dataset], sponsor="lab")
    with pytest.raises(Forbidden):
        await lab.jobs.submit(BEN, lab.experiment, request)
    with pytest.raises(NotFound):
        await lab.jobs.submit(EVE, lab.experiment, request)
    with pytest.raises(NotFound):  # a dataset of another experiment
        await lab.jobs.submit(EVE, lab.other, request)
    for wrong in ({"template": "none"}, {"profile": "cpu-9"}, {"sponsor": "none"}, {"parameters": {"x": 1}}):
        with pytest.raises((Invalid, NotFound)):
            await lab.jobs.submit(ADA, lab.experiment, request.model_copy(update=wrong))
    job = await lab.jobs.submit(ADA, lab.experiment, request)
    assert [one.id for one in (await lab.jobs.list(BEN)).items] == [job.id]
    assert [one.id for one in (await lab.jobs.list(SAM, experiment=lab.experiment)).items] == [job.id]
    assert (await lab.jobs.list(ADA, state=JobState.RUNNING)).items == []
    assert (await lab.jobs.list(EVE)).items == []
    with pytest.raises(NotFound):
        await lab.jobs.list(EVE, experiment=lab.experiment)


async def test_a_job_runs_the_version_it_was_made_from(lab: Lab) -> None:
    template(lab.templates, "try_it", "print('old')")
    job = await lab.submit("try_it")
    template(lab.templates, "try_it", "print('new')")
    async with lab.running():
        done = await lab.until(job)
    assert done.state is JobState.FINISHED
    assert (await lab.jobs.log(ADA, job.id))[0] == "old\n"


async def test_members_run_their_own_notebooks(lab: Lab) -> None:
    template(lab.data_dir / lab.experiment / "shared" / "templates", "mine", "print(n)")
    job = await lab.submit("mine", n=2)
    assert job.state is JobState.QUEUED
    with pytest.raises(NotFound):  # but not by rules: they run what the facility has installed
        await rule(lab, "mine")


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
        await engine.collect()
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
    await lab.engine().collect()
    [attempt, *_] = lab.store.read_sync(lambda tx: tx.attempts.of_job(job.id))
    assert attempt.started
    assert attempt.ended
    assert abs(attempt.ended - wrote) < timedelta(seconds=0.1)
    assert attempt.cpu_seconds == math.ceil((attempt.ended - attempt.started).total_seconds())


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
