"""One job in full: results, log, parameters, files; kept current while it runs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from beamhub.client import ApiError, Client
from beamhub.schemas import (
    Artifact,
    Attempt,
    Dataset,
    File,
    Job,
    JobState,
    JobStep,
    Lineage,
    Template,
    Trigger,
)

from beamhub_cockpit import history
from beamhub_cockpit.format import NARROW, mark, metric, number, profile, size, unit_name
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.live import Live
from beamhub_cockpit.parts import (
    ago,
    bar,
    button,
    cost,
    facts,
    file_link,
    runtime,
    starter,
    state,
    template_of,
    why,
)
from beamhub_cockpit.question import Question
from beamhub_cockpit.series import Follower, undrawn

LOG_SHOWN: Final = 200_000  # characters
PLOT_LIMIT: Final = 8_000_000  # bytes of an image that a page shows
PLOTS: Final = 12
PLOT_HEIGHT: Final = 84  # pixels, of each panel
EVERY: Final = 2.0  # seconds between two looks at a running job
PRIORITIES: Final = (-100, 100)  # the lowest and the highest
PNG: Final = b"\x89PNG\r\n\x1a\n"
HISTORY: Final = ("history", "History")
TABS: Final = (
    ("results", "Results"),
    ("log", "Log"),
    ("parameters", "Parameters"),
    ("files", "Files"),
    HISTORY,
)
PAGE: Final = (
    ("results", "Results"),
    ("parameters", "Parameters"),
    HISTORY,
    ("files", "Files"),
    ("log", "Log"),
)
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Detail:
    """What has been read of one job beyond the job itself."""

    job: int
    tab: str = "results"
    log: str = ""
    log_next: int = 0
    files: list[File] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)  # "<job>/<path>" -> PNG
    drawn: dict[str, int] = field(default_factory=dict)  # the size that it had then: a job may draw again
    followers: dict[str, Follower] = field(default_factory=dict)
    read: float = 0.0
    final: bool = False  # read after the job had ended
    trouble: str = ""
    lineage: Lineage | None = None
    steps: list[JobStep] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    known: JobState | None = None  # the state up to which these have been read

    def refresh(self, job: Job, client: Client, live: Live, links: Links) -> None:
        """Read what is new, now and then. On the page's worker."""
        if self.final or time.monotonic() - self.read < EVERY:
            return
        self.read = time.monotonic()
        self.trouble = ""
        try:
            self._history(job, client)
            if job.started is not None:
                self._log(client)
                self.files = client.job_files(self.job)
                self._series(client, live, links.frames(job))
                self._plots(job, client)
        except ApiError as error:
            self.trouble = str(error)
        self.final = job.state.ended

    def _history(self, job: Job, client: Client) -> None:
        if self.known != job.state:
            self.lineage = client.lineage(self.job)
            self.steps = client.history(self.job)
            self.attempts = client.attempts(self.job)
            self.known = job.state

    def _log(self, client: Client) -> None:
        while True:
            part, after = client.job_log(self.job, self.log_next)
            if after == self.log_next:
                return
            self.log_next = after
            self.log = (self.log + part)[-LOG_SHOWN:]

    def _series(self, client: Client, live: Live, link: str) -> None:
        for name in undrawn(self.files):
            self.followers.setdefault(name, Follower(self.job, name, PLOT_HEIGHT, link=link))
        for follower in self.followers.values():
            follower.refresh(client, live)

    def _plots(self, job: Job, client: Client) -> None:
        sizes = {file.path: file.size for file in self.files}
        for artifact in plots(job)[:PLOTS]:
            name = f"{job.id}/{artifact.path}"
            size = sizes.get(artifact.path, artifact.size)
            if self.drawn.get(name) != size and size <= PLOT_LIMIT:
                self.drawn[name] = size
                content = client.job_file(job.id, artifact.path)
                if content.startswith(PNG):
                    self.images[name] = content


