"""Routes of jobs and of what they make."""

from __future__ import annotations

import asyncio
import time
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from beamhub.api import notebook
from beamhub.api.routes import Call, Content, Download, Paging, Reply, page_of, route
from beamhub.schemas import (
    Attempt,
    BigInt,
    Comparison,
    Estimate,
    File,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobOutcome,
    JobRerun,
    JobResult,
    JobRule,
    JobRuleMade,
    JobsCancel,
    JobsOnEach,
    JobsRerun,
    JobState,
    JobStep,
    Line,
    Lineage,
    Page,
    Request,
    SeriesPage,
)

LOOK = 0.5  # seconds between looks at a log that somebody waits for


class ExperimentJobQuery(Paging):
    dataset: BigInt | None = None
    state: JobState | None = None
    name: Line | None = Field(
        None, description="only those that have this in their title or in the name of a dataset, in any case"
    )


class JobQuery(ExperimentJobQuery):
    experiment: str | None = None


class ComparisonQuery(Request):
    jobs: str = Field(pattern=r"^[1-9]\d{0,17}(,[1-9]\d{0,17}){1,9}$", description="2 to 10 ids: `3,5`")


class PositionQuery(Request):
    after: int = Field(0, ge=0, le=2**62, description="where to go on: `next` of the answer before")


class LogQuery(PositionQuery):
    wait: int = Field(0, ge=0, le=30, description="seconds to wait for more, where there is none yet")


class NotebookQuery(Request):
    format: Literal["html", "ipynb"] = "ipynb"


@route("GET", "jobs")
async def list_jobs(call: Call, query: JobQuery) -> Page[Job]:
    """The jobs that the caller may see, newest first."""
    return await call.service.jobs.list(call.principal, **query.model_dump())


@route("POST", "jobs/rerun", status=200)
async def rerun_jobs(call: Call, body: JobsRerun) -> Page[JobOutcome]:
    """Run up to 500 jobs again, each for itself: the answer says what came of each."""
    return Page(items=list(await call.service.jobs.rerun_all(call.principal, body)))


@route("POST", "jobs/cancel", status=200)
async def cancel_jobs(call: Call, body: JobsCancel) -> Page[JobOutcome]:
    """Stop up to 500 jobs, each for itself: the answer says what came of each."""
    return Page(items=list(await call.service.jobs.cancel_all(call.principal, body)))


@route("GET", "comparison")
async def compare_jobs(call: Call, query: ComparisonQuery) -> Comparison:
    """Jobs side by side: an aligned table of what they were asked and what came out, and their series."""
    return await call.service.jobs.compare(call.principal, [int(id_) for id_ in query.jobs.split(",")])


@route("GET", "experiments/{experiment}/jobs")
async def list_experiment_jobs(call: Call, experiment: str, query: ExperimentJobQuery) -> Page[Job]:
    """An experiment's jobs, newest first."""
    return await call.service.jobs.list(call.principal, experiment=experiment, **query.model_dump())


@route("POST", "experiments/{experiment}/jobs", also=(200,))
async def submit_job(call: Call, experiment: str, body: JobCreate) -> Reply[Job]:
    """Run a template, or a member's own notebook, on datasets, jobs or a file of the experiment.

    If an identical job has a result already, the answer is that job, with status 200 and its own id as
    `repeats`; with `force` it is run again."""
    return _made(await call.service.jobs.submit(call.principal, experiment, body))


@route("POST", "experiments/{experiment}/jobs/estimate", status=200)
async def estimate_job(call: Call, experiment: str, body: JobCreate) -> Estimate:
    """What a job would probably take, and when it would start, from earlier runs of its template."""
    return await call.service.forecasts.job(call.principal, experiment, body)


@route("POST", "experiments/{experiment}/jobs-on-each")
async def submit_jobs_on_each(call: Call, experiment: str, body: JobsOnEach) -> Page[Job]:
    """Run a template on many datasets of the experiment: one job for each, or none where one is refused."""
    return await call.service.jobs.submit_on_each(call.principal, experiment, body)


@route("GET", "jobs/{job}")
async def get_job(call: Call, job: BigInt) -> Job:
    """A job: state, parameters, progress, metrics, what it made and what it cost."""
    return await call.service.jobs.get(call.principal, job)


@route("PATCH", "jobs/{job}")
async def change_job(call: Call, job: BigInt, body: JobChange) -> Job:
    """Set the priority of a job that waits. A member may lower that of own jobs; staff may set any."""
    return await call.service.jobs.change(call.principal, job, body)


@route("GET", "jobs/{job}/attempts")
async def list_attempts(call: Call, job: BigInt) -> Page[Attempt]:
    """How often a job was started, where, and what became of it each time; each attempt is charged."""
    return Page(items=list(await call.service.jobs.attempts(call.principal, job)))


