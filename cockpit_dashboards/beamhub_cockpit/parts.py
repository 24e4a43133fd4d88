"""Small pieces that many regions share: states, bars, facts, people."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import zip_longest
from typing import Final

from beamhub.schemas import Dataset, Experiment, Job, JobState, Role, Trigger

from beamhub_cockpit.format import cpu_hours, duration, number, plural, quantity, unbroken
from beamhub_cockpit.html import Child, Element, el

# state -> how it looks (the word itself is always there too)
TONES: Final = {
    "pending": "wait", "queued": "wait", "running": "live", "finished": "good", "failed": "bad",
    "cancelled": "off",
    "receiving": "live", "complete": "good", "incomplete": "warn",
    "planned": "off", "processing": "good", "closed": "off",
    "connected": "good", "not connected": "bad", "no agent yet": "off",
    "left out": "off", "in quarantine": "warn",
    "on": "good", "paused": "warn", "active": "live",
}  # fmt: skip
ROLES: Final = {Role.PI: "PI", Role.COLLABORATOR: "collaborator", Role.VIEWER: "viewer", Role.STAFF: "staff"}


def state(word: str, extra_class: str = "", title: str = "") -> Element:
    """A state as a word with a shape and a colour."""
    tone = TONES.get(word, "off")
    return el(f"span.bh-state.bh-tone-{tone}", word, class_=extra_class, title=title or None, data_state=word)


def bar(done: float | None, title: str, tone: str = "") -> Element:
    """How far something is, 0 to 1; None: going on, nobody knows how far."""
    if done is None:
        return el(
            "div.bh-progress.bh-progress-unknown",
            el("div.bh-progress-done"),
            role="progressbar",
            aria_label=title,
        )
    percent = f"{min(max(done, 0.0), 1.0) * 100:.1f}%"
    return el(
        "div.bh-progress",
        el("div.bh-progress-done", class_=f"bh-tone-{tone}" if tone else None, vars={"--done": percent}),
        role="progressbar",
        aria_label=title,
        aria_valuenow=f"{min(max(done, 0.0), 1.0) * 100:.0f}",
        aria_valuemin="0",
        aria_valuemax="100",
    )


def facts(pairs: Iterable[tuple[str, Child]]) -> Element:
    """Names and values, side by side; those without a value are left out."""
    return el(
        "dl.bh-facts",
        [el("div", el("dt", name), el("dd", value)) for name, value in pairs if value not in (None, "", "–")],
    )


def card(title: str, *content: Child, aside: Child = None, css: str = "", **attributes: str) -> Element:
    """A titled part of a page."""
    name = f"section.bh-card{'.' + css if css else ''}"
    return el(
        name, el("header.bh-card-head", el("h2", title), aside), *content, aria_label=title, **attributes
    )


def table(
    css: str, names: Sequence[str], rows: Iterable[Element], *, right: Container[str] = (), last: str = ""
) -> Element:
    """A table with these columns, of which the numbers stand on the `right`; the `last` one's name is only
    said, not shown. In a narrow window a row becomes a block, in which each cell has its column's name.
    """
    head = [el("th.bh-right" if name in right else "th", name, scope="col") for name in names]
    named = [
        replace(
            row,
            children=tuple(
                replace(cell, attributes={**cell.attributes, "data-name": name})
                if name and isinstance(cell, Element)
                else cell
                for name, cell in zip_longest(["", *names[1:]], row.children)
            ),
        )
        for row in rows
    ]
    said = el("th", el("span.bh-unseen", last), scope="col") if last else None
    return el(f"table.bh-table.bh-stacks{css}", el("thead", el("tr", head, said)), el("tbody", named))


def ago(moment: datetime | None) -> Element | None:
    """A moment as "12 s ago", kept current in the browser."""
    return None if moment is None else el("time.bh-ago", ago=moment.isoformat())


def button(
    label: Child,
    action: list[str | int] | None,
    *,
    look: str = "bh-button",
    css: str = "",
    title: str = "",
    said: str = "",
    disabled: bool = False,
    focus: bool = False,
    key: str | None = None,
    twin: str | None = None,
    expanded: bool | None = None,
) -> Element:
    """A button that does something; without an action, it sends the form that it is in.

    `look` is "bh-button", "bh-text-button" or "bh-icon-button"; `said` is its name where the label is a sign.
    A button that comes elsewhere when another one goes, as Resume when Pause does, has its `twin`'s name.
    """
    return el(
        f"button.{look}",
        label,
        type="button" if action else "submit",
        class_=css or None,
        title=title or None,
        aria_label=said or None,
        disabled=disabled or None,
        focus=focus or None,
        data_twin=twin,
        aria_expanded=None if expanded is None else "true" if expanded else "false",
        on={"click": action} if action else None,
        key=key,
    )


def more_button(count: int, shown: int | None, noun: str, *, goes_on: bool) -> Element | None:
    """Under a list that is not shown to its end, or of which the page does not know all: it `goes_on`."""
    if shown is not None and count > shown:
        label = f"Show {'' if goes_on else 'all '}{number(count)}"
        return button(label, ["list.all"], look="bh-text-button", css="bh-more")
    if goes_on:
        return button(
            "Older …",
            [f"{noun}.older"],
            look="bh-text-button",
            css="bh-more bh-older",
            said=f"Older {noun} …",
        )
    return None


def finder(noun: str, key: str, placeholder: str = "Find by name") -> Element:
    """The field in which something is looked for; with another `key` it is empty again."""
    return el(
        "input",
        type="text",
        id=f"find-{noun}",
        placeholder=placeholder,
        aria_label=f"Find {noun}",
        autocomplete="off",
        spellcheck="false",
        maxlength="200",
        on={"input": [f"{noun}.find"]},
        key=f"find-{key}",
    )


def file_link(text: str, href: str, css: str = "") -> Element:
    """A link that downloads a file from the service; without leaving the page, which would end its kernel."""
    return el("a.bh-link", text, href=href, class_=css or None, title=text, download=text.rsplit("/", 1)[-1])


def person(name: str, me: str) -> Element:
    """Somebody's name; the viewer's own says so."""
    return el("span.bh-person", name, el("span.bh-you", " (you)") if name == me else None)


def starter(job: Job, triggers: Mapping[int, Trigger]) -> Element:
    """Who started a job: a person, or a trigger rule (its title on hovering)."""
    who, rule = job.launched_by, by_rule(job.launched_by)
    if rule is None:
        return el("span.bh-job-starter", f"by {who}")
    known = triggers.get(rule)
    title = f"Trigger rule: {known.title}" if known else f"Trigger rule {rule}"
    return el("span.bh-job-starter", "automatic", title=title)


def by_rule(who: str) -> int | None:
    """The number of the trigger rule, where it was one that did something."""
    number = who.removeprefix("trigger:")
    return int(number) if number != who and number.isdigit() else None


def actor(who: str, triggers: Mapping[int, Trigger]) -> str:
    """Who did something, in words: "by ada", "by the rule “DIALS”", "by beamhub itself"."""
    rule = by_rule(who)
    if rule is not None:
        return f"by the rule “{triggers[rule].title}”" if rule in triggers else f"by rule {rule}"
    return "by beamhub itself" if who == "beamhub" else f"by {who}"


def runtime(job: Job) -> Element | None:
    """How long a job has run, or is running."""
    if job.started is None:
        return None
    if job.ended is None:
        return el("time.bh-runtime", since=job.started.isoformat())
    return el("span.bh-runtime", duration(job.ended - job.started))


def why(job: Job) -> str:
    """Why a job is as it is; "" where there is nothing to say."""
    return unbroken(job.reason)


def cost(job: Job) -> str:
    """What a job has cost, or may cost at most."""
    if job.state.ended:
        return cpu_hours(job.cpu_seconds)
    return f"at most {cpu_hours(job.profile.cpus * job.profile.walltime)}"


def template_of(job: Job) -> str:
    """By what a page knows the template of a job: its name, or the path of a member's own notebook."""
    return job.notebook or job.template


