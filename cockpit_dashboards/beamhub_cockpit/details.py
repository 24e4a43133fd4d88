"""One job in full: results, log, parameters, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from beamhub.schemas import (
    Job,
    JobState,
)

from beamhub_cockpit import history, results
from beamhub_cockpit.around import Around
from beamhub_cockpit.format import number, profile, size, unit_name
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import (
    ago,
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
from beamhub_cockpit.reading import ANSI, LOG_SHOWN, Detail
from beamhub_cockpit.results import progress

PRIORITIES: Final = (-100, 100)  # the lowest and the highest
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


def show(job: Job, detail: Detail, around: Around, *, page: bool = False) -> Element:
    """The opened job, in tabs; with `page`, on a page of its own, everything below one another."""
    sections: dict[str, Callable[[], list[Child]]] = {
        "results": lambda: results.show(job, detail, around),
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


# --- log, parameters, files ---


def _log(job: Job, detail: Detail) -> list[Child]:
    if not detail.log:
        return [el("p.bh-empty", "The log is empty." if job.state.ended else "The log is empty so far.")]
    cut = len(detail.log) >= LOG_SHOWN
    return [
        el("p.bh-hint", "Only the end is shown; the whole log is among the files.") if cut else None,
        el("pre.bh-log", ANSI.sub("", detail.log), tail=True, tabindex="0", aria_label="Log"),
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
        ("Template", [f"{job.title} ({template_of(job)}, version {job.template_version}) ", _changed(job)]),
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