@route("GET", "jobs/{job}/history")
async def get_job_history(call: Call, job: BigInt) -> Page[JobStep]:
    """Every change of a job's state: when, why, and whose doing it was."""
    return Page(items=list(await call.service.jobs.history(call.principal, job)))


@route("POST", "jobs/{job}/rerun", also=(200,))
async def rerun_job(call: Call, job: BigInt, body: JobRerun) -> Reply[Job]:
    """Run a job again, with whatever is to be different. If an identical job has a result already, the answer
    is that job, with status 200 and its own id as `repeats`; with `force` it is run again."""
    return _made(await call.service.jobs.rerun(call.principal, job, body))


@route("POST", "jobs/{job}/estimate", status=200)
async def estimate_rerun(call: Call, job: BigInt, body: JobRerun) -> Estimate:
    """What such a rerun would probably take, and when it would start, from earlier runs of its template."""
    return await call.service.forecasts.rerun(call.principal, job, body)


@route("GET", "jobs/{job}/lineage")
async def get_lineage(call: Call, job: BigInt) -> Lineage:
    """The jobs that a job comes from and those made from it, and what differs from its parent: what was asked
    for, and, where the template is another, its cells."""
    return await call.service.jobs.lineage(call.principal, job)


@route("POST", "jobs/{job}/rule")
async def make_rule(call: Call, job: BigInt, body: JobRule) -> JobRuleMade:
    """Make this the rule: what the job did is done by itself from now on, and at once for the datasets that
    are chosen (staff). Its rule runs the template as it then is."""
    return await call.service.automation.make_rule(call.principal, call.service.rules, job, body)


@route("POST", "jobs/{job}/cancel", status=200)
async def cancel_job(call: Call, job: BigInt, body: JobCancel) -> Job:
    """Stop a job; what it used is charged."""
    return await call.service.jobs.cancel(call.principal, job, body)


@route("GET", "jobs/{job}/log", media=("text/plain",))
async def get_log(call: Call, job: BigInt, query: LogQuery) -> Content:
    """A job's log from byte `after` on; the header X-Next says where to go on. With `wait`, the answer comes
    as soon as there is more. When the header X-State says that the job has ended and there is no text, that
    was all."""
    deadline = time.monotonic() + query.wait
    while True:
        found = await call.service.jobs.get(call.principal, job)  # first: what comes later is read then
        text, position = await call.service.jobs.log(call.principal, job, query.after)
        if text or found.state.ended or time.monotonic() >= deadline:
            break
        await asyncio.sleep(LOOK)
    headers = {"X-Next": str(position), "X-State": found.state.value}
    return Content(text.encode(), "text/plain; charset=utf-8", headers)


@route("GET", "jobs/{job}/series/{name}")
async def get_series(call: Call, job: BigInt, name: str, query: PositionQuery) -> SeriesPage:
    """Rows that a job has written of one of its series, from row `after` on, with the columns' units."""
    return await call.service.jobs.series(call.principal, job, name, query.after)


@route("GET", "jobs/{job}/notebook", media=("application/x-ipynb+json", "text/html"))
async def get_notebook(call: Call, job: BigInt, query: NotebookQuery) -> Download | Content:
    """The notebook that a job is, as it has been executed so far: as a file, or as a page without scripts."""
    file = await call.service.jobs.open_notebook(call.principal, job)
    if query.format == "ipynb":
        return Download(file, f"job-{job}.ipynb")
    with file:
        page = await notebook.page(file, f"job {job}")
    return Content(page, "text/html; charset=utf-8", {"Content-Security-Policy": notebook.POLICY})


@route("GET", "jobs/{job}/result")
async def get_result(call: Call, job: BigInt) -> JobResult:
    """What came out: metrics, artifacts, software versions, host, and the command that does the same outside
    of the service, in a folder with the job's template.ipynb."""
    return await call.service.jobs.result(call.principal, job)


@route("GET", "jobs/{job}/files")
async def list_job_files(call: Call, job: BigInt, query: Paging) -> Page[File]:
    """The files in a job's folder."""
    found = await call.service.jobs.files(call.principal, job)
    return page_of(found, query, lambda file: file.path)


@route("GET", "jobs/{job}/files/{path:path}", media=("application/octet-stream",))
async def get_job_file(call: Call, job: BigInt, path: str) -> Download:
    """A file of a job, or with a Range header a part of it."""
    file = await call.service.jobs.open_file(call.principal, job, path)
    return Download(file, PurePosixPath(path).name)


def _made(job: Job) -> Reply[Job]:
    """201 for a new job, 200 for an earlier one that is the answer."""
    return Reply(job, 200 if job.repeats == job.id else 201)
