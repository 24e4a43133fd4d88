"""Any frame of a dataset, also while it grows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from beamhub.client import ApiError, Message
from beamhub.schemas import Dataset

from beamhub_cockpit.frames import FrameCanvas, Frames, describe
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.identity import Viewer
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import acquisition_facts, arrived, state
from beamhub_cockpit.region import Action

LISTED = 100  # datasets to switch between


class FrameViewer(Page):
    """The page `viewer.ipynb?dataset=&frame=`; without `frame` it follows a dataset that is arriving."""

    names = ("head", "stage", "facts")

    def __init__(self, seen_by: Viewer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(seen_by, loop)
        self._loop = loop
        asked = self.viewer.query.get("dataset", "")
        self.number = int(asked) if asked.isdigit() else 0
        self.dataset: Dataset | None = None
        self.datasets: list[Dataset] = []
        self.frames = Frames(self.client)
        self.canvas: FrameCanvas | None = None

    def load(self) -> None:
        before = self.dataset
        try:
            self.dataset = self.client.dataset(self.number)
            self.datasets = self.client.datasets(self.dataset.experiment, limit=LISTED)
        except ApiError as error:
            if error.status not in (403, 404, 422):
                raise
            self.dataset = None
            return
        same = before is not None and before.id == self.dataset.id
        if before is not None and same and self.dataset.frames_readable < before.frames_readable:
            self.frames.forget()  # of a file that was still written, and is sent anew
        self._tell_canvas()

    def heard(self, message: Message) -> None:
        if self.dataset is None or message.experiment != self.dataset.experiment:
            if message.kind.startswith("member."):
                self.refresh_soon()
            return
        if message.kind in ("dataset.started", "upload.failed"):
            self.refresh_soon()
        if not message.kind.startswith("dataset.") or message.subject != str(self.number):
            return
        readable = message.data.get("frames_readable")
        if message.kind in ("dataset.frames", "dataset.growing") and isinstance(readable, int):
            newest = max(readable, self.dataset.frames_readable)
            self.dataset = self.dataset.model_copy(update={"frames_readable": newest})
            self._tell_canvas()
        else:
            self.load()

    def _tell_canvas(self) -> None:
        dataset = self.dataset
        if dataset is None:
            return
        info = describe(dataset)
        if self.canvas is None:
            asked = self.viewer.query.get("frame", "")
            live = not asked and dataset.state == "receiving"
            frame = int(asked) if asked.isdigit() and asked != "0" else dataset.frames_readable if live else 1
            frame = min(max(1, frame), max(1, dataset.frames_readable))
            self.canvas = self.live.call(
                lambda: FrameCanvas(self.frames, self._loop, info=info, frame=frame, live=live)
            )
        else:
            canvas = self.canvas
            self.live.show(lambda: setattr(canvas, "info", info))

    def heading(self) -> tuple[Child, ...]:
        if self.dataset is None:
            return ()
        return (
            el(
                "label.bh-switch",
                el("span.bh-unseen", "Dataset"),
                el(
                    "select.bh-dataset-switch",
                    [
                        el(
                            "option",
                            f"{d.name} · {arrived(d)}",
                            value=str(d.id),
                            selected=d.id == self.number or None,
                        )
                        for d in self.datasets
                    ],
                    value=str(self.number),
                    on={"change": ["dataset.switch"]},
                ),
            ),
        )

    def layout(self) -> Element:
        return el("main.bh-viewer", self.slot("head"), self.slot("stage"), self.slot("facts"))

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        dataset = self.dataset
        if dataset is None:
            nothing = el(
                "section.bh-nothing",
                el("h1", "There is no such dataset here"),
                el(
                    "p",
                    "Open one from the Cockpit. If it belongs to somebody else's experiment, "
                    "ask its PI to invite you.",
                ),
            )
            return {"head": (nothing,), "stage": (), "facts": ()}
        head = el(
            "section.bh-viewer-head",
            el("a.bh-link", "← Cockpit", href=self.links.cockpit(dataset.experiment)),
            el("h1", dataset.name),
            state(str(dataset.state), "bh-dataset-state"),
            el("span.bh-frames", arrived(dataset), data_frames=str(dataset.frames_readable)),
            data_dataset=str(dataset.id),
        )
        stage = (el("div.bh-viewer-canvas", widget=self.canvas.ref, key="canvas"),) if self.canvas else ()
        return {"head": (head,), "stage": stage, "facts": (acquisition_facts(dataset),)}

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {"dataset.switch": self._switch}

    def _switch(self, action: Action) -> None:
        if isinstance(action.value, str) and action.value.isdigit():
            self.number = int(action.value)
            canvas = self.canvas
            if canvas is not None:
                self.live.show(lambda: canvas.set_trait("frame", 1))
            self._load()