def plots(job: Job) -> list[Artifact]:
    """The pictures that a job made."""
    return [a for a in job.artifacts if a.kind == "plot" and a.path.lower().endswith(".png")]


@dataclass(frozen=True)
class Around:
    """What stands around a job and helps to read it."""

    templates: Mapping[str, Template]
    triggers: dict[int, Trigger]
    datasets: Mapping[int, Dataset]
    jobs: Mapping[int, Job]
    links: Links
    experiment: str
    may_run: bool
    may_cancel: bool
    may_open: bool
    may_operate: bool = False  # the instrument
    me: str = ""  # the viewer

    def may_rank(self, job: Job) -> bool:
        """May the viewer change when the turn of a waiting job is? (The service decides; own ones later.)"""
        waits = job.state in (JobState.PENDING, JobState.QUEUED)
        return waits and self.may_cancel and (self.may_operate or job.launched_by == self.me)


def show(job: Job, detail: Detail, around: Around, *, page: bool = False) -> Element:
    """The opened job, in tabs; with `page`, on a page of its own, everything below one another."""
    sections: dict[str, Callable[[], list[Child]]] = {
        "results": lambda: _results(job, detail, around),
        "log": lambda: _log(job, detail),
        "parameters": lambda: _parameters(job, around),
        "files": lambda: _files(job, detail, around.links),
        "history": lambda: history.show(
            job, detail.lineage, detail.steps, detail.attempts, around.triggers, around.links
        ),
    }
    if page:
        return el(
            "div.bh-job-detail.bh-job-page",
            [
                el(f"section.bh-card.bh-part-{name}", el("h2", title), sections[name](), key=name)
                for name, title in PAGE
            ],
            key=f"detail-{job.id}",
        )
    return el(
        "div.bh-job-detail",
        el(
            "div.bh-tabs",
            el(
                "div.bh-tab-list",
                [
                    el(
                        f"button.bh-tab.bh-tab-{name}",
                        title,
                        type="button",
                        role="tab",
                        id=f"bh-tab-{job.id}-{name}",
                        aria_selected="true" if detail.tab == name else "false",
                        aria_controls=f"bh-panel-{job.id}",
                        tabindex="0" if detail.tab == name else "-1",
                        on={"click": ["job.tab", job.id, name]},
                    )
                    for name, title in TABS
                ],
                role="tablist",
                aria_label=f"Job {job.id}",
            ),
            el("div.bh-tab-links", tools(job, around, whole=True)),
        ),
        el(
            "div.bh-tab-panel",
            sections.get(detail.tab, sections["results"])(),
            role="tabpanel",
            id=f"bh-panel-{job.id}",
            aria_labelledby=f"bh-tab-{job.id}-{detail.tab}",
            tabindex="0",
            key=detail.tab,
        ),
        key=f"detail-{job.id}",
        data_job=str(job.id),
    )


def tools(job: Job, around: Around, *, whole: bool) -> list[Element]:
    """What can be done with a job."""
    links, found = around.links, []
    if whole:
        found.append(el("a.bh-link.bh-job-open", "Full page", href=links.job(job.id)))
    if job.started is not None:
        html = links.api("jobs", job.id, "notebook", format="html")
        found.append(el("a.bh-link.bh-job-notebook", "Notebook", href=html, target="_blank", rel="noopener"))
        if around.may_open:
            lab = links.session(around.experiment, f"{job.folder}/notebook.ipynb")
            found.append(
                el("a.bh-link.bh-job-lab", "Open in JupyterLab", href=lab, target="_blank", rel="noopener")
            )
    if (other := _beside(job, around)) is not None:
        found.append(el("a.bh-link.bh-job-compare", "Compare", href=links.compare(other, job.id)))
    if around.may_operate and job.state is JobState.FINISHED and job.notebook is None:
        rule = links.rules(job=job.id)
        found.append(el("a.bh-link.bh-job-rule", "Make this the rule …", href=rule))
    if around.may_rank(job):
        found.append(_tool("Priority …", "priority", job, "bh-job-rank"))
    if around.may_cancel and not job.state.ended:
        found.append(_tool("Cancel …", "cancel", job, "bh-button-danger bh-job-cancel"))
    if around.may_run:
        found.append(_tool("Rerun …", "rerun", job, "bh-button-main bh-job-rerun"))
    return found


