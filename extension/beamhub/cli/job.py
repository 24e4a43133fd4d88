"""`beamhub job`: jobs: start, watch, rerun, cancel, and what they made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, cell, connected, files_table, values

if TYPE_CHECKING:
    from beamhub.client import Client
    from beamhub.schemas import Job, JobOutcome

FORCE = "Run it even if an identical job has a result already."
ESTIMATE = "Start nothing: tell what it would probably take."


@click.group()
def job() -> None:
    """Jobs: start, watch, rerun, cancel, and what they made."""


@job.command("list")
@click.option("--experiment", default=None)
@click.option("--dataset", type=int, default=None)
@click.option(
    "--state",
    type=click.Choice(["pending", "queued", "running", "finished", "failed", "cancelled"]),
    default=None,
)
@click.option("--name", default=None, help="Only those that have this in title or dataset.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@connected
def job_list(
    client: Client,
    experiment: str | None,
    dataset: int | None,
    state: str | None,
    name: str | None,
    limit: int,
) -> Table:
    """Jobs that you may see, newest first."""
    from beamhub.schemas import JobState

    wanted = JobState(state) if state else None
    found = client.jobs(experiment, dataset=dataset, state=wanted, name=name, limit=limit)
    columns: Columns = {
        "id": "id",
        "experiment": "experiment",
        "title": "title",
        "input": lambda j: [
            f"job {i.id}" if i.kind == "job" else i.name or f"dataset {i.id}" for i in j.inputs
        ],
        "state": lambda j: f"{j.state}: {j.reason}" if j.reason else j.state,
        "done": lambda j: None if j.progress.fraction is None else f"{j.progress.fraction:.0%}",
        "launched by": "launched_by",
        "created": "created",
    }
    return Table(found, columns, "No jobs.")


@job.command("show")
@click.argument("job", type=int)
@connected
def job_show(client: Client, job: int) -> Any:
    """All about one job."""
    return client.job(job)


@job.command("submit")
@click.argument("experiment")
@click.argument("template_name", metavar="TEMPLATE")
@click.argument("inputs", nargs=-1)
@click.option("--each", is_flag=True, help="One job for each dataset; without INPUTS, on all there are.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter; may be repeated.")
@click.option("--profile", default=None, help="Default: the template's.")
@click.option("--sponsor", required=True, help="The licence that pays.")
@click.option("--force", is_flag=True, help=FORCE)
@click.option("--estimate", is_flag=True, help=ESTIMATE)
@connected
def job_submit(
    client: Client,
    experiment: str,
    template_name: str,
    inputs: tuple[str, ...],
    settings: tuple[str, ...],
    profile: str | None,
    sponsor: str,
    *,
    force: bool,
    estimate: bool,
    each: bool,
) -> Any:
    """Run TEMPLATE on INPUTS: numbers of datasets or jobs, or the path of a file, as the template takes.

    TEMPLATE is a name, or the path of a notebook of your own in the experiment, such as shared/mine.ipynb.
    """
    chosen = [int(one) if one.isdigit() else one for one in inputs]
    if estimate and each:
        raise click.UsageError("--estimate tells of one job: give one dataset, without --each.")
    if estimate:
        return client.estimate(
            experiment, template_name, chosen, sponsor=sponsor, parameters=values(settings), profile=profile
        )
    if not each:
        made = client.submit(
            experiment,
            template_name,
            chosen,
            sponsor=sponsor,
            parameters=values(settings),
            profile=profile,
            force=force,
        )
        return _told(made)
    if not all(isinstance(one, int) for one in chosen):
        raise click.UsageError("--each runs on datasets: give their numbers.")
    jobs = client.submit_on_each(
        experiment,
        template_name,
        [one for one in chosen if isinstance(one, int)] or None,
        sponsor=sponsor,
        parameters=values(settings),
        profile=profile,
        force=force,
    )
    columns: Columns = {"job": "id", "dataset": lambda j: j.inputs[0].name, "state": "state"}
    return Table(jobs, columns, "No datasets.")


@job.command("rerun")
@click.argument("jobs", type=int, nargs=-1, required=True, metavar="JOB…")
@click.option("--template", "template_name", default=None, help="Or the path of a notebook of your own.")
@click.option("--input", "inputs", multiple=True, help="What it is to work on instead; may be repeated.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter to change; may be repeated. The others stay as they were.",
)
@click.option("--profile", default=None)
@click.option("--sponsor", default=None)
@click.option("--force", is_flag=True, help=FORCE)
@click.option("--estimate", is_flag=True, help=ESTIMATE)
@connected
def job_rerun(
    client: Client,
    jobs: tuple[int, ...],
    template_name: str | None,
    inputs: tuple[str, ...],
    settings: tuple[str, ...],
    profile: str | None,
    sponsor: str | None,
    force: bool,
    estimate: bool,
) -> Any:
    """Run jobs again: other parameters, template, inputs, CPUs or sponsor; what is left out is as it was."""
    from beamhub.schemas import JobsRerun

    if len(jobs) > 1:
        if template_name or inputs or estimate:
            raise ValueError("--template, --input and --estimate are for one job at a time.")
        several = JobsRerun(
            jobs=list(jobs), parameters=values(settings), profile=profile, sponsor=sponsor, force=force
        )
        return _outcomes(client.rerun_all(several))
    [job] = jobs
    parameters: dict[str, Any] | None = None
    if settings:
        before = {} if template_name else client.job(job).parameters
        parameters = {**before, **values(settings)}
    works_on = [int(one) if one.isdigit() else one for one in inputs] or None
    if estimate:
        return client.estimate_rerun(
            job,
            template=template_name,
            parameters=parameters,
            inputs=works_on,
            profile=profile,
            sponsor=sponsor,
        )
    made = client.rerun(
        job,
        template=template_name,
        parameters=parameters,
        inputs=works_on,
        profile=profile,
        sponsor=sponsor,
        force=force,
    )
    return _told(made)


def _told(made: Job) -> Job:
    if made.repeats == made.id:
        click.echo(f"Job {made.id} is the same: this is it. Run it again with --force.", err=True)
    return made


def _outcomes(found: list[JobOutcome]) -> Table:
    columns: Columns = {
        "job": "asked",
        "now": lambda one: one.job and f"job {one.job.id}: {one.job.state}",
        "problem": lambda one: one.problem and f"{one.problem.detail} {one.problem.remedy}",
    }
    return Table(found, columns, "No jobs.")


@job.command("make-rule")
@click.argument("job", type=int)
@click.argument("datasets", type=int, nargs=-1)
@click.option("--title", default=None)
@click.option("--event", default="dataset.complete", show_default=True)
@click.option("--pattern", default="*", show_default=True, help="Glob on the name; with a /, on the path.")
@click.option("--sponsor", default=None, help="Instead of the job's.")
@click.option("--replace", "replaces", type=int, default=None, help="The rule that becomes this one.")
@connected
def job_make_rule(
    client: Client,
    /,
    job: int,
    datasets: tuple[int, ...],
    title: str | None,
    event: str,
    pattern: str,
    sponsor: str | None,
    replaces: int | None,
) -> Any:
    """Do from now on by itself what JOB did, and at once for DATASETS (staff)."""
    from beamhub.schemas import JobRule, TriggerEvent

    rule = JobRule(
        title=title,
        event=TriggerEvent(event),
        pattern=pattern,
        sponsor=sponsor,
        replaces=replaces,
        backfill=list(datasets),
    )
    return client.make_rule(job, rule)


@job.command("result")
@click.argument("job", type=int)
@connected
def job_result(client: Client, job: int) -> Any:
    """What came out of a job, with software versions, host, and the command that repeats it elsewhere."""
    return client.result(job)


@job.command("cancel")
@click.argument("jobs", type=int, nargs=-1, required=True, metavar="JOB…")
@click.option("--reason", default="", help="Shown to everybody in the experiment.")
@connected
def job_cancel(client: Client, jobs: tuple[int, ...], reason: str) -> Any:
    """Stop jobs."""
    if len(jobs) > 1:
        return _outcomes(client.cancel_all(jobs, reason))
    return client.cancel(jobs[0], reason)


@job.command("priority", context_settings={"ignore_unknown_options": True})
@click.argument("job", type=int)
@click.argument("priority", type=click.IntRange(-100, 100))
@connected
def job_priority(client: Client, job: int, priority: int) -> Any:
    """Say when a waiting job's turn is: PRIORITY is 0 by default, and higher goes first. You may lower the
    priority of your own jobs; the instrument's staff may set any."""
    return client.set_priority(job, priority)


