"""What a page knows of an experiment, kept current by the live feed."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from beamhub.client import ApiError, Client, Message
from beamhub.schemas import (
    AgentStatus,
    Artifact,
    Dataset,
    DatasetState,
    Experiment,
    File,
    Finalisation,
    Instrument,
    Job,
    JobProgress,
    Licence,
    Me,
    Member,
    Profile,
    Quantity,
    Sponsor,
    Template,
    Trigger,
    Upload,
)
from pydantic import ValidationError

from beamhub_cockpit.older import Older
from beamhub_cockpit.parts import template_of

RECENT = 200  # experiments that a page knows, and jobs that it asks for at once
DATASETS = 500  # that it asks for at once
SHARED = "shared"  # the folder that members put files into
OWN = "shared/templates"  # where members keep templates
FILES = 500  # of it that a page knows
LINGER = 6.0  # seconds that a file is shown after the last that was heard of it


@dataclass(frozen=True)
class Transfer:
    """A file on its way from the instrument, or just arrived."""

    name: str
    size: int
    sent: int
    heard: float  # monotonic
    experiment: str | None = None  # where it goes; None: only the agent has told of it
    growing: bool = False  # it is still written: nobody knows yet how long it gets
    arrived: bool = False  # all of it has come, and is verified


@dataclass
class Scene:
    """One experiment with all that the viewer may see of it."""

    client: Client
    me: Me
    experiment: Experiment | None = None
    instrument: Instrument | None = None
    experiments: list[Experiment] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    datasets: dict[int, Dataset] = field(default_factory=dict)
    older_datasets: Older[Dataset] = field(init=False)
    jobs: dict[int, Job] = field(default_factory=dict)
    older_jobs: Older[Job] = field(init=False)
    files: list[File] = field(default_factory=list)  # of shared/
    quarantine: list[Upload] = field(default_factory=list)  # of the instrument, for its staff
    finalisation: Finalisation | None = None
    sponsors: list[Sponsor] = field(default_factory=list)
    licences: list[Licence] = field(default_factory=list)
    triggers: dict[int, Trigger] = field(default_factory=dict)
    templates: dict[str, Template] = field(default_factory=dict)
    profiles: list[Profile] = field(default_factory=list)
    transfers: dict[str, Transfer] = field(default_factory=dict)  # by the upload's id

    def __post_init__(self) -> None:
        self._older("")

    @property
    def staff(self) -> bool:
        """Does the viewer look after this instrument?"""
        return self.me.operator or (self.instrument is not None and self.instrument.id in self.me.staff_of)

    def _older(self, experiment: str) -> None:
        """Begin the lists of an experiment."""
        client = self.client
        self.older_datasets = Older(
            lambda name, after, limit: client.dataset_page(experiment, name=name, after=after, limit=limit),
            DATASETS,
        )
        self.older_jobs = Older(
            lambda name, after, limit: client.job_page(experiment, name=name, after=after, limit=limit),
            RECENT,
        )
        self.datasets, self.jobs = {}, {}

    def load(self, wanted: str | None) -> None:
        """Everything anew, of the experiment `wanted`; None: of the one the viewer most likely came for.

        Raises:
            ApiError: 404 where the viewer may not see the experiment, or there is none.
        """
        client = self.client
        self.experiments = client.experiments(limit=RECENT)
        chosen = wanted or _likely(self.experiments, self.me)
        if chosen is None:
            self.experiment = None
            return
        if self.experiment is None or self.experiment.id != chosen:
            self._older(chosen)
        self.experiment = client.experiment(chosen)
        self.members = client.members(chosen)
        self.datasets = self.older_datasets.newest(self.datasets)
        self.jobs = self.older_jobs.newest(self.jobs)
        self.files = client.files(chosen, SHARED, limit=FILES)
        self.sponsors = client.sponsors(chosen)
        self.look_at_templates()
        self.profiles = client.profiles()
        self.instrument = client.instrument(self.experiment.instrument)
        self.triggers = {t.id: t for t in client.experiment_triggers(chosen)}
        self.licences = client.licences() if self.staff else []
        self._look_into_quarantine()
        self.look_at_finalisation()

    def _look_into_quarantine(self) -> None:
        operate = self.experiment is not None and "instrument.operate" in self.experiment.actions
        self.quarantine = (
            self.client.quarantine(self.experiment.instrument) if operate and self.experiment else []
        )

    def look_at_templates(self) -> None:
        """Which templates there are now, and notebooks of members that can be run as if they were some."""
        if self.experiment is None:
            return
        found = {t.name: t for t in self.client.templates(self.experiment.id)}
        listed = {f"{OWN}/{name}.ipynb" for name in found}
        for one in self.client.notebooks(self.experiment.id):
            if one.notebook is not None and one.notebook not in listed:
                found[one.notebook] = one
        self.templates = found

    def look_at_finalisation(self) -> None:
        """Has the experiment been signed off?"""
        self.finalisation = None
        with contextlib.suppress(ApiError):  # nobody has begun
            if self.experiment is not None:
                self.finalisation = self.client.finalisation(self.experiment.id)

    def heard(self, message: Message) -> bool:
        """Take in a message of the live feed; True where it was about this experiment or its instrument."""
        if self.experiment is None:
            return message.kind.startswith(("member.", "experiment.", "instrument."))
        here = message.experiment == self.experiment.id
        instrument = message.instrument == self.experiment.instrument
        noun, _, what = message.kind.partition(".")
        match noun:
            case "agent" if instrument or here:
                self._agent(message.data)
            case "file" if instrument and what in ("quarantined", "released", "deleted"):
                self._transfer(message)
                self._look_into_quarantine()
            case "upload" | "file" if instrument:
                self._transfer(message)  # of staff's instruments also what goes to other experiments
                if here and message.kind == "upload.failed":
                    self._read_arriving()
            case "upload" | "file" if here:
                if what == "complete":  # what somebody puts into shared/
                    self.files = self.client.files(self.experiment.id, SHARED, limit=FILES)
            case "dataset" if here:
                self._dataset(message, what)
            case "job" if here:
                self._job(message, what)
            case "member" if here:
                self.experiment = self.client.experiment(self.experiment.id)
                self.members = self.client.members(self.experiment.id)
            case "licence" if self.staff or here:
                self.sponsors = self.client.sponsors(self.experiment.id)
                self.licences = self.client.licences() if self.staff else []
            case "experiment" if here and what == "progress":
                self._progress(message.data)
            case "instrument" | "experiment" | "uploads" if here or instrument:
                self.experiments = self.client.experiments(limit=RECENT)
                self.experiment = self.client.experiment(self.experiment.id)
                self.instrument = self.client.instrument(self.experiment.instrument)
                self.look_at_finalisation()
            case "trigger" if instrument:
                self.triggers = {t.id: t for t in self.client.experiment_triggers(self.experiment.id)}
            case _:
                return False
        return True

    def _progress(self, data: dict[str, Any]) -> None:
        done = data.get("finalised")
        if self.finalisation is not None and isinstance(done, int | float):
            self.finalisation = self.finalisation.model_copy(update={"progress": float(done)})

    def _agent(self, data: dict[str, Any]) -> None:
        if self.instrument is None:
            return
        try:
            agent = AgentStatus.model_validate(data)
        except ValidationError:
            self.instrument = self.client.instrument(self.instrument.id)
            return
        self.instrument = self.instrument.model_copy(update={"agent": agent})

    def _transfer(self, message: Message) -> None:
        path, size = message.data.get("path"), message.data.get("size")
        sent = size if message.kind == "file.complete" else message.data.get("offset")
        if isinstance(path, str) and isinstance(size, int) and isinstance(sent, int):
            self.transfers[message.subject] = Transfer(
                path.rsplit("/", 1)[-1],
                size,
                sent,
                time.monotonic(),
                message.experiment,
                growing=message.data.get("deferred") is True,
                arrived=message.kind == "file.complete",
            )
        else:
            self.transfers.pop(message.subject, None)

    def _dataset(self, message: Message, what: str) -> None:
        if not message.subject.isdigit():
            return
        number = int(message.subject)
        known = self.datasets.get(number)
        readable = message.data.get("frames_readable")
        if what in ("frames", "growing") and known is not None and isinstance(readable, int):
            if readable > known.frames_readable:
                announced = max(known.frames_announced, readable)  # of a series: as many as have come
                seen = {"frames_readable": readable, "frames_announced": announced}
                self.datasets[number] = known.model_copy(update=seen)
        else:
            found = self.client.dataset(number)
            if self.experiment is not None and found.experiment == self.experiment.id:
                self.datasets[number] = found
            else:  # it has been moved
                self.datasets.pop(number, None)

    def _read_arriving(self) -> None:
        """Frames of a file that was still written may be gone with it."""
        for dataset in list(self.datasets.values()):
            if dataset.state is DatasetState.RECEIVING:
                self.datasets[dataset.id] = self.client.dataset(dataset.id)

    def _job(self, message: Message, what: str) -> None:
        if not message.subject.isdigit():
            return
        number = int(message.subject)
        known = self.jobs.get(number)
        if what == "series" and known is not None:
            return
        if what == "progress" and known is not None and not known.state.ended:
            self.jobs[number] = with_progress(known, message.data)
            return
        self.jobs[number] = self.client.job(number)
        if self.jobs[number].state.ended and self.experiment is not None:
            self.sponsors = self.client.sponsors(self.experiment.id)
            self.licences = self.client.licences() if self.staff else []

    # --- what follows from it ---

    @property
    def uploads(self) -> list[Transfer]:
        """What is being uploaded just now, the newest first: files pass so quickly that each is kept for a
        few seconds. What the agent alone knows of comes last."""
        now = time.monotonic()
        self.transfers = {id_: t for id_, t in self.transfers.items() if now - t.heard < LINGER}
        seen = sorted(self.transfers.values(), key=lambda t: t.heard, reverse=True)
        names = {t.name for t in seen}
        agent = self.instrument.agent if self.instrument and self.experiment else None
        told = (
            agent.current if agent and agent.connected and self.experiment and self.experiment.active else []
        )
        others = [
            Transfer(file.name.rsplit("/", 1)[-1], file.size, file.sent, now, file.experiment)
            for file in told
        ]
        return [*seen, *(t for t in others if t.name not in names)]

    @property
    def current(self) -> Dataset | None:
        """The dataset that is arriving, or else the newest."""
        by_age = sorted(self.datasets.values(), key=lambda d: d.id, reverse=True)
        return next((d for d in by_age if d.state == "receiving"), by_age[0] if by_age else None)

    def feedback(self, dataset: Dataset) -> Job | None:
        """The newest job that follows this dataset frame by frame; one that still waits only if there is no
        other."""
        following = [
            job
            for job in self.jobs.values()
            if (t := self.templates.get(template_of(job))) is not None
            and t.live
            and any(i.kind == "dataset" and i.id == dataset.id for i in job.inputs)
        ]
        return max(following, key=lambda job: (job.started is not None, job.id), default=None)


def with_progress(job: Job, data: dict[str, Any]) -> Job:
    """The job with what a `job.progress` message says of it."""
    change: dict[str, Any] = {}
    try:
        if "fraction" in data or "step" in data:
            change["progress"] = JobProgress.model_validate(data)
        if isinstance(data.get("progress"), dict):
            change["progress"] = JobProgress.model_validate(data["progress"])
        if isinstance(data.get("reason"), str):
            change["reason"] = data["reason"]
        if isinstance(data.get("metrics"), dict):
            change["metrics"] = job.metrics | {
                k: Quantity.model_validate(v) for k, v in data["metrics"].items()
            }
        if isinstance(data.get("artifacts"), list):
            change["artifacts"] = [Artifact.model_validate(one) for one in data["artifacts"]]
    except ValidationError:
        return job
    return job.model_copy(update=change)


def _likely(experiments: list[Experiment], me: Me) -> str | None:
    """The active experiment of the viewer's own, else an active one they look after, else their newest."""
    mine = [e for e in experiments if e.role is not None and e.role != "staff"]
    for found in (
        [e for e in mine if e.active],
        [e for e in experiments if e.active and e.instrument in me.staff_of],
        [e for e in experiments if e.active],
        mine,
        experiments,
    ):
        if found:
            return found[0].id
    return None
