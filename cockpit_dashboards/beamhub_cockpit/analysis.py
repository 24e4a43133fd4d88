"""One job in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from beamhub.client import ApiError, Message

from beamhub_cockpit import details
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.jobpage import JobPage
from beamhub_cockpit.reading import Detail
from beamhub_cockpit.region import Action
from beamhub_cockpit.scene import Scene


class Analysis(JobPage):
    """The page `analysis.ipynb?job=`."""

    names = ("head", "detail", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        asked = self.viewer.query.get("job", "")
        self.number = int(asked) if asked.isdigit() else 0

    def load(self) -> None:
        assert self.me is not None  # noqa: S101 (set by the page before it loads)
        scene = self.scene or Scene(self.client, self.me)
        try:
            job = self.client.job(self.number)
            scene.load(job.experiment)
            scene.jobs[job.id] = job
            self.opened.setdefault(self.number, Detail(self.number))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            scene.experiment = None
        self.scene = scene
        self.refresh_details()

    def heard(self, message: Message) -> None:
        if self.scene is None:
            return
        try:
            self.scene.heard(message)
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            self.refresh_soon()
            return
        super().heard(message)
        if message.kind.startswith("job.") and message.subject == str(self.number):
            self.refresh_details()

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {name: act for name, act in super().actions().items() if name not in ("job.toggle", "job.tab")}

    def layout(self) -> Element:
        return el("main.bh-analysis", *[self.slot(name) for name in self.names])

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        scene = self.scene
        if scene is None:
            return {}
        job = scene.jobs.get(self.number)
        if scene.experiment is None or job is None:
            return {"head": (unknown(),), "detail": (), "dialog": ()}
        around = self.around(scene)
        head = el(
            "section.bh-analysis-head",
            el("a.bh-link", f"← {scene.experiment.title}", href=self.links.cockpit(scene.experiment.id)),
            el("h1", f"{job.title} ", el("span.bh-quiet", f"#{job.id}")),
            details.summary(job, around),
            el("div.bh-experiment-tools", details.tools(job, around, whole=False)),
            data_job=str(job.id),
            data_state=str(job.state),
        )
        return {
            "head": (head,),
            "detail": (details.show(job, self.opened[self.number], around, page=True),),
            "dialog": self.dialog(),
        }

    def images(self, name: str) -> dict[str, bytes] | None:
        detail = self.opened.get(self.number)
        return dict(detail.images) if name == "detail" and detail else None


def unknown() -> Element:
    return el(
        "section.bh-nothing",
        el("h1", "There is no such job here"),
        el(
            "p",
            "Check the address. If the job belongs to somebody else's experiment, ask its PI to invite you.",
        ),
    )
