"""Jobs from the wish to the result: real notebooks, in real sandboxes, on this machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from beamhub.errors import Conflict, Forbidden, Invalid, NotFound
from beamhub.events import Message
from beamhub.sandbox import TEMPORARY
from beamhub.schemas import JobCancel, JobCreate, JobRerun, JobSpec, JobState

from tests.integration.laboratory import (
    ADA,
    BEN,
    ENGINE,
    EVE,
    LABEL,
    SAM,
    SLEEP,
    Lab,
    processes,
    rule,
    template,
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


async def test_a_pending_or_queued_job_is_cancelled_at_once(lab: Lab) -> None:
    template(lab.templates, "try_it", "1")
    job = await lab.submit("try_it")
    gone = await lab.jobs.cancel(ADA, job.id, JobCancel())
    assert (gone.state, gone.reason, gone.cpu_seconds) == (JobState.CANCELLED, "Cancelled by ada.", 0)
    await lab.engine().schedule()
    assert (await lab.jobs.get(ADA, job.id)).state is JobState.CANCELLED
    lab.assert_settled(job)


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
