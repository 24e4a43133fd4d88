"""What a page has read of one job, and goes on reading while it runs."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import Final

from beamhub.client import ApiError, Client
from beamhub.schemas import (
    Artifact,
    Attempt,
    File,
    Job,
    JobState,
    JobStep,
    Lineage,
)

from beamhub_cockpit.links import Links
from beamhub_cockpit.live import Live
from beamhub_cockpit.series import Follower, undrawn

LOG_SHOWN: Final = 200_000  # characters
PLOT_LIMIT: Final = 8_000_000  # bytes of an image that a page shows
PLOTS: Final = 12
PLOT_HEIGHT: Final = 84  # pixels, of each panel
EVERY: Final = 2.0  # seconds between two looks at a running job
ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PNG: Final = b"\x89PNG\r\n\x1a\n"


@dataclass
class Detail:
    """What has been read of one job beyond the job itself."""

    job: int
    tab: str = "results"
    log: str = ""
    log_next: int = 0
    files: list[File] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)  # "<job>/<path>" -> PNG
    drawn: dict[str, int] = field(default_factory=dict)  # the size that it had then: a job may draw again
    followers: dict[str, Follower] = field(default_factory=dict)
    read: float = 0.0
    final: bool = False  # read after the job had ended
    trouble: str = ""
    lineage: Lineage | None = None
    steps: list[JobStep] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    known: JobState | None = None  # the state up to which these have been read

    def refresh(self, job: Job, client: Client, live: Live, links: Links) -> None:
        """Read what is new, now and then. On the page's worker."""
        if self.final or time.monotonic() - self.read < EVERY:
            return
        self.read = time.monotonic()
        self.trouble = ""
        try:
            self._history(job, client)
            if job.started is not None:
                self._log(client)
                self.files = client.job_files(self.job)
                self._series(client, live, links.frames(job))
                self._plots(job, client)
        except ApiError as error:
            self.trouble = str(error)
        self.final = job.state.ended

    def _history(self, job: Job, client: Client) -> None:
        if self.known != job.state:
            self.lineage = client.lineage(self.job)
            self.steps = client.history(self.job)
            self.attempts = client.attempts(self.job)
            self.known = job.state

    def _log(self, client: Client) -> None:
        while True:
            part, after = client.job_log(self.job, self.log_next)
            if after == self.log_next:
                return
            self.log_next = after
            self.log = (self.log + part)[-LOG_SHOWN:]

    def _series(self, client: Client, live: Live, link: str) -> None:
        for name in undrawn(self.files):
            self.followers.setdefault(name, Follower(self.job, name, PLOT_HEIGHT, link=link))
        for follower in self.followers.values():
            follower.refresh(client, live)

    def _plots(self, job: Job, client: Client) -> None:
        sizes = {file.path: file.size for file in self.files}
        for artifact in plots(job)[:PLOTS]:
            name = f"{job.id}/{artifact.path}"
            size = sizes.get(artifact.path, artifact.size)
            if self.drawn.get(name) != size and size <= PLOT_LIMIT:
                self.drawn[name] = size
                content = client.job_file(job.id, artifact.path)
                if content.startswith(PNG):
                    self.images[name] = content


def plots(job: Job) -> list[Artifact]:
    """The pictures that a job made."""
    return [a for a in job.artifacts if a.kind == "plot" and a.path.lower().endswith(".png")]


def close(detail: Detail, live: Live) -> None:
    """Give back the plots of a job that is no longer shown."""
    drawn = [f.plot for f in detail.followers.values() if f.plot is not None]

    def shut() -> None:
        for plot in drawn:
            with contextlib.suppress(Exception):
                plot.close()

    live.show(shut)
