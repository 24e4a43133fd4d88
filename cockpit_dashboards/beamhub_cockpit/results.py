"""What came of a job: its metrics and how good they are, its plots, or why it failed."""

from __future__ import annotations

from beamhub.schemas import (
    Artifact,
    Job,
    JobState,
    Template,
)

from beamhub_cockpit.around import Around
from beamhub_cockpit.format import NARROW, mark, metric, number, unit_name
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import (
    bar,
    template_of,
    why,
)
from beamhub_cockpit.reading import ANSI, Detail, plots


def show(job: Job, detail: Detail, around: Around) -> list[Child]:
    """Numbers and plots, as far as there are any."""
    if job.started is None:
        return [problem(job, detail) or el("p.bh-empty", why(job) or "Not started yet.")]
    drawn = [f.plot for f in detail.followers.values() if f.plot is not None]
    pictures = [a for a in plots(job) if f"{job.id}/{a.path}" in detail.images]
    table = metrics_table(job, around.templates.get(template_of(job)))
    return [
        problem(job, detail),
        el("p.bh-error", detail.trouble, role="alert") if detail.trouble else None,
        el(
            "div.bh-results",
            el(
                "div.bh-results-numbers",
                el("h3", "Metrics"),
                table
                if table
                else el(
                    "p.bh-empty", "No metrics yet." if not job.state.ended else "This job gave no metrics."
                ),
            ),
            el(
                "div.bh-results-plots",
                [el("div.bh-series", widget=plot.ref, key=f"series-{plot.model_id}") for plot in drawn],
                el("div.bh-figures", [_figure(job, a, around.links) for a in pictures]) if pictures else None,
                None
                if drawn or pictures
                else el("p.bh-empty", "No plots yet." if not job.state.ended else "No plots."),
            ),
        ),
    ]


def _figure(job: Job, picture: Artifact, links: Links) -> Element:
    title = picture.title or picture.path
    image = el("img", blob=f"{job.id}/{picture.path}", alt=title)
    href = links.job_file(job.id, picture.path)
    return el(
        "figure.bh-figure",
        el("a", image, href=href, title="Open the picture by itself", target="_blank", rel="noopener"),
        el("figcaption", title),
        key=picture.path,
    )


def problem(job: Job, detail: Detail | None) -> Element | None:
    """Why a job failed, in words, with the end of its log."""
    if str(job.state) not in ("failed", "cancelled", "pending") or not job.reason:
        return None
    failure = job.failure
    log = detail.log if detail and detail.log else failure.log if failure else ""
    tail = "\n".join(ANSI.sub("", log).rstrip().splitlines()[-12:]) if str(job.state) == "failed" else ""
    where = failure.title if failure else ""
    return el(
        f"div.bh-problem.bh-problem-{job.state}",
        el("p.bh-reason", why(job)),
        el("p.bh-hint.bh-failed-cell", f"It stopped in the part “{where}” of the notebook.")
        if where
        else None,
        el("pre.bh-log-end", tail) if tail else None,
        el(
            "p.bh-hint",
            "It starts by itself then. To be faster, rerun it with another licence, and cancel this one.",
        )
        if job.state is JobState.PENDING
        else None,
    )


def metrics_table(job: Job, template: Template | None) -> Element | None:
    """All metrics, in the template's order, with how good they are."""
    specs = template.metrics if template else {}
    names = [n for n in specs if n in job.metrics] + [n for n in job.metrics if n not in specs]
    if not names:
        return None
    rows = []
    for name in names:
        spec = specs.get(name)
        shown, unit = metric(spec, job.metrics[name])
        how = mark(spec, job.metrics[name])
        rows.append(
            el(
                "tr.bh-metric",
                el(
                    "th",
                    spec.title if spec else name,
                    scope="row",
                    title=(spec.description or None) if spec else None,
                ),
                el("td.bh-metric-value", shown),
                el("td.bh-metric-unit", unit),
                el(
                    "td",
                    el(f"span.bh-mark.bh-mark-{how}", how, title=_bounds(job, template, name))
                    if how
                    else None,
                ),
                key=name,
                data_metric=name,
            )
        )
    return el("table.bh-metrics", el("tbody", rows))


def _bounds(job: Job, template: Template | None, name: str) -> str:
    spec = template.metrics[name] if template else None
    if spec is None:
        return ""
    sign = "≥" if spec.better == "higher" else "≤"
    unit = unit_name(job.metrics[name].unit or spec.unit)
    found = [
        f"{w} {sign} {number(b, spec.format)} {unit}"
        for w, b in (("good", spec.good), ("acceptable", spec.acceptable))
        if b is not None
    ]
    return ", ".join(found)


def key_metrics(job: Job, template: Template | None, count: int = 6) -> list[Element]:
    """The metrics that matter most, as a line: the first, and those of which is known what is better."""
    specs = template.metrics if template else {}
    given = [n for n in specs if n in job.metrics] or list(job.metrics)
    judged = [n for n in given[1:] if n in specs and specs[n].better and "," not in specs[n].title]
    found = []
    for name in [*given[:1], *(judged or given[1:])][:count]:
        spec = specs.get(name)
        shown, unit = metric(spec, job.metrics[name])
        how = mark(spec, job.metrics[name])
        found.append(
            el(
                "span.bh-key-metric",
                el("span.bh-key-name", spec.title if spec else name),
                el("span.bh-key-value", shown, class_=f"bh-mark-{how}" if how else None),
                el("span.bh-key-unit", unit) if unit else None,
                key=name,
                data_metric=name,
            )
        )
    return found


def progress(job: Job) -> Element | None:
    """How far a running job is."""
    if str(job.state) != "running":
        return None
    step = job.progress.step or "running"
    percent = "" if job.progress.fraction is None else f" {job.progress.fraction * 100:.0f}{NARROW}%"
    return el(
        "div.bh-job-progress",
        bar(job.progress.fraction, step, "live"),
        el("span.bh-job-step", step + percent),
    )
