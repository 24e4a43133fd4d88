"""What templates work on, and members' own notebooks as jobs: real notebooks in real sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest
from beamhub.catalogue import Catalogue
from beamhub.errors import Invalid, NotFound
from beamhub.jobfolder import JobFolder
from beamhub.schemas import (
    DatasetState,
    Job,
    JobCancel,
    JobCreate,
    JobRerun,
    JobsOnEach,
    JobState,
)
from beamhub.store import Transaction

from tests.integration.laboratory import ADA, BEN, EVE, Lab, condition, template
from tests.records import rotation


def block(**changes: Any) -> dict[str, Any]:
    return {
        "title": "Try",
        "technique": "testing",
        "description": "For a test.",
        "parameters": {"type": "object", "additionalProperties": False, "properties": {}},
        **changes,
    }


def notebook(path: Path, parameters: str, *cells: str, beamhub: dict[str, Any] | None = None) -> Path:
    v4: Any = nbformat.v4
    metadata: dict[str, Any] = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    if beamhub:
        metadata["beamhub"] = beamhub
    content = v4.new_notebook(
        metadata=metadata,
        cells=[
            v4.new_markdown_cell("# Spots by hand\nAn own notebook."),
            v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *(v4.new_code_cell(cell) for cell in cells),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(v4.writes(content))
    return path


def second(lab: Lab, name: str = "thaumatin") -> int:
    """Another dataset of the experiment."""

    def work(tx: Transaction) -> int:
        dataset = rotation(tx, lab.experiment, name)
        tx.datasets.change(dataset, state=DatasetState.COMPLETE)
        return dataset

    (lab.data_dir / lab.experiment / "raw" / f"{name}_master.h5").write_text(f"data of {name}")
    return lab.store.write_sync(work)


async def submit(lab: Lab, name: str, inputs: Sequence[int | str], **parameters: Any) -> Job:
    what = {"notebook" if name.endswith(".ipynb") else "template": name}
    request = JobCreate(**what, inputs=list(inputs), parameters=parameters, sponsor="lab")
    return await lab.jobs.submit(ADA, lab.experiment, request)


async def test_jobs_work_on_datasets_on_jobs_and_on_nothing(lab: Lab) -> None:
    other = second(lab)
    template(lab.templates, "one", "open('size.txt', 'w').write(str(len(open(data).read())))")
    several = block(inputs="datasets", title="Several")
    merging = block(inputs="jobs", title="Merge")
    single = block(inputs="job", title="Look")
    nothing = block(inputs="none", title="Nothing")
    report = "from beamhub import report\n"
    notebook(
        lab.templates / "several.ipynb",
        "datasets = []\ncpus = 1",
        report + "report.metric('found', ' '.join(open(one).read() for one in datasets))",
        beamhub=several,
    )
    notebook(
        lab.templates / "merge.ipynb",
        "jobs = []\ncpus = 1",
        "import json, pathlib\nfolders = [pathlib.Path(job) for job in jobs]",
        "outcomes = [json.loads((folder / 'result.json').read_text())['outcome'] for folder in folders]",
        """
def writes(path):
    try:
        path.write_text("x")
        return "written"
    except OSError as error:
        return error.strerror
