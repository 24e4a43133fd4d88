"""The Cockpit: one experiment as it happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from beamhub.client import ApiError, Message
from beamhub.schemas import Experiment

from beamhub_cockpit import acquisition, aside, datasetlist, nothing, shared
from beamhub_cockpit.datasetpage import DatasetPage
from beamhub_cockpit.experimentpage import ExperimentPage
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import can
from beamhub_cockpit.region import Action
from beamhub_cockpit.scene import Scene
from beamhub_cockpit.shared import Uploads
from beamhub_cockpit.uploadspage import UploadsPage


class Cockpit(UploadsPage, ExperimentPage, DatasetPage):
    """The page `cockpit.ipynb?experiment=`."""

    names = ("experiment", "acquisition", "jobs", "instrument", "aside", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.wanted = self.viewer.query.get("experiment")
        self.shares = ("", False)  # the experiment that the widget knows, and whether it takes files for it
        self.uploads = Uploads(service=self.links.api(), user=self.viewer.name)

    # --- knowing ---

    def load(self) -> None:
        assert self.me is not None  # noqa: S101 (set by the page before it loads)
        scene = self.scene or Scene(self.client, self.me)
        scene.me = self.me
        try:
            scene.load(self.wanted)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            scene.experiment = None
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
        super().heard(message)

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
        dataset = self.in_view()
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
            "experiment": (self.head(scene),),
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

    def _nothing(self) -> Element:
        if self.scene is not None and self.scene.experiments:
            return nothing.elsewhere()
        return nothing.stranger(self.me.name if self.me else self.viewer.name)

    # --- doing ---

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {**super().actions(), "experiment.switch": self._switch}

    def _switch(self, action: Action) -> None:
        if action.value:
            self.wanted = str(action.value)
            self.begin_anew()
            self._load()


def _idle(scene: Scene) -> str:
    if scene.experiment is None or not scene.experiment.active:
        return "No data, and the instrument measures for another experiment or for none at present."
    return "No data yet. As soon as the instrument writes a file, it shows up here."
