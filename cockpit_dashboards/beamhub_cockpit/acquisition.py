"""What the instrument is measuring: the dataset that arrives, frame by frame."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

from beamhub.client import ApiError, Client
from beamhub.schemas import Dataset, Job

from beamhub_cockpit.html import Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.live import Live
from beamhub_cockpit.parts import acquisition_facts, ago, arrived, bar, card, state, why
from beamhub_cockpit.series import Follower, begun

THUMBNAIL: Final = 300  # pixels, at most
THUMBNAIL_EVERY: Final = 3.0  # seconds


@dataclass
class Acquisition:
    """The dataset in view with its live plot and a picture of its newest frame."""

    dataset: int | None = None
    follower: Follower | None = None
    picture: bytes = b""
    pictured: int = 0  # frame
    looked: float = 0.0

    def follow(
        self, dataset: Dataset | None, job: Job | None, client: Client, live: Live, links: Links
    ) -> None:
        """Read what is new of this dataset and of the job that follows it. On the page's worker."""
        if dataset is None:
            self.dataset, self.follower, self.picture, self.pictured = None, None, b"", 0
            return
        if self.dataset != dataset.id:
            self.dataset, self.follower, self.picture, self.pictured, self.looked = (
                dataset.id,
                None,
                b"",
                0,
                0.0,
            )
        if job is not None and job.started is not None:
            self._plot(dataset, job, client, live, links)
        now = time.monotonic()
        if dataset.frames_readable > self.pictured and now - self.looked > THUMBNAIL_EVERY:
            self.looked = now
            shrink = max(1, math.ceil(max(dataset.shape) / THUMBNAIL))
            try:
                self.picture = client.frame_png(dataset.id, dataset.frames_readable, bin=shrink)
            except (
                ApiError
            ):  # a frame that can't be read is the viewer's business; here the old picture stays
                return
            self.pictured = dataset.frames_readable

    def _plot(self, dataset: Dataset, job: Job, client: Client, live: Live, links: Links) -> None:
        if self.follower is None or self.follower.job != job.id:
            series = begun(client.job_files(job.id))
            if not series:  # it appears with its first row
                return
            frames = (1, max(2, dataset.frames_announced))
            self.follower = Follower(job.id, series[0], 64, frames, links.frames(job))
        self.follower.refresh(client, live)


def panel(dataset: Dataset | None, job: Job | None, seen: Acquisition, links: Links, idle: str) -> Element:
    """The card."""
    if dataset is None:
        return card("Acquisition", el("p.bh-empty", idle), css="bh-acquisition")
    done = dataset.frames_readable / max(1, dataset.frames_announced)
    plot = seen.follower.plot if seen.follower else None
    frame = max(1, dataset.frames_readable)
    return card(
        "Acquisition",
        el(
            "div.bh-acquisition-head",
            el("strong.bh-dataset-name", dataset.name),
            state(str(dataset.state), "bh-dataset-state"),
            el("span.bh-frames", arrived(dataset), data_frames=str(dataset.frames_readable)),
            bar(
                done, f"frames of {dataset.name} arrived", "live" if dataset.state == "receiving" else "good"
            ),
        ),
        el(
            "div.bh-acquisition-body",
            el(
                "div.bh-acquisition-plot",
                el("div.bh-live-plot", widget=plot.ref, key=f"plot-{plot.model_id}")
                if plot
                else el("p.bh-empty.bh-plot-none", _waiting(job, dataset)),
            ),
            el(
                "div.bh-acquisition-side",
                el(
                    "a.bh-thumbnail",
                    el("img", blob="thumbnail", alt=f"Frame {seen.pictured} of {dataset.name}")
                    if seen.picture
                    else el("span.bh-empty", "No frame yet"),
                    el("span.bh-thumbnail-text", f"Frame {seen.pictured or frame} · open in viewer"),
                    href=links.frame(dataset.id, None if dataset.state == "receiving" else frame),
                    title="Open in the viewer",
                ),
            ),
        ),
        acquisition_facts(dataset),
        aside=el("span.bh-count", "began ", ago(dataset.created)),
        css="bh-acquisition",
    )


def _waiting(job: Job | None, dataset: Dataset) -> str:
    if job is None:
        return (
            "No live feedback runs on this dataset."
            if dataset.state == "receiving"
            else "No live feedback ran on this dataset."
        )
    if job.started is None:
        return f"Live feedback is {job.state}" + (f": {why(job)}" if job.reason else ".")
    return (
        "Waiting for the first frame's numbers."
        if not job.state.ended
        else f"Live feedback {job.state}" + (f": {why(job)}" if job.reason else ".")
    )
