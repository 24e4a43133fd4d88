"""What stands around a job on a page, and helps to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from beamhub.schemas import (
    Dataset,
    Job,
    JobState,
    Template,
    Trigger,
)

from beamhub_cockpit.links import Links


@dataclass(frozen=True)
class Around:
    """What stands around a job and helps to read it."""

    templates: Mapping[str, Template]
    triggers: dict[int, Trigger]
    datasets: Mapping[int, Dataset]
    jobs: Mapping[int, Job]
    links: Links
    experiment: str
    may_run: bool
    may_cancel: bool
    may_open: bool
    may_operate: bool = False  # the instrument
    me: str = ""  # the viewer

    def may_rank(self, job: Job) -> bool:
        """May the viewer change when the turn of a waiting job is? (The service decides; own ones later.)"""
        waits = job.state in (JobState.PENDING, JobState.QUEUED)
        return waits and self.may_cancel and (self.may_operate or job.launched_by == self.me)
