"""The Cockpit: one experiment as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beamhub.client import ApiError, Message
from beamhub.schemas import (
    Dataset,
    Experiment,
    ExperimentState,
    Instrument,
    InstrumentChange,
    MemberCreate,
)
from pydantic import ValidationError

from beamhub_cockpit import acquisition, aside, control, datasetlist, finalise, shared, stages
from beamhub_cockpit.acquisition import Acquisition
from beamhub_cockpit.control import Unsent
from beamhub_cockpit.datasetlist import DatasetList
from beamhub_cockpit.format import plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.joblist import JobList
from beamhub_cockpit.parts import ROLES, button, can, state
from beamhub_cockpit.question import Question, ask_reason
from beamhub_cockpit.region import Action
from beamhub_cockpit.rerun import Launch
from beamhub_cockpit.scene import Scene
from beamhub_cockpit.shared import Uploads


class Cockpit(JobList):
    """The page `cockpit.ipynb?experiment=`."""

    names = ("experiment", "acquisition", "jobs", "instrument", "aside", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.wanted = self.viewer.query.get("experiment")
        self.seen = Acquisition()
        self.chosen: int | None = None  # dataset to show; None: the one that arrives
        self.datasets = DatasetList()
        self.invite_problem = ""
        self.unsent: Unsent | None = None  # the list, while it is open
        self.finalising = False  # is its dialog open
        self.finalise_problem = ""
        self.hidden = ""  # why there is no experiment to show
        self.shares = ("", False)  # the experiment that the widget knows, and whether it takes files for it
        self.uploads = Uploads(service=self.links.api(), user=self.viewer.name)

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
        if self.unsent is not None and message.kind in ("agent.obeyed", "agent.ordered"):
            self.unsent.read = 0.0
        if about_us and message.kind in (
            "job.series",
            "job.running",
            "dataset.frames",
            "dataset.growing",
            "dataset.started",
            "dataset.complete",
        ):
            self._follow()

    def every(self) -> None:
        self._follow()
        self.refresh_details()
        if self.unsent is not None:
            self.unsent.refresh(self.client, time.monotonic())
        seen = self.scene.finalisation if self.scene else None
        if self.scene is not None and self.finalising and seen is not None and seen.state in finalise.GOING:
            self.scene.look_at_finalisation()

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
        low = [x.title for x in (scene.licences if scene.staff else scene.sponsors) if x.low]
        return (
            el("span.bh-low-credit", f"CPU-hours run low: {', '.join(low)}", role="status") if low else None,
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
            self.slot("dialog"),
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
                "dialog": (),
            }
        dataset = self._dataset()
        around = self.around(scene)
        feedback = scene.feedback(dataset) if dataset else None
        beside = [
            aside.team(experiment, scene.members, scene.me.name, self.invite_problem),
            datasetlist.panel(
                list(scene.datasets.values()),
                self.datasets,
                dataset.id if dataset else None,
                self.links,
                experiment=experiment.id,
                may_run=around.may_run,
                may_operate=can(experiment, "instrument.operate"),
                shown=self.shown,
                older=scene.older_datasets,
            ),
        ]
        self._share(experiment)
        beside.append(shared.panel(experiment.id, scene.files, self.uploads, self.links))
        if scene.staff:
            beside.append(aside.licences(scene.licences))
        elif scene.sponsors:
            beside.append(aside.licences(scene.sponsors, "CPU-hours"))
        if scene.instrument:
            beside.append(
                aside.automation(
                    scene.instrument, experiment, scene.triggers.values(), scene.templates, self.links
                )
            )
        return {
            "experiment": (self._experiment(scene),),
            "acquisition": (acquisition.panel(dataset, feedback, self.seen, self.links, _idle(scene)),),
            "jobs": (self.job_list(around),),
            "instrument": tuple(
                aside.instrument(i, experiment, scene.uploads, len(scene.quarantine))
                for i in [scene.instrument]
                if i is not None
            ),
            "aside": tuple(beside),
            "dialog": self.dialog(),
        }

    def _share(self, experiment: Experiment) -> None:
        """Files that are put into the page go to this experiment, where the viewer may."""
        said = (experiment.id, can(experiment, "files.upload"))
        if said != self.shares:
            self.shares = said
            self.live.show(lambda: self.uploads.welcome(*said))

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
                finalise.manifest(experiment, scene.finalisation, self.links),
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
            "experiment.step": self._step,
            "dataset.show": self._show,
            "datasets.find": self._find,
            "datasets.older": self._older_datasets,
            "datasets.tick": self._tick_dataset,
            "datasets.tick-all": self._tick_found,
            "datasets.untick": self._untick_datasets,
            "launch.new": self._new,
            "launch.each": self._new_on_each,
            "member.invite": self._invite,
            "member.remove": self._remove,
            "automation.set": self._automation,
            "uploads.pause": self._pause_uploads,
            "uploads.resume": self._resume_uploads,
            "unsent.open": self._open_unsent,
            "unsent.close": self._close_unsent,
            "unsent.all": self._all_unsent,
            "unsent.group": self._group_unsent,
            "quarantine.ask": self._decide,
            "dataset.end": self._end,
            "dataset.move": self._move,
            "finalise.open": self._open_finalise,
            "finalise.close": self._close_finalise,
            "finalise.begin": self._finalise,
            "finalise.force": self._finalise,
        }

    def dialog(self) -> tuple[Element, ...]:
        scene, found = self.scene, []
        if scene is not None and scene.experiment is not None:
            if self.unsent is not None:
                agent = scene.instrument.agent if scene.instrument else None
                found.append(control.show(self.unsent, agent, scene.quarantine))
            if self.finalising:
                found.append(
                    finalise.show(scene.experiment, scene.finalisation, self.finalise_problem, self.links)
                )
        return (*found, *super().dialog())

    def _switch(self, action: Action) -> None:
        if not action.value:
            return
        self.wanted = str(action.value)
        self.chosen, self.opened, self.invite_problem = None, {}, ""
        self.launch = self.question = self.unsent = None
        self.datasets = DatasetList()
        self.select_none()
        self.finalising = False
        self.seen = Acquisition()
        self._load()

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

    def _show(self, action: Action) -> None:
        number = int(action.args[0])
        newest = self.scene.current if self.scene else None
        self.chosen = None if newest is not None and newest.id == number else number
        self._follow()

    def _find(self, action: Action) -> None:
        self.datasets.sought = str(action.value or "")
        if self.scene is not None:
            self.scene.datasets |= self.scene.older_datasets.find(self.datasets.sought)

    def _older_datasets(self, _action: Action) -> None:
        self.older = True
        if self.scene is not None:
            self.scene.datasets |= self.scene.older_datasets.more(self.datasets.sought)

    def _tick_dataset(self, action: Action) -> None:
        self.datasets.tick([int(action.args[0])], on=action.value is True)

    def _tick_found(self, _action: Action) -> None:
        known = self.scene.datasets.values() if self.scene else ()
        self.datasets.tick((d.id for d in self.datasets.found(known)), on=True)

    def _untick_datasets(self, _action: Action) -> None:
        self.datasets.ticked = set()

    def _new(self, action: Action) -> None:
        dataset = self.scene.datasets.get(int(action.args[0])) if self.scene else None
        self._launch([dataset] if dataset else [])

    def _new_on_each(self, _action: Action) -> None:
        self._launch(self.datasets.chosen(self.scene.datasets.values()) if self.scene else [])

    def _launch(self, datasets: Sequence[Dataset]) -> None:
        if self.scene is None or not datasets:
            return
        self.scene.look_at_templates()
        if self.scene.templates:
            self.begin(Launch.anew(datasets, self.scene))

    def started(self) -> None:
        self.datasets.ticked = set()
        super().started()

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

    # --- uploads ---

    def _pause_uploads(self, _action: Action) -> None:
        seen = self.scene.instrument if self.scene else None
        if seen is not None:

            def pause(fields: Mapping[str, str]) -> None:
                self._instrument(self.client.pause_uploads(seen.id, fields.get("reason", "")))

            self.question = control.pause(pause, seen)

    def _resume_uploads(self, _action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self._instrument(self.client.resume_uploads(self.scene.instrument.id))

    def _instrument(self, changed: Instrument) -> None:
        if self.scene is not None:
            self.scene.instrument = changed

    def _open_unsent(self, _action: Action) -> None:
        if self.scene is not None and self.scene.instrument is not None:
            self.unsent = Unsent(self.scene.instrument.id)
            self.unsent.refresh(self.client, time.monotonic())

    def _close_unsent(self, _action: Action) -> None:
        self.unsent = None

    def _all_unsent(self, action: Action) -> None:
        if self.unsent is None:
            return
        if action.args[0] == "retry":
            self.client.retry_uploads(self.unsent.instrument)
        else:
            self.client.unskip_uploads(self.unsent.instrument)
        self._ordered(self.unsent)

    def _group_unsent(self, action: Action) -> None:
        unsent = self.unsent
        what, state, reason, *name = (str(arg) for arg in action.args)
        group = unsent.group(state, reason) if unsent else []
        files = [file for file in group if not name or file.name == name[0]]
        if unsent is None or not files:
            return
        if what == "skip":

            def skip(fields: Mapping[str, str]) -> None:
                control.tell(self.client, unsent.instrument, "skip", files, fields.get("reason", ""))
                self._ordered(unsent)

            self.question = control.skip(skip, files)
        else:
            control.tell(self.client, unsent.instrument, what, files)
            self._ordered(unsent)

    def _ordered(self, unsent: Unsent) -> None:
        unsent.read = 0.0
        unsent.refresh(self.client, time.monotonic())

    def _decide(self, action: Action) -> None:
        what, id_ = (str(arg) for arg in action.args)
        scene = self.scene
        upload = next((u for u in scene.quarantine if u.id == id_), None) if scene else None
        if scene is None or upload is None:
            return

        def decide(fields: Mapping[str, str]) -> None:
            act = self.client.release_upload if what == "release" else self.client.discard_upload
            act(id_, fields.get("reason", ""))
            scene.quarantine = [u for u in scene.quarantine if u.id != id_]

        self.question = control.decide(decide, what, upload)

    # --- putting right and finalising ---

    def _end(self, action: Action) -> None:
        scene = self.scene
        dataset = scene.datasets.get(int(action.args[0])) if scene else None
        if scene is None or dataset is None:
            return

        def end(_fields: Mapping[str, str]) -> None:
            scene.datasets[dataset.id] = self.client.end_dataset(dataset.id)

        so_far = plural(dataset.frames_readable, "frame")
        self.question = Question(
            f"Has {dataset.name} ended?",
            "It has ended",
            end,
            (
                el(
                    "p",
                    f"Jobs that wait for its end start now, with the {so_far} that can be read. Should more "
                    "arrive after all, it goes on.",
                ),
            ),
            name="bh-end",
        )

    def _move(self, action: Action) -> None:
        scene = self.scene
        dataset = scene.datasets.get(int(action.args[0])) if scene else None
        if scene is None or scene.experiment is None or dataset is None:
            return
        here = scene.experiment
        others = [e for e in scene.experiments if e.instrument == here.instrument and e.id != here.id]

        def move(fields: Mapping[str, str]) -> None:
            moved = self.client.move_dataset(
                dataset.id, fields.get("experiment", ""), fields.get("reason", "")
            )
            scene.datasets.pop(dataset.id, None)
            self.chosen = None
            self._follow()
            self.notify(f"{dataset.name} is in {moved.experiment} now", "Its jobs stay here, with a note.")

        self.question = Question(
            f"Move {dataset.name} to another experiment?",
            "Move",
            move,
            (
                el(
                    "p",
                    "Its files go with it: the people of this experiment do not see them any more, those of "
                    "the other one do. Jobs on it stay here.",
                ),
                el(
                    "div.bh-field",
                    el("label", "To", for_="move-to"),
                    el(
                        "select",
                        [el("option", f"{e.id} · {e.title}", value=e.id) for e in others],
                        id="move-to",
                        name="experiment",
                        required=True,
                    ),
                )
                if others
                else el("p.bh-warn", f"There is no other experiment on {here.instrument}."),
                ask_reason("Why?", "It goes into the audit log."),
            ),
            name="bh-move",
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


def _idle(scene: Scene) -> str:
    if scene.experiment is None or not scene.experiment.active:
        return "No data, and the instrument measures for another experiment or for none at present."
    return "No data yet. As soon as the instrument writes a file, it shows up here."