@job.command("attempts")
@click.argument("job", type=int)
@connected
def job_attempts(client: Client, job: int) -> Table:
    """How often a job was started, where, and what became of it each time."""
    columns: Columns = {
        "attempt": "number",
        "runner": lambda one: one.ref or one.runner,
        "host": "host",
        "queued": "queued",
        "started": "started",
        "ended": "ended",
        "outcome": lambda one: f"{one.outcome}: {one.reason}" if one.reason else one.outcome,
        "CPU-seconds": "cpu_seconds",
    }
    return Table(client.attempts(job), columns, "It has not been queued yet.")


@job.command("history")
@click.argument("job", type=int)
@connected
def job_history(client: Client, job: int) -> Table:
    """Every change of a job's state: when, why, and whose doing it was."""
    columns: Columns = {"time": "time", "state": "state", "reason": "reason", "by": "actor"}
    return Table(client.history(job), columns, "Nothing is known.")


@job.command("log")
@click.argument("job", type=int)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@connected
def job_log(client: Client, job: int, follow: bool) -> str | None:
    """A job's log."""
    if not follow:
        return client.job_log(job)[0]
    for text in client.follow_log(job):
        click.echo(cell(text), nl=False)
    return None


@job.command("lineage")
@click.argument("job", type=int)
@connected
def job_lineage(client: Client, job: int) -> Any:
    """The jobs that a job comes from and those made from it, and what differs from its parent."""
    return client.lineage(job)


@job.command("runners")
@connected
def job_runners(client: Client) -> Table:
    """Where jobs run, and what is free there."""
    columns: Columns = {
        "runner": "name",
        "CPUs": "cpus",
        "free": "free",
        "switched off": "cold",
        "nodes": lambda r: ", ".join(f"{count} {state}" for state, count in r.nodes.items()),
        "note": "reason",
    }
    return Table(client.runners(), columns, "Jobs can't run here.")


@job.command("files")
@click.argument("job", type=int)
@connected
def job_files(client: Client, job: int) -> Table:
    """The files that a job made."""
    return files_table(client.job_files(job))


@job.command("get")
@click.argument("job", type=int)
@click.argument("path")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@connected
def job_get(client: Client, job: int, path: str, to: Path | None) -> str:
    """Download the job's file PATH to TO (default: its own name, here)."""
    return str(client.download_job_file(job, path, to or Path(Path(path).name)))
