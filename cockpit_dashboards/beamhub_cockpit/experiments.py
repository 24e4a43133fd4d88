"""All experiments of the viewer; the instruments' staff begin new ones here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from beamhub.client import Message
from beamhub.schemas import Experiment, ExperimentCreate, Instrument
from pydantic import ValidationError

from beamhub_cockpit import form, nothing, question, stages
from beamhub_cockpit.format import day, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import ROLES, button, card, finder, state, table
from beamhub_cockpit.question import Question, UnusableError
from beamhub_cockpit.region import Action

WANTED: Final = {
    "title": "Give a title, of at most 200 characters on one line.",
    "pi": "Give the name with which the PI signs in: letters, digits and . _ @ + -",
}
FEW: Final = 8  # experiments that nobody has to search


class Experiments(Page):
    """The page `experiments.ipynb`."""

    names = ("list", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.experiments: list[Experiment] = []
        self.instruments: list[Instrument] = []  # that the viewer looks after
        self.sought = ""
        self.question: Question | None = None

    def load(self) -> None:
        assert self.me is not None  # noqa: S101 (set by the page before it loads)
        me = self.me
        self.experiments = self.client.experiments()
        staff = me.operator or bool(me.staff_of)
        everything = self.client.instruments() if staff else []
        self.instruments = [i for i in everything if me.operator or i.id in me.staff_of]

    def heard(self, message: Message) -> None:
        if message.kind.startswith(("experiment.", "member.", "instrument.")):
            self.refresh_soon()

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        return {
            "list": (
                self._list() if self.experiments or self.instruments else nothing.stranger(self.viewer.name),
            ),
            "dialog": (question.show(self.question),) if self.question else (),
        }

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            "experiments.find": self._find,
            "experiment.new": self._new,
            "experiment.step": self._step,
            "question.yes": self._yes,
            "question.no": self._no,
        }

    def _find(self, action: Action) -> None:
        self.sought = str(action.value or "")

    def _yes(self, action: Action) -> None:
        self.question = question.answer(self.question, action.fields)

    def _no(self, _action: Action) -> None:
        self.question = None

    def _new(self, _action: Action) -> None:
        if not self.instruments:
            return

        def create(fields: Mapping[str, str]) -> None:
            try:
                asked = ExperimentCreate(
                    instrument=fields.get("instrument", ""),
                    title=fields.get("title", "").strip(),
                    pi=fields.get("pi", "").strip(),
                )
            except ValidationError as error:
                name = str(error.errors()[0]["loc"][0])
                raise UnusableError(WANTED.get(name, "Choose an instrument.")) from None
            made = self.client.create_experiment(asked.instrument, asked.title, asked.pi)
            self.experiments = [made, *self.experiments]
            self.notify(
                f"{made.id} is there", "Its PI sees it at once. Open it, and make it active when it begins."
            )

        self.question = Question(
            "New experiment", "Create", create, _asked(self.instruments), name="bh-new-experiment"
        )

    def _step(self, action: Action) -> None:
        def stepped(after: Experiment, step: stages.Step) -> None:
            self.experiments = [after if one.id == after.id else one for one in self.experiments]
            self.notify(f"{after.id} {step.done}")

        self.question = stages.ask(self.client, str(action.args[0]), stepped)

    def _list(self) -> Element:
        sought = self.sought.strip().casefold()
        found = [e for e in self.experiments if sought in f"{e.id} {e.title} {e.pi}".casefold()]
        names = ("Experiment", "State", "Instrument", "PI", "Your role", "Started", "Ended")
        shown = table("", names, [self._row(e) for e in found], last="Next step")
        tools = el(
            "div.bh-list-tools",
            el("span.bh-count", plural(len(self.experiments), "experiment")),
            finder("experiments", "experiments", "Find by title, PI or number")
            if len(self.experiments) > FEW or sought
            else None,
            button("New experiment …", ["experiment.new"], css="bh-button-main bh-experiment-new")
            if self.instruments
            else None,
        )
        none = "No experiment of this name." if sought else "No experiment yet."
        body = shown if found else el("p.bh-empty", none)
        return card("Experiments", body, aside=tools, css="bh-experiments")

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
            el("td.bh-right", stages.tool(e, small=True)),
            key=e.id,
            data_experiment=e.id,
        )


def _asked(instruments: Sequence[Instrument]) -> tuple[Child, ...]:
    """The form of a new experiment."""
    first = instruments[0].id
    plain = {"type": "text", "required": True, "autocomplete": "off"}
    title = el("input", id="new-title", name="title", maxlength="200", focus=True, **plain)
    pi = el("input", id="new-pi", name="pi", maxlength="255", spellcheck="false", **plain)
    where = [form.option(i.id, f"{i.title} ({i.id})", first) for i in instruments]
    return (
        form.select("instrument", "Instrument", where, first, ident="new-instrument"),
        form.row("title", "Title", "new-title", title, "Such as the sample, or the proposal and its name"),
        form.row("pi", "Principal investigator", "new-pi", pi, "The name with which this person signs in"),
        el("p.bh-hint", "Files go there once it is made active. The PI can invite the others before."),
    )
