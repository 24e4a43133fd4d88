"""The Cockpit: one experiment as it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from beamhub.client import ApiError, Message
from beamhub.schemas import Dataset, ExperimentState, InstrumentChange, MemberCreate
from pydantic import ValidationError

from beamhub_cockpit import acquisition, aside, jobs
from beamhub_cockpit.acquisition import Acquisition
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.jobpage import JobPage
from beamhub_cockpit.parts import ROLES, can, state
from beamhub_cockpit.region import Action
from beamhub_cockpit.rerun import Launch
from beamhub_cockpit.scene import Scene

RECENT: Final = 25  # jobs and datasets that a page shows at first


class Cockpit(JobPage):
    """The page `cockpit.ipynb?experiment=`."""

    names = ("experiment", "acquisition", "jobs", "instrument", "aside", "launch")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.wanted = self.viewer.query.get("experiment")
        self.seen = Acquisition()
        self.chosen: int | None = None  # dataset to show; None: the one that arrives
        self.older = False  # show all jobs and datasets
        self.invite_problem = ""
        self.hidden = ""  # why there is no experiment to show

    # --- knowing ---

    def load(self) -> None:
        assert self.me is not None  # noqa: S101 (set by the page before it loads)
        scene = self.scene or Scene(self.client, self.me)
        scene.me = self.me
        try:
            scene.load(self.wanted)
            self.hidden = ""
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            scene.experiment = None
            self.hidden = str(error)
        self.scene = scene
        self.every()

    def heard(self, message: Message) -> None:
        scene = self.scene
        if scene is None:
            return
        try:
            about_us = scene.heard(message)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            self.refresh_soon()  # we may not see it any more, or it is gone
            return
        if (scene.experiment is None and about_us) or (
            self.wanted is None and message.kind == "experiment.activated"
        ):
            self.refresh_soon()
        if (
            message.kind.startswith("job.")
            and message.subject.isdigit()
            and (detail := self.opened.get(int(message.subject)))
        ):
            detail.read = 0.0
        if about_us and message.kind in (
            "job.series",
            "job.running",
            "dataset.frames",
            "dataset.started",
            "dataset.complete",
        ):
            self._follow()

    def every(self) -> None:
        self._follow()
        self.refresh_details()

    def _follow(self) -> None:
        if self.scene is None or self.scene.experiment is None:
            return
        dataset = self._dataset()
        job = self.scene.feedback(dataset) if dataset else None
        self.seen.follow(dataset, job, self.client, self.live, self.links)

    def _dataset(self) -> Dataset | None:
        if self.scene is None:
            return None
        return self.scene.datasets.get(self.chosen) if self.chosen is not None else self.scene.current

    # --- showing ---

    def heading(self) -> tuple[Child, ...]:
        scene = self.scene
        if scene is None or not scene.experiments:
            return ()
        current = scene.experiment.id if scene.experiment else ""
        return (
            el(
                "label.bh-switch",
                el("span.bh-unseen", "Experiment"),
                el(
                    "select.bh-experiment-switch",
                    [
                        el(
                            "option",
                            f"{e.id} · {e.title}" + (" · active" if e.active else ""),
                            value=e.id,
                            selected=e.id == current or None,
                        )
                        for e in scene.experiments
                    ],
                    None if current else el("option", "Choose an experiment", value="", selected=True),
                    value=current,
                    on={"change": ["experiment.switch"]},
                ),
            ),
        )

    def layout(self) -> Element:
        return el(
            "main.bh-cockpit",
            self.slot("experiment"),
            el(
                "div.bh-columns",
                el("div.bh-column-main", self.slot("acquisition"), self.slot("jobs")),
                el("div.bh-slot-aside", self.slot("instrument"), self.slot("aside")),
            ),
            self.slot("launch"),
        )

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        scene = self.scene
        if scene is None:
            return {}
        experiment = scene.experiment
        if experiment is None:
            return {
                "experiment": (self._nothing(),),
                "acquisition": (),
                "jobs": (),
                "instrument": (),
                "aside": (),
                "launch": (),
            }
        dataset = self._dataset()
        around = self.around(scene)
        feedback = scene.feedback(dataset) if dataset else None
        shown = None if self.older else RECENT
        beside = [
            aside.team(experiment, scene.members, scene.me.name, self.invite_problem),
            aside.datasets(
                scene.datasets.values(),
                dataset.id if dataset else None,
                self.links,
                may_run=around.may_run,
                shown=shown,
            ),
        ]
        if scene.staff:
            beside.append(aside.licences(scene.licences))
            if scene.instrument:
                may = can(experiment, "instrument.operate")
                beside.append(
                    aside.automation(
                        scene.instrument, scene.triggers.values(), scene.templates, may_change=may
                    )
                )
        elif scene.sponsors:
            beside.append(aside.licences(scene.sponsors, "CPU-hours"))
        return {
            "experiment": (self._experiment(scene),),
            "acquisition": (acquisition.panel(dataset, feedback, self.seen, self.links, _idle(scene)),),
            "jobs": (jobs.panel(scene.jobs.values(), self.opened, around, shown),),
            "instrument": tuple(
                aside.instrument(i, experiment, scene.uploads) for i in [scene.instrument] if i is not None
            ),
            "aside": tuple(beside),
            "launch": self.dialog(),
        }

    def images(self, name: str) -> dict[str, bytes] | None:
        if name == "acquisition":
            return {"thumbnail": self.seen.picture} if self.seen.picture else {}
        if name == "jobs":
            return {key: image for detail in self.opened.values() for key, image in detail.images.items()}
        return None

    def _experiment(self, scene: Scene) -> Element:
        experiment = scene.experiment
        assert experiment is not None  # noqa: S101 (asked for only where there is one)
        word = "active" if experiment.active else str(experiment.state)
        lab = can(experiment, "session.open")
        operate = can(experiment, "instrument.operate") and experiment.state is not ExperimentState.CLOSED
        return el(
            "section.bh-experiment",
            el(
                "div.bh-experiment-title",
                el("h1", experiment.title),
                state(word, "bh-experiment-state"),
            ),
            el(
                "div.bh-experiment-line",
                el("span.bh-experiment-id", experiment.id),
                el("span", "PI ", el("strong.bh-pi", experiment.pi)),
                el("span", "Instrument ", el("strong", experiment.instrument)),
                el("span", f"You are {ROLES[experiment.role]}") if experiment.role else None,
            ),
            el(
                "div.bh-experiment-tools",
                el(
                    "button.bh-button.bh-activate",
                    "Make active",
                    type="button",
                    title="The instrument's files go here from now on",
                    on={"click": ["experiment.activate"]},
                )
                if operate and not experiment.active
                else None,
                el(
                    "a.bh-button.bh-open-lab",
                    "Open JupyterLab",
                    href=self.links.session(experiment.id),
                    target="_blank",
                    rel="noopener",
                )
                if lab
                else None,
            ),
            data_experiment=experiment.id,
        )

    def _nothing(self) -> Element:
        """For somebody without an experiment to see: what to ask whom; nothing about anybody else's."""
        name = self.me.name if self.me else self.viewer.name
        others = bool(self.scene and self.scene.experiments)
        if others:
            return el(
                "section.bh-nothing",
                el("h1", "There is nothing to see here"),
                el(
                    "p",
                    "This address leads to no experiment that you belong to. "
                    "Choose one of yours above, or ask its PI to invite you.",
                ),
            )
        return el(
            "section.bh-nothing",
            el("h1", "You do not belong to an experiment yet"),
            el(
                "p",
                "Experiments show up here as soon as you are a member of one, without reloading the page.",
            ),
            el(
                "ul",
                el(
                    "li",
                    el("strong", "Somebody else's beamtime? "),
                    "Ask its principal investigator to invite you under the name ",
                    el("strong.bh-person", name),
                    ".",
                ),
                el(
                    "li",
                    el("strong", "Your own beamtime? "),
                    "Ask the staff of the instrument to create the experiment with you as PI.",
                ),
                el(
                    "li",
                    el("strong", "Were you a member before? "),
                    "The PI or the staff may have removed you; they can invite you again.",
                ),
            ),
        )

    # --- doing ---

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            **super().actions(),
            "experiment.switch": self._switch,
            "experiment.activate": self._activate,
            "dataset.show": self._show,
            "list.all": self._all,
            "launch.new": self._new,
            "member.invite": self._invite,
            "member.remove": self._remove,
            "automation.set": self._automation,
        }

    def _switch(self, action: Action) -> None:
        if not action.value:
            return
        self.wanted = str(action.value)
        self.chosen, self.opened, self.launch, self.invite_problem = None, {}, None, ""
        self.seen = Acquisition()
        self._load()

    def _activate(self, _action: Action) -> None:
        if self.scene is not None and self.scene.experiment is not None:
            self.client.activate(self.scene.experiment.instrument, self.scene.experiment.id)
            self._load()

    def _show(self, action: Action) -> None:
        number = int(action.args[0])
        newest = self.scene.current if self.scene else None
        self.chosen = None if newest is not None and newest.id == number else number
        self._follow()

    def _all(self, _action: Action) -> None:
        self.older = True

    def _new(self, action: Action) -> None:
        dataset = self.scene.datasets.get(int(action.args[0])) if self.scene else None
        if dataset is not None and self.scene is not None and self.scene.templates:
            self.launch = Launch.anew(dataset, self.scene)

    def _invite(self, action: Action) -> None:
        scene = self.scene
        if scene is None or scene.experiment is None:
            return
        self.invite_problem = ""
        try:
            wanted = MemberCreate.model_validate(
                {"user": action.fields.get("user", "").strip(), "role": action.fields.get("role")}
            )
            self.client.add_member(scene.experiment.id, wanted.user, wanted.role)
        except ValidationError:
            self.invite_problem = (
                "Give the name with which this person signs in: letters, digits and . _ @ + -"
            )
            return
        except ApiError as error:
            self.invite_problem = str(error)
            return
        scene.members = self.client.members(scene.experiment.id)
        self.notify(f"{wanted.user} belongs to this experiment now", "They see it at once in their Cockpit.")

    def _remove(self, action: Action) -> None:
        scene = self.scene
        if scene is not None and scene.experiment is not None:
            gone = str(action.args[0])
            self.client.remove_member(scene.experiment.id, gone)
            scene.members = self.client.members(scene.experiment.id)
            self.notify(f"{gone} is no longer a member", "Inviting them again undoes it.")

    def _automation(self, action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self.scene.instrument = self.client.change_instrument(
                self.scene.instrument.id, InstrumentChange(automation=bool(action.args[0]))
            )


def _idle(scene: Scene) -> str:
    if scene.experiment is None or not scene.experiment.active:
        return "No data, and the instrument measures for another experiment or for none at present."
    return "No data yet. As soon as the instrument writes a file, it shows up here."
