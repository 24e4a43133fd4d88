"""A page about an experiment as a whole: how far it is, who belongs to it, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from beamhub.client import ApiError
from beamhub.schemas import Experiment, ExperimentState, InstrumentChange, MemberCreate
from pydantic import ValidationError

from beamhub_cockpit import finalise, stages
from beamhub_cockpit.format import plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.jobpage import JobPage
from beamhub_cockpit.parts import ROLES, button, can, state
from beamhub_cockpit.question import Question
from beamhub_cockpit.region import Action
from beamhub_cockpit.scene import Scene


class ExperimentPage(JobPage):
    """A page that leads an experiment from its beamtime to its archive."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.invite_problem = ""
        self.finalising = False  # is its dialog open
        self.finalise_problem = ""

    def begin_anew(self) -> None:
        super().begin_anew()
        self.invite_problem, self.finalising = "", False

    def every(self) -> None:
        super().every()
        seen = self.scene.finalisation if self.scene else None
        if self.scene is not None and self.finalising and seen is not None and seen.state in finalise.GOING:
            self.scene.look_at_finalisation()

    def dialog(self) -> tuple[Element, ...]:
        scene = self.scene
        if scene is None or scene.experiment is None or not self.finalising:
            return super().dialog()
        shown = finalise.show(scene.experiment, scene.finalisation, self.finalise_problem, self.links)
        return shown, *super().dialog()

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            **super().actions(),
            "experiment.activate": self._activate,
            "experiment.step": self._step,
            "member.invite": self._invite,
            "member.remove": self._remove,
            "automation.set": self._automation,
            "finalise.open": self._open_finalise,
            "finalise.close": self._close_finalise,
            "finalise.begin": self._finalise,
            "finalise.force": self._finalise,
        }

    def head(self, scene: Scene) -> Element:
        """Title, state, and what the viewer may do with it."""
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
                finalise.manifest(experiment, scene.finalisation, self.links),
                el(
                    "span.bh-closed",
                    "Closed: all of it can be read, and nothing changes. "
                    f"The staff of {experiment.instrument} can reopen it.",
                )
                if experiment.state is ExperimentState.CLOSED
                else None,
            ),
            el(
                "div.bh-experiment-tools",
                button(
                    "Make active …",
                    ["experiment.activate"],
                    css="bh-activate",
                    title="The instrument's files go here from now on",
                    key="activate",
                )
                if operate and not experiment.active
                else None,
                button(
                    "Finalise …",
                    ["finalise.open"],
                    css="bh-finalise-open",
                    title="Check that everything has arrived, and write the manifest",
                    key="finalise",
                )
                if can(experiment, "instrument.operate")
                else None,
                stages.tool(experiment),
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

    def _activate(self, _action: Action) -> None:
        scene = self.scene
        if scene is None or scene.experiment is None:
            return
        experiment = scene.experiment

        def activate(_fields: Mapping[str, str]) -> None:
            self.client.activate(experiment.instrument, experiment.id)
            self._load()

        before = scene.instrument.active_experiment if scene.instrument else None
        flying = [t for t in scene.uploads if not t.arrived]
        self.question = Question(
            "Make this experiment active?",
            "Make active",
            activate,
            (
                el(
                    "p",
                    f"Whatever {experiment.instrument} begins to send from now on goes to ",
                    el("strong", experiment.id),
                    f" ({experiment.title})",
                    [", and no longer to ", el("strong", before)] if before else None,
                    ".",
                ),
                el("p", "A file that is on its way is finished where it began:") if flying else None,
                el(
                    "ul.bh-flying",
                    [
                        el("li", el("strong", t.name), f" goes to {t.experiment or before or '?'}")
                        for t in flying
                    ],
                )
                if flying
                else None,
            ),
            name="bh-activating",
        )

    def _step(self, action: Action) -> None:
        def stepped(after: Experiment, step: stages.Step) -> None:
            self.notify(f"{after.id} {step.done}")
            self._load()

        self.question = stages.ask(self.client, str(action.args[0]), stepped)

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
        if scene is None or scene.experiment is None:
            return
        experiment, gone = scene.experiment, str(action.args[0])

        def remove(_fields: Mapping[str, str]) -> None:
            self.client.remove_member(experiment.id, gone)
            scene.members = self.client.members(experiment.id)
            self.notify(f"{gone} is no longer a member", "Inviting them again undoes it.")

        self.question = Question(
            f"Remove {gone} from this experiment?",
            "Remove",
            remove,
            (
                el(
                    "p",
                    f"{gone} sees nothing of {experiment.title} any more, from this moment on. "
                    "Jobs that they have started go on. They can be invited again.",
                ),
            ),
            danger=True,
        )

    def _automation(self, action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self.scene.instrument = self.client.change_instrument(
                self.scene.instrument.id, InstrumentChange(automation=bool(action.args[0]))
            )
            missed = self.client.missed_jobs(self.scene.instrument.id) if action.args[0] else []
            if missed:
                self.notify(
                    f"{plural(len(missed), 'job was', 'jobs were')} not started meanwhile",
                    "“Rules …” in the card lists them, and starts them.",
                )

    def _open_finalise(self, _action: Action) -> None:
        self.finalising, self.finalise_problem = True, ""

    def _close_finalise(self, _action: Action) -> None:
        self.finalising = False

    def _finalise(self, action: Action) -> None:
        scene = self.scene
        if scene is None or scene.experiment is None:
            return
        force = action.action == "finalise.force"
        try:
            scene.finalisation = self.client.finalise(
                scene.experiment.id, force=force, reason=action.fields.get("reason", "") if force else ""
            )
            self.finalise_problem = ""
        except ApiError as error:
            self.finalise_problem = str(error)
