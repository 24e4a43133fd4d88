"""The list of an experiment's datasets: to find one among hundreds, and to run something on many at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from beamhub.schemas import Dataset, DatasetState

from beamhub_cockpit.format import number, plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.older import Older
from beamhub_cockpit.parts import ago, arrived, button, card, finder, more_button, state

FEW: Final = 8  # datasets that nobody has to search
AT_ONCE: Final = 500  # datasets on each of which the service starts a job at once


@dataclass
class DatasetList:
    """What is looked for in the list, and what is ticked."""

    sought: str = ""
    ticked: set[int] = field(default_factory=set)

    def found(self, datasets: Iterable[Dataset]) -> list[Dataset]:
        """Those whose name or path has what is looked for, newest first."""
        sought = self.sought.strip().casefold()
        ordered = sorted(datasets, key=lambda d: d.id, reverse=True)
        return [d for d in ordered if sought in d.name.casefold() or sought in d.path.casefold()]

    def chosen(self, datasets: Iterable[Dataset]) -> list[Dataset]:
        """What is ticked, in the order in which it was measured."""
        return sorted((d for d in datasets if d.id in self.ticked), key=lambda d: d.id)

    def tick(self, ids: Iterable[int], *, on: bool) -> None:
        """Tick these, or no longer."""
        self.ticked = self.ticked | set(ids) if on else self.ticked - set(ids)


def panel(
    known: Sequence[Dataset],
    chosen: DatasetList,
    seen: int | None,
    links: Links,
    *,
    experiment: str,
    may_run: bool,
    may_operate: bool = False,
    shown: int | None = None,
    older: Older[Dataset] | None = None,
) -> Element:
    """The card with datasets, newest first: `shown` of those that are found (None: all). `seen` is the one in
    view; `older` knows whether the experiment has others, which the page does not know."""
    found = chosen.found(known)
    many = len(known) > FEW or bool(chosen.sought)
    cut = older is not None and not older.whole
    return card(
        "Datasets",
        _finder(found, chosen, experiment, may_run=may_run, cut=cut) if many else None,
        _tools(len(chosen.ticked)) if chosen.ticked else None,
        el(
            "ul.bh-datasets",
            [_dataset(d, chosen, seen, links, may_run, may_operate) for d in found[:shown]],
        )
        if found
        else el("p.bh-empty", "None of this name." if known else "None yet."),
        more_button(
            len(found), shown, "datasets", goes_on=older is not None and older.goes_on(chosen.sought)
        ),
        aside=el("span.bh-count", number(len(known)) + (" listed" if cut else "")) if known else None,
        css="bh-datasets-card",
    )


def _finder(
    found: Sequence[Dataset], chosen: DatasetList, experiment: str, *, may_run: bool, cut: bool
) -> Element:
    ids = {d.id for d in found}
    all_ticked = bool(ids) and ids <= chosen.ticked
    count = number(len(found))
    what = f"the {count} found" if chosen.sought.strip() else f"the {count} listed" if cut else f"all {count}"
    return el(
        "div.bh-finder",
        finder("datasets", experiment),
        button(f"Tick {what}", ["datasets.tick-all"], look="bh-text-button", css="bh-tick-found", key="all")
        if may_run and found and not all_ticked
        else None,
        key="finder",
    )


def _tools(count: int) -> Element:
    too_many = f"At most {AT_ONCE} at once" if count > AT_ONCE else ""
    return el(
        "div.bh-selection",
        el("span.bh-selected", f"{number(count)} ticked", role="status"),
        button(
            "Run on them …",
            ["launch.each"],
            css="bh-small bh-datasets-run",
            title=too_many,
            disabled=bool(too_many),
            key="run",
        ),
        button(
            "×",
            ["datasets.untick"],
            look="bh-icon-button",
            css="bh-untick",
            title="Tick none",
            said="Tick none",
            key="untick",
        ),
        role="toolbar",
        aria_label="Ticked datasets",
        key="tools",
    )


def _dataset(
    d: Dataset, chosen: DatasetList, seen: int | None, links: Links, may_run: bool, may_operate: bool
) -> Element:
    tick = el(
        "label.bh-dataset-tick",
        el("span.bh-unseen", f"Tick {d.name}"),
        el(
            "input",
            type="checkbox",
            checked=d.id in chosen.ticked or None,
            on={"change": ["datasets.tick", d.id]},
        ),
    )
    return el(
        "li.bh-dataset" + (".bh-dataset-shown" if d.id == seen else ""),
        el(
            "span.bh-dataset-head",
            tick if may_run else None,
            el(
                "button.bh-dataset-pick",
                el("span.bh-dataset-title", d.name),
                type="button",
                title=f"{d.name}: show above",
                aria_pressed="true" if d.id == seen else "false",
                on={"click": ["dataset.show", d.id]},
            ),
        ),
        state(str(d.state)),
        el("span.bh-dataset-line", f"{arrived(d)} · {d.kind} · ", ago(d.created)),
        el(
            "span.bh-dataset-tools",
            el("a.bh-link", "View", href=links.frame(d.id), aria_label=f"View {d.name}"),
            button(
                "Run …",
                ["launch.new", d.id],
                look="bh-text-button",
                css="bh-dataset-run",
                said=f"Run … on {d.name}",
            )
            if may_run
            else None,
            _operate(d) if may_operate else None,
        ),
        key=d.id,
        data_dataset=str(d.id),
    )


def _operate(d: Dataset) -> Element:
    """What staff do with a dataset: say that nothing more comes of it or, when it has ended, move it."""
    if d.state is DatasetState.RECEIVING:
        label, what, title = "End …", "end", "Say that no more frames will come"
    else:
        label, what, title = "Move …", "move", "To another experiment of this instrument"
    return button(
        label,
        [f"dataset.{what}", d.id],
        look="bh-text-button",
        css=f"bh-dataset-{what}",
        title=title,
        said=f"{label} {d.name}",
    )


def named(datasets: Sequence[Dataset]) -> str:
    """A few by name, more by their number: "lyso_1, lyso_2", "lyso_1, lyso_2 and 10 more"."""
    names = ", ".join(d.name for d in datasets[:3])
    return names + (f" and {plural(len(datasets) - 3, 'more', 'more')}" if len(datasets) > 3 else "")