def _tool(label: str, what: str, job: Job, css: str) -> Element:
    """A button; with its key, none becomes another one while it is being clicked."""
    return button(label, [f"job.{what}", job.id], css=css, key=what)


def ask_priority(job: Job, do: Callable[[Mapping[str, str]], None], *, any_: bool) -> Question:
    """The dialog that says when a waiting job's turn is: any time, or not earlier than now."""
    most = PRIORITIES[1] if any_ else job.priority
    return Question(
        f"When is the turn of #{job.id} {job.title}?",
        "Set priority",
        do,
        (
            el(
                "div.bh-field",
                el("label", "Priority", for_="job-priority"),
                el(
                    "input.bh-number",
                    type="number",
                    id="job-priority",
                    name="priority",
                    value=str(job.priority),
                    min=str(PRIORITIES[0]),
                    max=str(most),
                    step="1",
                    required=True,
                    focus=True,
                ),
                el("p.bh-hint", "Of the jobs that wait, those with a higher one start first; 0 is usual."),
                el("p.bh-hint", "You can lower it; the instrument's staff can raise it.")
                if not any_
                else None,
            ),
        ),
        name="bh-priority",
    )


def _beside(job: Job, around: Around) -> int | None:
    """Which job this one is compared with first: its parent, or the last one of the same template."""
    if job.parent is not None:
        return job.parent
    others = (j.id for j in around.jobs.values() if j.template == job.template and j.metrics)
    return max((id_ for id_ in others if id_ != job.id), default=None)


# --- results ---


def _results(job: Job, detail: Detail, around: Around) -> list[Child]:
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
    tail = "\n".join(_ANSI.sub("", log).rstrip().splitlines()[-12:]) if str(job.state) == "failed" else ""
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


# --- log, parameters, files ---


def _log(job: Job, detail: Detail) -> list[Child]:
    if not detail.log:
        return [el("p.bh-empty", "The log is empty." if job.state.ended else "The log is empty so far.")]
    cut = len(detail.log) >= LOG_SHOWN
    return [
        el("p.bh-hint", "Only the end is shown; the whole log is among the files.") if cut else None,
        el("pre.bh-log", _ANSI.sub("", detail.log), tail=True, tabindex="0", aria_label="Log"),
    ]


def _parameters(job: Job, around: Around) -> list[Child]:
    template = around.templates.get(template_of(job))
    specs = template.parameters.get("properties", {}) if template else {}
    rows = []
    for name, value in job.parameters.items():
        spec = specs.get(name) if isinstance(specs, dict) else None
        spec = spec if isinstance(spec, dict) else {}
        changed = "default" in spec and spec["default"] != value
        rows.append(
            el(
                "tr",
                el(
                    "th",
                    str(spec.get("title") or name),
                    scope="row",
                    title=str(spec.get("description", "")) or None,
                ),
                el("td.bh-metric-value", _parameter(value)),
                el("td.bh-metric-unit", "" if value is None else unit_name(str(spec.get("unit", "")))),
                el("td", el("span.bh-changed", "changed") if changed else None),
                key=name,
            )
        )
    lineage: list[tuple[str, Child]] = [
        ("Template", [f"{job.title} ({template_of(job)}, version {job.template_version})", _changed(job)]),
        ("Input", [_input(job, around)]),
        ("Started", [starter(job, around.triggers), " ", ago(job.created)]),
        ("Rerun of", _ancestor(job, around)),
        ("Reruns", _descendants(job, around)),
        (
            "Profile",
            profile(job.profile),
        ),
        ("Paid by", f"{job.sponsor} ({cost(job)})"),
        ("Priority", number(job.priority)),
        ("Runtime", runtime(job)),
    ]
    return [
        el(
            "div.bh-parameters",
            el("table.bh-metrics", el("tbody", rows)) if rows else el("p.bh-empty", "No parameters."),
            facts(lineage),
        )
    ]


