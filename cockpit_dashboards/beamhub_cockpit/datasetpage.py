"""A page with datasets, one of them in view: to find some, run something on them, put them right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beamhub.client import Message
from beamhub.schemas import Dataset

from beamhub_cockpit.acquisition import Acquisition
from beamhub_cockpit.datasetlist import DatasetList
from beamhub_cockpit.format import plural
from beamhub_cockpit.html import el
from beamhub_cockpit.joblist import JobList
from beamhub_cockpit.launch import Launch
from beamhub_cockpit.question import Question, ask_reason
from beamhub_cockpit.region import Action

NEWS = frozenset(  # of the dataset in view, and of the job that follows it
    {
        "job.series",
        "job.running",
        "dataset.frames",
        "dataset.growing",
        "dataset.started",
        "dataset.complete",
    }
)


class DatasetPage(JobList):
    """A page with datasets and jobs on them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen = Acquisition()
        self.chosen: int | None = None  # dataset to show; None: the one that arrives
        self.datasets = DatasetList()

    def begin_anew(self) -> None:
        super().begin_anew()
        self.seen, self.chosen, self.datasets = Acquisition(), None, DatasetList()

    def heard(self, message: Message) -> None:
        super().heard(message)
        here = self.scene.experiment if self.scene else None
        if here is not None and message.experiment == here.id and message.kind in NEWS:
            self.follow()

    def every(self) -> None:
        self.follow()
        super().every()

    def follow(self) -> None:
        """Read on in the dataset in view."""
        if self.scene is None or self.scene.experiment is None:
            return
        dataset = self.in_view()
        job = self.scene.feedback(dataset) if dataset else None
        self.seen.follow(dataset, job, self.client, self.live, self.links)

    def in_view(self) -> Dataset | None:
        """The dataset that is shown above the jobs."""
        if self.scene is None:
            return None
        return self.scene.datasets.get(self.chosen) if self.chosen is not None else self.scene.current

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            **super().actions(),
            "dataset.show": self._show,
            "datasets.find": self._find,
            "datasets.older": self._older_datasets,
            "datasets.tick": self._tick_dataset,
            "datasets.tick-all": self._tick_found,
            "datasets.untick": self._untick_datasets,
            "launch.new": self._new,
            "launch.each": self._new_on_each,
            "dataset.end": self._end,
            "dataset.move": self._move,
        }

    def _show(self, action: Action) -> None:
        number = int(action.args[0])
        newest = self.scene.current if self.scene else None
        self.chosen = None if newest is not None and newest.id == number else number
        self.follow()

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
            self.follow()
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
