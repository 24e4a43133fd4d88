"""The list of an experiment's jobs: states that change by themselves, each job opening in place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from beamhub.schemas import Job, JobState

from beamhub_cockpit import selection
from beamhub_cockpit.around import Around
from beamhub_cockpit.details import show
from beamhub_cockpit.format import cpu_hours, number, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import (
    ago,
    button,
    card,
    finder,
    more_button,
    runtime,
    starter,
    state,
    template_of,
    why,
)
from beamhub_cockpit.reading import Detail
from beamhub_cockpit.results import key_metrics, progress
from beamhub_cockpit.selection import Selection


def found(jobs: Iterable[Job], sought: str, stay: Collection[int]) -> list[Job]:
    """Those that have this in their title or in the name of a dataset, and those with the ids `stay`."""
    name = sought.strip().casefold()

    def named(job: Job) -> bool:
        names = [job.title, *(one.name for one in job.inputs if one.kind == "dataset")]
        return any(name in one.casefold() for one in names)

    return [job for job in jobs if named(job) or job.id in stay]


def listed(jobs: Iterable[Job], selected: Selection, opened: Collection[int], shown: int | None) -> list[Job]:
    """What the list shows: the first `shown` of the jobs (None: all), and those that are open or selected."""
    return [
        job
        for place, job in enumerate(selected.listed(jobs))
        if shown is None or place < shown or job.id in opened or job.id in selected.ticked
    ]


def panel(
    jobs: Collection[Job],
    opened: Mapping[int, Detail],
    around: Around,
    selected: Selection,
    shown: int | None = None,
    *,
    sought: str = "",
    many: bool = False,
    goes_on: bool = False,
) -> Element:
    """The list of jobs, `shown` of them (None: all), with what can be done with those that are selected. Of
    `many` some can be `sought` by name; it `goes_on` where the page does not know all."""
    said = ", ".join(
        f"{count} {word}" for word, count in ((s, sum(j.state == s for j in jobs)) for s in JobState) if count
    )
    rows = listed(jobs, selected, opened, shown)
    chosen = selected.chosen(jobs)
    if not jobs and sought.strip():
        body: Child = el("p.bh-empty", "None of this name.")
    elif not jobs:
        body = el(
            "p.bh-empty",
            "No jobs yet. They start by themselves when data arrive, or from a dataset with “Run …”.",
        )
    else:
        body = el(
            "table.bh-jobs",
            _head(rows, selected),
            [_job(job, opened.get(job.id), around, ticked=job.id in selected.ticked) for job in rows],
        )
    beside = (
        selection.tools(
            chosen,
            len(jobs) - len(selected.listed(jobs)),
            around.links,
            may_run=around.may_run,
            may_cancel=around.may_cancel,
        )
        if chosen
        else el("span.bh-count", said)
    )
    return card(
        "Jobs",
        el("div.bh-finder", finder("jobs", around.experiment), key="finder") if many else None,
        body,
        more_button(len(jobs), shown, "jobs", goes_on=goes_on),
        aside=beside if jobs else None,
        css="bh-jobs-card",
    )


def _head(rows: Sequence[Job], selected: Selection) -> Element:
    return el(
        "thead",
        el(
            "tr",
            el("th.bh-job-tick", selection.box_of_all(rows, selected.ticked), scope="col"),
            el("th", "State", scope="col"),
            el("th", "Analysis", scope="col"),
            el("th", "Dataset", scope="col"),
            el("th.bh-right.bh-job-cpus", "CPUs", scope="col"),
            el("th.bh-right", "Time", scope="col"),
            el("th", "Results", scope="col"),
            el("th", el("span.bh-unseen", "Open"), scope="col"),
        ),
    )


def _job(job: Job, detail: Detail | None, around: Around, *, ticked: bool) -> Element:
    is_open = detail is not None
    parent: Child = (
        [" · ", el("a.bh-link.bh-job-parent", f"rerun of #{job.parent}", href=around.links.job(job.parent))]
        if job.parent
        else None
    )
    return el(
        "tbody.bh-job" + (".bh-job-opened" if is_open else ""),
        el(
            "tr.bh-job-row",
            el("td.bh-job-tick", selection.box(job, ticked=ticked)),
            el("td", state(str(job.state), "bh-job-state", why(job)), _turn(job)),
            el(
                "td.bh-job-what",
                el("span.bh-job-title", job.title, title=job.title),
                el(
                    "span.bh-job-by",
                    f"#{job.id} · ",
                    starter(job, around.triggers),
                    parent,
                    " · ",
                    ago(job.created),
                ),
            ),
            el("td.bh-job-dataset", _on(job)),
            el("td.bh-right.bh-job-cpus", number(job.profile.cpus)),
            el(
                "td.bh-right",
                runtime(job),
                el("span.bh-job-cost", cpu_hours(job.cpu_seconds))
                if job.state.ended and job.started
                else None,
            ),
            el("td.bh-job-results", _results(job, around)),
            el(
                "td.bh-job-toggle",
                button(
                    "",
                    ["job.toggle", job.id],
                    look="bh-icon-button",
                    css="bh-chevron",
                    said=f"{'Close' if is_open else 'Open'} job {job.id}",
                    expanded=is_open,
                ),
            ),
            on={"click": ["job.toggle", job.id]},
        ),
        el("tr.bh-job-detail-row", el("td", show(job, detail, around), colspan="8"))
        if detail is not None
        else None,
        key=f"job-{job.id}",
        id=f"bh-job-{job.id}",
        data_job=str(job.id),
        data_state=str(job.state),
        data_template=job.template,
    )


def _on(job: Job) -> Element | None:
    """What a job works on: the first, and how many more."""
    if not job.inputs:
        return None
    names = [one.name or f"{one.kind} {one.id}" for one in job.inputs]
    more = f" and {number(len(names) - 1)} more" if len(names) > 1 else ""
    return el("span", names[0] + more, title="\n".join(names[:50]))


def _turn(job: Job) -> Element | None:
    """When a waiting job's turn is, where that is not the usual."""
    if job.started is not None or job.state.ended or not job.priority:
        return None
    return el("span.bh-sub.bh-job-priority", f"priority {number(job.priority)}")


def _results(job: Job, around: Around) -> list[Child]:
    found: list[Child] = list(key_metrics(job, around.templates.get(template_of(job))))
    if job.state is JobState.RUNNING:
        return [progress(job), el("div.bh-key-metrics", found) if found else None]
    if job.state in (JobState.FAILED, JobState.PENDING, JobState.CANCELLED) and job.reason:
        return [el("span.bh-job-reason", why(job))]
    if job.state is JobState.QUEUED:
        return [el("span.bh-job-reason", why(job) or f"waits for {plural(job.profile.cpus, 'free CPU')}")]
    return [el("div.bh-key-metrics", found)]
