"""The list of an experiment's jobs: states that change by themselves, each job opening in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from beamhub.schemas import Job, JobState

from beamhub_cockpit.details import Around, Detail, key_metrics, progress, show
from beamhub_cockpit.format import cpu_hours, number, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import ago, card, more_button, rank, runtime, starter, state, template_of


def panel(
    jobs: Iterable[Job], opened: Mapping[int, Detail], around: Around, shown: int | None = None
) -> Element:
    """The list: what runs or waits, then the newest; `shown` of them (None: all), and those that are open."""
    ordered = sorted(jobs, key=rank)
    said = ", ".join(
        f"{count} {word}"
        for word, count in ((s, sum(j.state == s for j in ordered)) for s in JobState)
        if count
    )
    if not ordered:
        body: Child = el(
            "p.bh-empty",
            "No jobs yet. They start by themselves when data arrive, or from a dataset with “Run …”.",
        )
    else:
        body = el(
            "table.bh-jobs",
            el(
                "thead",
                el(
                    "tr",
                    el("th", "State", scope="col"),
                    el("th", "Analysis", scope="col"),
                    el("th", "Dataset", scope="col"),
                    el("th.bh-right.bh-job-cpus", "CPUs", scope="col"),
                    el("th.bh-right", "Time", scope="col"),
                    el("th", "Results", scope="col"),
                    el("th", el("span.bh-unseen", "Open"), scope="col"),
                ),
            ),
            [
                _job(job, opened.get(job.id), around)
                for place, job in enumerate(ordered)
                if shown is None or place < shown or job.id in opened
            ],
        )
    more = more_button(len(ordered), shown)
    return card("Jobs", body, more, aside=el("span.bh-count", said) if ordered else None, css="bh-jobs-card")


def _job(job: Job, detail: Detail | None, around: Around) -> Element:
    is_open = detail is not None
    parent: Child = (
        [" · ", el("a.bh-link.bh-job-parent", f"rerun of #{job.parent}", href=around.links.job(job.parent))]
        if job.parent
        else None
    )
    dataset = job.inputs[0] if job.inputs else None
    return el(
        "tbody.bh-job" + (".bh-job-opened" if is_open else ""),
        el(
            "tr.bh-job-row",
            el("td", state(str(job.state), "bh-job-state", job.reason)),
            el(
                "td.bh-job-what",
                el("span.bh-job-title", job.title),
                el(
                    "span.bh-job-by",
                    f"#{job.id} · ",
                    starter(job, around.triggers),
                    parent,
                    " · ",
                    ago(job.created),
                ),
            ),
            el("td.bh-job-dataset", dataset.name if dataset else ""),
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
                el(
                    "button.bh-icon-button.bh-chevron",
                    el("span.bh-unseen", f"{'Close' if is_open else 'Open'} job {job.id}"),
                    type="button",
                    aria_expanded="true" if is_open else "false",
                ),
            ),
            on={"click": ["job.toggle", job.id]},
        ),
        el("tr.bh-job-detail-row", el("td", show(job, detail, around), colspan="7"))
        if detail is not None
        else None,
        key=f"job-{job.id}",
        id=f"bh-job-{job.id}",
        data_job=str(job.id),
        data_state=str(job.state),
        data_template=job.template,
    )


def _results(job: Job, around: Around) -> list[Child]:
    found: list[Child] = list(key_metrics(job, around.templates.get(template_of(job))))
    if job.state is JobState.RUNNING:
        return [progress(job), el("div.bh-key-metrics", found) if found else None]
    if job.state in (JobState.FAILED, JobState.PENDING, JobState.CANCELLED) and job.reason:
        return [el("span.bh-job-reason", job.reason)]
    if job.state is JobState.QUEUED:
        return [el("span.bh-job-reason", job.reason or f"waits for {plural(job.profile.cpus, 'free CPU')}")]
    return [el("div.bh-key-metrics", found)]