""",
        report + "report.metric('sum', sum(int((folder / 'size.txt').read_text()) for folder in folders))",
        "report.metric('outcomes', ' '.join(outcomes))",
        "report.metric('new', writes(folders[0] / 'new.txt'))",
        "report.metric('old', writes(folders[0] / 'size.txt'))",
        beamhub=merging,
    )
    notebook(
        lab.templates / "look.ipynb",
        "job = ''\ncpus = 1",
        report + "report.metric('size', int(open(job + '/size.txt').read()))",
        beamhub=single,
    )
    notebook(
        lab.templates / "nothing.ipynb",
        "cpus = 1",
        report + "report.metric('data', 'data' in globals())",
        beamhub=nothing,
    )

    async with lab.running():
        first = await lab.until(await submit(lab, "one", [lab.dataset]))
        with pytest.raises(Invalid, match=r"is (running|queued)"):
            await submit(lab, "look", [(await submit(lab, "one", [other])).id])
        both = await lab.until(await submit(lab, "several", [lab.dataset, other, other]))
        rerun = await lab.until(await lab.jobs.rerun(ADA, first.id, JobRerun(inputs=[other])))
        looked = await lab.until(await lab.jobs.rerun(ADA, first.id, JobRerun(template="look")))
        merged = await lab.until(await submit(lab, "merge", [first.id, rerun.id]))
        idle = await lab.until(await submit(lab, "nothing", []))
    assert {job.reason for job in (first, both, rerun, looked, merged, idle)} == {""}
    assert both.metrics["found"].value == f"data of {lab.experiment} data of thaumatin"
    assert [(one.kind, one.id, one.name) for one in both.inputs] == [
        ("dataset", lab.dataset, "lyso"),
        ("dataset", other, "thaumatin"),
    ]
    size = len(f"data of {lab.experiment}")
    assert (looked.metrics["size"].value, looked.inputs[0].kind, looked.inputs[0].id) == (
        size,
        "job",
        first.id,
    )
    assert {name: metric.value for name, metric in merged.metrics.items()} == {
        "sum": size + len("data of thaumatin"),
        "outcomes": "finished finished",
        "new": "Read-only file system",
        "old": "Read-only file system",
    }
    assert [one.id for one in merged.inputs] == [first.id, rerun.id]
    assert (idle.metrics["data"].value, idle.inputs) == (False, [])
    of_other = await lab.jobs.list(ADA, experiment=lab.experiment, dataset=other)
    assert both.id in {job.id for job in of_other.items}

    for name, inputs, complaint in (
        ("one", [], "works on one dataset"),
        ("one", [lab.dataset, other], "works on one dataset"),
        ("several", [], "one or more datasets"),
        ("merge", [], "one or more jobs"),
        ("look", [first.id, rerun.id], "works on one job"),
        ("nothing", [lab.dataset], "works on nothing"),
        ("one", ["raw/lyso_master.h5"], "works on one dataset"),
    ):
        with pytest.raises(Invalid, match=complaint):
            await submit(lab, name, inputs)
    for name, inputs in (("one", [10**9]), ("merge", [first.id, 10**9])):
        with pytest.raises(NotFound):
            await submit(lab, name, inputs)
    request = JobCreate(template="look", inputs=[first.id], sponsor="lab")
    with pytest.raises(NotFound):  # of another experiment
        await lab.jobs.submit(EVE, lab.other, request)


async def test_a_failed_job_has_no_results_to_work_on(lab: Lab) -> None:
    template(lab.templates, "wrong", "1 / 0")
    notebook(lab.templates / "look.ipynb", "job = ''\ncpus = 1", beamhub=block(inputs="job"))
    async with lab.running():
        failed = await lab.until(await submit(lab, "wrong", [lab.dataset]))
    with pytest.raises(Invalid, match=f"Job {failed.id} .* is failed"):
        await submit(lab, "look", [failed.id])


PARAMETERS = """
data = ""  # the master file
threshold = 3.0  # sigma
frames = 2
label = "x"
anomalous = False
cell = [79, 79, 38]
width: float = 1  # degrees
_hidden = 1
computed = 2 * 3.5
"""
OWN = """
from beamhub import report
report.metric("told", repr((threshold, frames, label, anomalous, cell, width, computed)))
report.metric("data", open(data).read())
"""


async def test_any_notebook_with_a_parameters_cell_is_run_as_a_job(lab: Lab) -> None:
    shared = lab.data_dir / lab.experiment / "shared"
    notebook(shared / "by hand" / "My Spots.ipynb", PARAMETERS, OWN)
    path = "shared/by hand/My Spots.ipynb"
    (found,) = lab.catalogue.notebooks(lab.data_dir / lab.experiment)
    assert (found.notebook, found.title, found.inputs) == (path, "Spots by hand", "dataset")
    properties: Any = found.parameters["properties"]
    assert {name: (spec["type"], spec["default"]) for name, spec in properties.items()} == {
        "threshold": ("number", 3.0),
        "frames": ("integer", 2),
        "label": ("string", "x"),
        "anomalous": ("boolean", False),
        "cell": ("array", [79, 79, 38]),
        "width": ("number", 1),
    }
    assert properties["threshold"]["description"] == "sigma"

    template(lab.templates, "try_it", "print(data)")
    async with lab.running():
        before = await submit(lab, "try_it", [lab.dataset])
        job = await submit(lab, path, [lab.dataset], threshold=4.5, label="y' ; import os")
        done = await lab.until(job)
        again = await lab.until(
            await lab.jobs.rerun(ADA, (await lab.until(before)).id, JobRerun(notebook=path))
        )
    assert (done.state, done.reason) == (JobState.FINISHED, "")
    assert (done.template, done.notebook, done.title) == ("my_spots", path, "Spots by hand")
    told = (4.5, 2, "y' ; import os", False, [79, 79, 38], 1, 7.0)
    assert done.metrics["told"].value == repr(told)
    assert (again.parent, again.inputs, again.notebook) == (before.id, before.inputs, path)
    assert again.metrics["told"].value == repr((3.0, 2, "x", False, [79, 79, 38], 1, 7.0))

    for name, value in (("frames", 2.5), ("computed", 1), ("_hidden", 2), ("data", "x"), ("os", 1)):
        with pytest.raises(Invalid):
            await submit(lab, path, [lab.dataset], **{name: value})


async def test_a_job_keeps_its_version_and_says_that_the_template_has_changed(lab: Lab) -> None:
    shared = lab.data_dir / lab.experiment / "shared"
    path = notebook(shared / "mine.ipynb", "n = 1", "print('first', n)")
    template(lab.templates, "try_it", "print('first')")
    async with lab.running():
        own = await lab.until(await submit(lab, "shared/mine.ipynb", []))
        fixed = await lab.until(await submit(lab, "try_it", [lab.dataset]))
        assert (own.template_changed, fixed.template_changed) == (False, False)
        notebook(path, "n = 1", "print('second', n)")
        template(lab.templates, "try_it", "print('second')")
        changed = await lab.jobs.list(BEN, experiment=lab.experiment)
        assert [job.template_changed for job in changed.items] == [True, True]
        assert (await lab.jobs.get(BEN, own.id)).template_changed
        kept = json.loads((lab.data_dir / lab.experiment / own.folder / "template.ipynb").read_bytes())
        assert "".join(kept["cells"][-1]["source"]) == "print('first', n)"
        again = await lab.until(await lab.jobs.rerun(ADA, own.id, JobRerun()))
    assert (again.template_changed, (await lab.jobs.log(ADA, again.id))[0]) == (False, "second 1\n")
    path.unlink()
    assert (await lab.jobs.get(ADA, again.id)).template_changed is None


async def test_the_notebook_of_a_job_changed_in_one_cell_is_run_again(lab: Lab) -> None:
    experiment = lab.data_dir / lab.experiment
    template(lab.templates, "try_it", "from beamhub import report\nreport.metric('n', n)")
    async with lab.running():
        job = await lab.until(await lab.submit("try_it", n=5))
        executed = json.loads((experiment / job.folder / "notebook.ipynb").read_bytes())
        executed["cells"][-1]["source"] = "from beamhub import report\nreport.metric('n', 100 * n)"
        (experiment / "shared" / "changed.ipynb").write_text(json.dumps(executed))
        request = JobRerun(notebook="shared/changed.ipynb")
        changed = await lab.until(await lab.jobs.rerun(ADA, job.id, request))
        straight = await lab.jobs.rerun(ADA, job.id, JobRerun(notebook=f"{job.folder}/notebook.ipynb"))
        straight = await lab.until(straight)
    assert changed.parameters == job.parameters  # what the job was given, not the template's defaults
    assert (changed.metrics["n"].value, straight.metrics["n"].value) == (500, 5)


async def test_what_is_no_notebook_of_a_member_is_not_run(lab: Lab, tmp_path: Path) -> None:
    shared = lab.data_dir / lab.experiment / "shared"
    notebook(tmp_path / "elsewhere.ipynb", "n = 1")
    (shared / "link.ipynb").symlink_to(tmp_path / "elsewhere.ipynb")
    notebook(lab.data_dir / lab.experiment / "raw" / "raw.ipynb", "n = 1")
    notebook(shared / "two.ipynb", "data = ''\njobs = []")
    notebook(shared / "broken.ipynb", "n = ")
    (shared / "text.ipynb").write_text("{}")
    for path, complaint in (
        ("shared/link.ipynb", "no file"),
        ("shared/missing.ipynb", "no file"),
        ("raw/raw.ipynb", "no notebook of a member"),
        ("../elsewhere.ipynb", "not allowed"),
        ("shared/two.ipynb", "sets data and jobs"),
        ("shared/broken.ipynb", "not Python"),
        ("shared/text.ipynb", "not a notebook"),
    ):
        with pytest.raises((Invalid, NotFound), match=complaint):
            await submit(lab, path, [])
    assert lab.catalogue.notebooks(lab.data_dir / lab.experiment) == []


async def test_a_template_is_run_on_each_of_many_datasets(lab: Lab) -> None:
    others = [second(lab, f"sample_{number}") for number in range(120)]
    template(lab.templates, "try_it", "print(data)")
    notebook(lab.templates / "merge.ipynb", "jobs = []\ncpus = 1", beamhub=block(inputs="jobs"))
    request = JobsOnEach(template="try_it", datasets=[*others, others[0]], sponsor="lab")
    made = (await lab.jobs.submit_on_each(ADA, lab.experiment, request)).items
    assert [job.inputs[0].id for job in made] == others
    everything = JobsOnEach(template="try_it", parameters={"n": 2}, sponsor="lab")
    made = (await lab.jobs.submit_on_each(ADA, lab.experiment, everything)).items
    assert [job.inputs[0].id for job in made] == others  # the first one has not arrived
    with pytest.raises(NotFound):  # and then none is made
        await lab.jobs.submit_on_each(
            ADA, lab.experiment, JobsOnEach(template="try_it", datasets=[others[0], 10**9], sponsor="lab")
        )
    with pytest.raises(Invalid, match="can't be run on each dataset"):
        await lab.jobs.submit_on_each(ADA, lab.experiment, JobsOnEach(template="merge", sponsor="lab"))
    counted = await lab.jobs.list(ADA, experiment=lab.experiment, limit=500)
    assert len(counted.items) == 2 * len(others)


REPORTS = """
from beamhub import report
report.metric("known", 1, "Å")
report.metric("surprising", 2)
report.metric("inches", 3, "in")
import json
lines = open("report.jsonl").read()
open("report.jsonl", "w").write(lines)
"""


async def test_only_declared_metrics_are_taken(lab: Lab) -> None:
    metrics = {"known": {"title": "Known", "unit": "Å"}, "inches": {"title": "Length", "unit": "mm"}}
    notebook(lab.templates / "try_it.ipynb", "data = ''\ncpus = 1", REPORTS, beamhub=block(metrics=metrics))
    async with lab.running():
        done = await lab.until(await submit(lab, "try_it", [lab.dataset]))
    assert done.state is JobState.FINISHED
    assert {name: (one.value, one.unit) for name, one in done.metrics.items()} == {"known": (1, "Å")}
    log, _ = await lab.jobs.log(ADA, done.id)
    assert "The metric 'surprising' is left out: the template does not declare it." in log
    assert "The metric 'inches' is left out: it was reported in in, and the template declares mm." in log


async def test_a_result_with_metrics_that_nobody_declared_is_believed_as_far_as_it_fits(lab: Lab) -> None:
    folder = lab.data_dir / lab.experiment / "processed" / "77"
    folder.mkdir()
    result = {
        "outcome": "finished",
        "metrics": {"known": {"value": 1, "unit": ""}, "forged": {"value": 2, "unit": ""}},
    }
    (folder / "result.json").write_text(json.dumps(result))
    found = JobFolder(lab.data_dir / lab.experiment, 77).result({"known": ""})
    assert found
    assert set(found.metrics) == {"known"}


async def test_failures_say_in_a_sentence_what_was_wrong_and_where(lab: Lab) -> None:
    cases = {
        "program": ("import subprocess\nsubprocess.run(['xds_par'])", "The program xds_par is not installed"),
        "package": ("import surely_not_installed", "The Python package surely_not_installed is not"),
        "memory": ("bytearray(2 ** 60)", "It ran out of memory"),
        "disk": ("with open('/dev/full', 'w') as full:\n    full.write('x' * 10**6)", "The disk is full"),
        "spots": (
            "from beamhub_notebooks.errors import ProcessingError\nraise ProcessingError('No spots found.')",
            "No spots found.",
        ),
        "other": ("raise ValueError('the crystal melted')", "ValueError: the crystal melted"),
    }
    last = {
        "program": "FileNotFoundError",
        "package": "ModuleNotFoundError",
        "memory": "MemoryError",
        "disk": "OSError: [Errno 28]",
        "spots": "ProcessingError",
        "other": "ValueError",
    }
    v4: Any = nbformat.v4
    for name, (cell, _) in cases.items():
        template(lab.templates, name, "print('before')", cell)
        path = lab.templates / f"{name}.ipynb"
        content: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        content.cells.insert(2, v4.new_markdown_cell("## Integrate\nAll of them."))
        path.write_text(v4.writes(content))
    async with lab.running():
        jobs = {name: await submit(lab, name, [lab.dataset]) for name in cases}
        ended = {name: await lab.until(job) for name, job in jobs.items()}
    for name, job in ended.items():
        assert job.state is JobState.FAILED
        assert job.reason.startswith(cases[name][1]), job.reason
        assert "\n" not in job.reason
        assert job.failure
        assert job.failure.title == "Integrate"
        with await lab.jobs.open_notebook(ADA, job.id) as file:
            cells = json.load(file)["cells"]
        assert job.failure.cell is not None
        assert "".join(cells[job.failure.cell]["source"]) == cases[name][0]
        assert job.failure.log.splitlines()[-1].startswith(last[name])


async def test_a_job_that_was_ended_says_where_it_was(lab: Lab) -> None:
    template(lab.templates, "endless", "import time\nprint('before')\ntime.sleep(1000)")
    async with lab.running():
        job = await lab.until(await lab.submit("endless", profile="brief"))
    assert job.reason == "It reached its time limit of 1 s."
    assert job.failure
    if job.failure.cell is not None:  # it came so far
        assert job.failure.title in ("n = 1", "data = ''", "import time", "# Parameters")


DRAWS = """
import time
from beamhub import report
with open("first.png", "wb") as file:
    file.write(b"picture")
