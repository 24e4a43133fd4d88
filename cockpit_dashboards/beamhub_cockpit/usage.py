"""What was used of the licences, and the dialog that adds to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from beamhub.schemas import Licence, UsageKey, UsageRow

from beamhub_cockpit.format import cpu_hours, number, plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import bar, card
from beamhub_cockpit.question import Question, ask_reason

SHOWN: Final = 24  # rows: of months, two years


def panel(rows: Sequence[UsageRow], by: UsageKey, links: Links) -> Element:
    """CPU-hours as bars, by what the viewer chooses; the newest months, or what used most."""
    if by is UsageKey.MONTH:
        shown = list(rows)[-SHOWN:]
    else:
        shown = sorted(rows, key=lambda row: row.cpu_seconds, reverse=True)[:SHOWN]
    most = max((row.cpu_seconds for row in shown), default=0) or 1
    hidden = len(rows) - len(shown)
    chosen = el(
        "select.bh-usage-by",
        [el("option", f"by {key}", value=key.value, selected=key is by or None) for key in UsageKey],
        name="by",
        value=by.value,
        aria_label="What is told apart",
        on={"change": ["usage.by"]},
    )
    return card(
        "Usage",
        el("ul.bh-usage", [_row(str(getattr(row, by)), row, most) for row in shown])
        if shown
        else el("p.bh-empty", "Nothing has been charged yet."),
        el(
            "p.bh-hint",
            f"{number(hidden)} more in the whole report. " if hidden else None,
            el("a.bh-link", "Download as CSV", href=links.api("usage", by=by.value, format="csv")),
            " · ",
            el("a.bh-link", "Open as a plot", href=links.api("usage", by=by.value, format="svg")),
        ),
        aside=el("form.bh-usage-choice", chosen),
        css="bh-usage-card",
    )


def _row(name: str, row: UsageRow, most: int) -> Element:
    return el(
        "li.bh-licence.bh-usage-row",
        el("span.bh-licence-title", _title(name)),
        el("span.bh-licence-left", cpu_hours(row.cpu_seconds)),
        bar(row.cpu_seconds / most, f"{name}: CPU-hours"),
        el("span.bh-licence-line", plural(row.jobs, "job")),
        key=name,
        data_usage=name,
    )


def _title(name: str) -> str:
    """ "2026-11" is November 2026; all else is what it is called."""
    try:
        return f"{datetime.strptime(name, '%Y-%m').replace(tzinfo=UTC):%B %Y}"
    except ValueError:
        return name


def top_up(licence: Licence, do: Callable[[Mapping[str, str]], None]) -> Question:
    """Asks how many CPU-hours to add, and why."""
    return Question(
        f"Top up {licence.title}?",
        "Top up",
        do,
        (
            el(
                "p",
                f"{cpu_hours(licence.available)} left. Jobs that wait for credit start by themselves.",
            ),
            el(
                "div.bh-field",
                el("label", "CPU-hours", for_="top-up-hours"),
                el(
                    "input",
                    id="top-up-hours",
                    name="hours",
                    type="number",
                    min="0.01",
                    max="1000000",
                    step="0.01",
                    required=True,
                    focus=True,
                ),
            ),
            ask_reason("Why?", "It stands in the ledger.", focus=False),
        ),
        name="bh-top-up",
    )
