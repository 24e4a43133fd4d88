"""All experiments of the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beamhub.client import Message
from beamhub.schemas import Experiment

from beamhub_cockpit.format import day, plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import ROLES, card, state


class Experiments(Page):
    """The page `experiments.ipynb`."""

    names = ("list",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.experiments: list[Experiment] = []

    def load(self) -> None:
        self.experiments = self.client.experiments()

    def heard(self, message: Message) -> None:
        if message.kind.startswith(("experiment.", "member.", "instrument.")):
            self.refresh_soon()

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        if not self.experiments:
            nothing = el(
                "section.bh-nothing",
                el("h1", "You do not belong to an experiment yet"),
                el(
                    "p",
                    "Ask the principal investigator of a beamtime to invite you, "
                    "or the staff of the instrument to create yours.",
                ),
            )
            return {"list": (nothing,)}
        table = el(
            "table.bh-table",
            el(
                "thead",
                el(
                    "tr",
                    [
                        el("th", title, scope="col")
                        for title in (
                            "Experiment",
                            "State",
                            "Instrument",
                            "PI",
                            "Your role",
                            "Started",
                            "Ended",
                        )
                    ],
                ),
            ),
            el("tbody", [self._row(e) for e in self.experiments]),
        )
        count = el("span.bh-count", plural(len(self.experiments), "experiment"))
        return {"list": (card("Experiments", table, aside=count, css="bh-experiments"),)}

    def _row(self, e: Experiment) -> Element:
        return el(
            "tr.bh-experiment-row",
            el(
                "td",
                el("a.bh-link.bh-strong", e.title, href=self.links.cockpit(e.id)),
                el("span.bh-sub", e.id),
            ),
            el("td", state("active" if e.active else str(e.state))),
            el("td", e.instrument),
            el("td", e.pi),
            el("td", ROLES[e.role] if e.role else "operator"),
            el("td", day(e.started)),
            el("td", day(e.ended)),
            key=e.id,
            data_experiment=e.id,
        )