report.artifact("first.png", "First look", kind="plot")
report.artifact("first.png", "First look, again", kind="plot")
print("drawn")
time.sleep(1000)
"""


async def test_partial_plots_are_there_while_the_job_runs_and_after_it_was_ended(lab: Lab) -> None:
    template(lab.templates, "draws", DRAWS)
    with lab.live.subscribe() as queue:
        async with lab.running():
            job = await lab.submit("draws")

            async def told() -> bool:
                return bool((await lab.jobs.get(ADA, job.id)).artifacts)

            await condition(told)
            running = await lab.jobs.get(BEN, job.id)
            with await lab.jobs.open_file(BEN, job.id, "first.png") as file:
                assert file.read() == b"picture"
            await lab.jobs.cancel(ADA, job.id, JobCancel())
            ended = await lab.until(job)
        messages = [queue.get_nowait() for _ in range(queue.qsize())]
    assert running.state is JobState.RUNNING
    assert ended.state is JobState.CANCELLED
    for seen in (running, ended):
        assert [(one.path, one.title, one.kind, one.size) for one in seen.artifacts] == [
            ("first.png", "First look, again", "plot", 7)
        ]
    pushed = [one.data["artifacts"] for one in messages if one.data.get("artifacts")]
    assert pushed[-1][0]["path"] == "first.png"


async def test_the_command_of_a_result_repeats_the_job_elsewhere(lab: Lab, tmp_path: Path) -> None:
    values = "dict(threshold=threshold, tiny=tiny, label=label, cell=cell, nothing=nothing, yes=yes)"
    parameters = 'data = ""\nthreshold = 3.0\ntiny = 0.1\nlabel = "x"\ncell = []\nnothing = None\nyes = False'
    notebook(
        lab.data_dir / lab.experiment / "shared" / "mine.ipynb",
        parameters,
        f"import json\njson.dump([{values}, open(data).read()], open('seen.json', 'w'))",
    )
    given = {
        "threshold": -2.5,
        "tiny": 1e-05,
        "label": '1e5 it\'s "$HOME" `id` -p x\n--å',
        "cell": [1e-07, 2, 79.1],
        "nothing": "True",
        "yes": True,
    }
    async with lab.running():
        job = await lab.until(await submit(lab, "shared/mine.ipynb", [lab.dataset], **given))
    assert job.reason == ""
    folder = lab.data_dir / lab.experiment / job.folder
    result = await lab.jobs.result(ADA, job.id)
    assert result.host
    assert {"python", "papermill", "numpy"} <= set(result.software)
    assert result.command.startswith("papermill template.ipynb notebook.ipynb -")
    shutil.copy(folder / "template.ipynb", tmp_path)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", result.command],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        check=True,
        timeout=200,
        capture_output=True,
    )
    assert json.loads((tmp_path / "seen.json").read_text()) == json.loads((folder / "seen.json").read_text())
    assert shlex.split(result.command)[0] == "papermill"


async def test_a_member_keeps_templates_where_they_count_for_the_experiment_only(lab: Lab) -> None:
    own = lab.data_dir / lab.experiment / "shared" / "templates"
    template(own, "mine", "print('mine')")
    async with lab.running():
        job = await lab.until(await submit(lab, "mine", [lab.dataset]))
    assert (job.state, job.notebook, job.template_changed) == (JobState.FINISHED, None, False)
    with pytest.raises(NotFound):
        lab.catalogue.get("mine", lab.data_dir / lab.other)
    assert Catalogue([lab.templates]).version("mine", lab.data_dir / lab.other) is None


async def test_a_typed_parameter_that_is_empty_by_default_takes_its_value(lab: Lab) -> None:
    notebook(
        lab.data_dir / lab.experiment / "shared" / "typed.ipynb",
        "data: str = ''\ncpus: int = 1\nlimit: float | None = None  # Å; None: automatic",
        "from beamhub import report\nreport.metric('limit', limit, 'Å')",
    )
    async with lab.running():
        job = await lab.until(await submit(lab, "shared/typed.ipynb", [lab.dataset], limit=2.5))
    assert (job.reason, job.metrics["limit"].value) == ("", 2.5)
    for path in (lab.data_dir / lab.experiment / job.folder).glob("*.txt"):
        assert "unknown parameter" not in path.read_text()