def _changed(job: Job) -> Child:
    if not job.template_changed:
        return None
    return el("span.bh-changed.bh-template-changed", "changed since: a rerun takes it as it is now")


def _parameter(value: object) -> str:
    if value is None:
        return "automatic"
    if isinstance(value, bool | int | float | str):
        return number(value)
    if isinstance(value, list):
        return ", ".join(_parameter(v) for v in value)
    return str(value)


def _input(job: Job, around: Around) -> Child:
    found: list[Child] = []
    for i in job.inputs:
        if i.id is None:  # a file
            found += [i.name, " "]
            continue
        name = i.name or f"{i.kind} {i.id}"
        href = around.links.frame(i.id) if i.kind == "dataset" else around.links.job(i.id)
        found += [el("a.bh-link", name, href=href), " "]
    return found


def _ancestor(job: Job, around: Around) -> Child:
    if job.parent is None:
        return None
    parent = around.jobs.get(job.parent)
    return el(
        "a.bh-link",
        f"#{job.parent}" + (f" {parent.title}" if parent else ""),
        href=around.links.job(job.parent),
    )


def _descendants(job: Job, around: Around) -> Child:
    found = [j for j in around.jobs.values() if j.parent == job.id]
    return (
        [[el("a.bh-link", f"#{j.id} ({j.launched_by})", href=around.links.job(j.id)), " "] for j in found]
        if found
        else None
    )


def _files(job: Job, detail: Detail, links: Links) -> list[Child]:
    if not detail.files:
        return [el("p.bh-empty", "No files yet.")]
    titles = {a.path: a.title for a in job.artifacts}
    wanted = {a.path: ("data", "notebook", "plot", "log").index(a.kind) for a in job.artifacts}
    order = sorted(detail.files, key=lambda f: (wanted.get(f.path, len(wanted) + 4), f.path))
    return [
        el(
            "table.bh-files",
            el(
                "thead",
                el(
                    "tr",
                    el("th", "File", scope="col"),
                    el("th", "What", scope="col"),
                    el("th.bh-right", "Size", scope="col"),
                ),
            ),
            el(
                "tbody",
                [
                    el(
                        "tr.bh-file",
                        el(
                            "td",
                            file_link(f.path, links.job_file(job.id, f.path)),
                        ),
                        el("td", titles.get(f.path, "")),
                        el("td.bh-right", size(f.size)),
                        key=f.path,
                    )
                    for f in order
                ],
            ),
        )
    ]


def summary(job: Job, around: Around) -> Element:
    """The head of a job's own page."""
    return el(
        "div.bh-job-summary",
        state(str(job.state), "bh-job-state", why(job)),
        facts(
            [
                ("Dataset", _input(job, around)),
                ("Started", [starter(job, around.triggers), " ", ago(job.created)]),
                ("Rerun of", _ancestor(job, around)),
                ("CPUs", number(job.profile.cpus)),
                ("Runtime", runtime(job)),
                ("Cost", cost(job)),
                ("Paid by", job.sponsor),
                ("Priority", number(job.priority) if job.started is None and not job.state.ended else None),
            ]
        ),
        progress(job),
    )


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


def close(detail: Detail, live: Live) -> None:
    """Give back the plots of a job that is no longer shown."""
    drawn = [f.plot for f in detail.followers.values() if f.plot is not None]

    def shut() -> None:
        for plot in drawn:
            with contextlib.suppress(Exception):
                plot.close()

    live.show(shut)
