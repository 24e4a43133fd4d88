"""Where a job comes from and how it went: what differs from its parent, its states, its attempts."""

from __future__ import annotations

from collections.abc import Mapping

from beamhub.schemas import Attempt, Job, JobStep, Lineage, Trigger
from pydantic import JsonValue

from beamhub_cockpit.format import cpu_hours, duration, number
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import actor, ago, state
from beamhub_cockpit.plot import label

NAMES = {
    "template": "Template",
    "version": "Version of the template",
    "inputs": "Works on",
    "profile": "Profile",
    "sponsor": "Paid by",
}
DIFF = {"+": "bh-added", "-": "bh-removed", "@": "bh-quiet"}


def show(
    job: Job,
    lineage: Lineage | None,
    steps: list[JobStep],
    attempts: list[Attempt],
    triggers: Mapping[int, Trigger],
    links: Links,
) -> list[Child]:
    """For the tab of a job."""
    return [
        _repeats(job, links),
        _lineage(job, lineage, links) if lineage else None,
        el("div.bh-history", _steps(steps, triggers), _attempts(attempts)),
    ]


def _repeats(job: Job, links: Links) -> Element | None:
    if job.repeats is None or job.repeats == job.id:
        return None
    return el(
        "p.bh-repeats",
        "The same as ",
        el("a.bh-link", f"job #{job.repeats}", href=links.job(job.repeats)),
        ": template, values, data and software. Only its CPUs and who pays may differ.",
    )


def _lineage(job: Job, lineage: Lineage, links: Links) -> Element | None:
    if not lineage.ancestors:
        return None
    parent = lineage.ancestors[0].id
    line: list[Child] = []
    for one in lineage.ancestors:
        line += [" ← " if line else "", el("a.bh-link", f"#{one.id} {one.title}", href=links.job(one.id))]
    rows = [
        el(
            "tr.bh-difference",
            el("th", NAMES.get(one.name, label(one.name)), scope="row"),
            el("td.bh-before", value(one.before)),
            el("td.bh-after", value(one.after)),
            key=f"{one.group}-{one.name}",
            data_name=one.name,
        )
        for one in lineage.differences
    ]
    heads = ("Differs", f"#{parent}", f"#{job.id}")
    return el(
        "section.bh-lineage",
        el("h3", "Made from ", line),
        el(
            "table.bh-differences",
            el("thead", el("tr", [el("th", head, scope="col") for head in heads])),
            el("tbody", rows),
        )
        if rows
        else el("p.bh-quiet", f"Nothing was asked otherwise than in #{parent}."),
        _notebook(lineage.notebook),
    )


def _notebook(lines: list[str]) -> Element | None:
    if not lines:
        return None
    return el(
        "details.bh-notebook-diff",
        el("summary", "What differs in the cells"),
        el(
            "pre.bh-diff",
            [el("span", f"{line}\n", class_=DIFF.get(line[:1])) for line in lines],
            tabindex="0",
        ),
    )


def _steps(steps: list[JobStep], triggers: Mapping[int, Trigger]) -> Element:
    rows = [
        el(
            "tr.bh-step",
            el("td", ago(step.time)),
            el("td", state(str(step.state))),
            el("td", actor(step.actor, triggers), el("p.bh-quiet", step.reason) if step.reason else None),
            key=place,
            data_state=str(step.state),
        )
        for place, step in enumerate(steps)
    ]
    return el("section.bh-steps", el("h3", "States"), el("table.bh-metrics", el("tbody", rows)))


def _attempts(attempts: list[Attempt]) -> Element | None:
    if not attempts:
        return None
    rows = [
        el(
            "tr.bh-attempt",
            el("th", number(one.number), scope="row"),
            el("td", _where(one), el("p.bh-quiet", one.host) if one.host else None),
            el(
                "td",
                duration(one.ended - one.started) if one.started and one.ended else "",
                el("p.bh-quiet", cpu_hours(one.cpu_seconds)) if one.ended else None,
            ),
            el(
                "td",
                one.outcome or ("runs" if one.started else "waits"),
                el("p.bh-quiet", one.reason) if one.reason else None,
            ),
            key=one.number,
        )
        for one in attempts
    ]
    return el("section.bh-attempts", el("h3", "Attempts"), el("table.bh-metrics", el("tbody", rows)))


def _where(one: Attempt) -> str:
    """By what the attempt is known where it runs: "process 1583", "Slurm job 12"."""
    return one.ref.replace("pid ", "process ") if one.ref else one.runner


def value(given: JsonValue) -> str:
    """A parameter's value for a table."""
    if given is None:
        return "–"
    if isinstance(given, bool | int | float | str):
        return number(given)
    if isinstance(given, list):
        return ", ".join(map(value, given))
    return str(given)