def can(experiment: Experiment | None, action: str) -> bool:
    """May the viewer do this here? (As named in the service's table of permissions.)"""
    return experiment is not None and action in experiment.actions


def rank(job: Job) -> tuple[int, int]:
    """Newest first, but what is running or waiting stays above what has ended."""
    order = {JobState.RUNNING: 0, JobState.QUEUED: 1, JobState.PENDING: 1}
    return order.get(job.state, 2), -job.id


def acquisition_facts(dataset: Dataset) -> Element:
    """What a dataset's master file says of the measurement, the important first."""
    meta = dataset.metadata
    oscillation = meta.get("omega_increment")
    rows, columns = dataset.shape
    return facts(
        [
            ("Kind", str(dataset.kind)),
            (
                "Detector",
                quantity(meta.get("description")) if "description" in meta else f"{columns} × {rows} px",
            ),
            ("Wavelength", quantity(meta.get("wavelength"), ".4f")),
            ("Distance", _millimetres(dataset, "detector_distance")),
            ("Exposure", quantity(meta.get("count_time") or meta.get("frame_time"))),
            ("Rotation", f"{quantity(oscillation)} a frame" if oscillation and oscillation.value else ""),
            ("Grid", _grid(dataset)),
            ("Beam centre", _centre(dataset)),
            ("Sample", quantity(meta.get("sample_name"))),
        ]
    )


def _millimetres(dataset: Dataset, name: str) -> str:
    q = dataset.metadata.get(name)
    if q is None or not isinstance(q.value, int | float):
        return ""
    return f"{q.value * 1000:.1f}\u202fmm" if q.unit == "m" else quantity(q)


def _grid(dataset: Dataset) -> str:
    rows, columns = (dataset.metadata.get(name) for name in ("grid_rows", "grid_columns"))
    return f"{quantity(rows)} × {quantity(columns)}" if rows and columns else ""


def _centre(dataset: Dataset) -> str:
    x, y = (dataset.metadata.get(f"beam_center_{axis}") for axis in "xy")
    if x is None or y is None or not isinstance(x.value, int | float) or not isinstance(y.value, int | float):
        return ""
    return f"{x.value:.1f}, {y.value:.1f}\u202fpx"


def arrived(dataset: Dataset) -> str:
    """ "120 of 450 frames"; of a series, "120 frames so far" and in the end "120 frames". Where all can be
    read while a file is still on its way, that is said, too."""
    readable, announced = dataset.frames_readable, dataset.frames_announced
    if dataset.open_ended and readable == announced:
        return plural(announced, "frame") + (" so far" if dataset.state == "receiving" else "")
    last = dataset.state == "receiving" and 0 < announced <= readable
    arriving = ", a file still on its way" if last else ""
    return f"{number(readable)} of {plural(announced, 'frame')}{arriving}"
