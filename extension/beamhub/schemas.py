"""The vocabulary of beamhub as typed, frozen objects.

One model per thing and one per request: the service validates with them, answers with them and generates its
OpenAPI document from them; the client, the agent and the dashboards read the same ones. This module imports
nothing but pydantic, so that every part of beamhub, light or heavy, may import it.

Units: times are UTC; sizes are bytes; CPU time is integer CPU-seconds (CPUs x runtime); rates are bytes/s.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

T = TypeVar("T")


def _plain(text: str) -> str:
    """Names and titles are one line of printable text: no control characters, no bidirectional overrides."""
    if any(not c.isprintable() for c in text) or re.search("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", text):
        raise ValueError("must be one line of printable text")
    return text


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_plain)
]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,38}[a-z0-9]$")]
UserName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._@+-]{0,254}$")]
TemplateName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
DigestAlgorithm = Literal["sha256", "xxh128"]
# of a whole file; see beamhub.digests
Digest = Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64}|xxh128:[0-9a-f]{32})$")]
# of jobs; the higher ones are started first
Priority = Annotated[int, Field(ge=-100, le=100)]
BigInt = Annotated[int, Field(ge=1, le=2**63 - 1)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500), AfterValidator(_plain)]
AgentPath = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_plain)]


class Model(BaseModel):
    """What the service answers with: immutable; readable from a row of the store."""

    model_config = ConfigDict(frozen=True, from_attributes=True, extra="ignore")


class Request(BaseModel):
    """What somebody sends: immutable, and a field nobody knows is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Model, Generic[T]):
    """One page of a list; `next` is the cursor of the following page, or None on the last."""

    items: list[T]
    next: str | None = None


class Problem(Model):
    """An error as RFC 9457 has it: what happened (title), to what (detail), and what to do now (remedy)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""
    remedy: str = ""
    errors: list[dict[str, JsonValue]] = []


class Quantity(Model):
    """A number (or text, or list of numbers) with its unit; unit "" is dimensionless."""

    value: float | int | str | bool | list[float] | None
    unit: str = ""


# --- people -----------------------------------------------------------------------------------------------


class Role(StrEnum):
    """What somebody is in an experiment."""

    PI = "pi"
    COLLABORATOR = "collaborator"
    VIEWER = "viewer"  # reads everything, changes nothing
    STAFF = "staff"  # of the experiment's instrument; never stored as a membership


class Health(Model):
    """How the service is."""

    version: str
    warm: bool  # False soon after its start: the first jobs compile what later ones find compiled
    on_duty: bool = True  # this process runs the jobs; of several that share a database, one does


class Me(Model):
    """Who the caller is."""

    name: str
    kind: Literal["user", "service", "instrument"]
    operator: bool  # a hub administrator or a service of the facility
    staff_of: list[str]  # ids of instruments


# --- instruments and experiments --------------------------------------------------------------------------


class FileProgress(Model):
    """One file that the agent is sending just now."""

    name: str
    size: int
    sent: int
    experiment: str | None = None  # that its upload was begun for; None: it has not been begun


class Heartbeat(Request):
    """What the agent tells every few seconds."""

    host: Line
    version: Line
    state: Literal["idle", "uploading", "waiting", "error"] = "idle"
    queued_files: int = Field(0, ge=0)
    queued_bytes: int = Field(0, ge=0)
    rate: float = Field(0.0, ge=0, description="bytes per second over the last seconds")
    free_disk: int | None = Field(None, ge=0)
    current: list[FileProgress] = Field(default=[], max_length=32)
    errors: list[Annotated[str, StringConstraints(max_length=500)]] = Field(default=[], max_length=20)
    file_errors: list[Annotated[str, StringConstraints(max_length=500)]] = Field(
        default=[], max_length=20, description="of single files, whosever they are: for staff"
    )
    arrived: int = Field(0, ge=0, description="files that its journal knows to be published")
    failed: int = Field(0, ge=0, description="files that it could not send; `agent/files` says why")
    skipped: int = Field(0, ge=0, description="files that staff told it to leave out")
    acknowledged: int = Field(0, ge=0, description="the last of its commands that it has obeyed")

    def as_seen_in(self, experiment: str) -> Self:
        """What members of the active experiment may see of it: no names of others' files."""
        current = [file for file in self.current if file.experiment in (None, experiment)]
        return self.model_copy(update={"current": current, "file_errors": []})


class AgentStatus(Heartbeat, Model):
    """The agent's last heartbeat, and whether it is recent."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    connected: bool
    last_seen: datetime


class CommandKind(StrEnum):
    RETRY = "retry"  # send again what has failed
    SKIP = "skip"  # leave files out that wait, are on their way or have failed
    UNSKIP = "unskip"  # send them after all
    REPORT = "report"  # tell all that the journal knows of an experiment


class AgentCommand(Model):
    """What the staff want the agent to do. It may be delivered more than once, and is obeyed once."""

    id: int
    instrument: str
    kind: CommandKind
    paths: list[str] = []  # below raw/, as the agent shows them
    pattern: str | None = None  # glob on such a path or its last part; neither: all that it can concern
    reason: str = ""
    experiment: str | None = None  # of a report
    created: datetime
    created_by: str


class AgentOrders(Model):
    """The answer to a heartbeat: what the agent is to do from now on."""

    paused: bool = False  # begin no file; what is on its way is finished
    paused_reason: str = ""
    commands: list[AgentCommand] = []  # not obeyed yet, oldest first


class AgentFile(Model):
    """A file that has not been sent, and why."""

    name: AgentPath  # below raw/
    state: Literal["failed", "skipped"]
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    size: int = Field(0, ge=0, le=2**63 - 1)


class AgentFiles(Request):
    """One part of the list of the files that the agent has not sent: it replaces this part of the list
    before, and with `last` all parts behind it."""

    part: int = Field(1, ge=1, le=40)
    last: bool = True
    items: list[AgentFile] = Field(max_length=250)


class JournalLine(Model):
    """A file of an experiment, as the agent's journal knows it."""

    name: AgentPath  # below raw/
    size: int = Field(ge=0, le=2**63 - 1)
    digest: Annotated[str, StringConstraints(max_length=200)] | None = None  # None: not read yet
    state: Literal["queued", "arrived", "failed", "skipped"]
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    experiment: str | None = None  # None: not begun, so it goes to whichever is active then


class JournalReport(Request):
    """One part of the answer to a `report` command; the whole has come when parts 1 to the last are there."""

    part: int = Field(1, ge=1, le=100_000)
    last: bool = True
    items: list[JournalLine] = Field(max_length=250)


class Because(Request):
    """Why somebody does something."""

    reason: Reason = Field(min_length=1)


class FilesChoice(Request):
    """Which of the agent's files: these, those whose path or name fits the pattern, or all."""

    paths: list[AgentPath] = Field(default=[], max_length=100)
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    reason: Reason = ""


class SkipRequest(FilesChoice):
    reason: Reason = Field(min_length=1)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.paths and self.pattern is None:
            raise ValueError("say which files: paths or a pattern")
        return self


class UploadsPaused(Model):
    """Since when, by whom and why an instrument begins no upload."""

    reason: str
    by: str
    since: datetime


class Instrument(Model):
    """A beamline or microscope."""

    id: str
    title: str
    technique: str
    staff: list[str]
    active_experiment: str | None
    automation: bool  # False: trigger rules are paused
    uploads_paused: UploadsPaused | None = None
    agent: AgentStatus | None = None
    created: datetime


class InstrumentCreate(Request):
    id: Slug
    title: Line
    technique: Line = "macromolecular crystallography"
    staff: list[UserName] = []


class InstrumentChange(Request):
    """Only what is given is changed. `active_experiment: null` leaves the instrument without one."""

    title: Line | None = None
    staff: list[UserName] | None = None
    active_experiment: str | None = None
    automation: bool | None = None


class InstrumentToken(Model):
    """A new token of an instrument's agent. It is shown once; older ones stop working."""

    instrument: str
    token: str


class ExperimentState(StrEnum):
    PLANNED = "planned"  # known, no data yet
    RUNNING = "running"  # has been active on its instrument
    PROCESSING = "processing"  # beamtime over: no uploads from the instrument, jobs go on
    CLOSED = "closed"  # read-only


class Experiment(Model):
    """A beamtime."""

    id: str
    instrument: str
    title: str
    state: ExperimentState
    pi: str
    active: bool  # is it the active one of its instrument
    created: datetime
    started: datetime | None
    ended: datetime | None
    folder: str  # absolute path
    quota: int | None = None  # bytes that may be uploaded; None: as many as the disk holds
    role: Role | None = None  # of the caller
    actions: list[str] = []  # what the caller may do here, as named in beamhub.access


class ExperimentCreate(Request):
    instrument: Slug
    title: Line
    pi: UserName


class ExperimentChange(Request):
    """Only what is given is changed. `quota` (bytes) is for the instrument's staff; null lifts it."""

    title: Line | None = None
    state: ExperimentState | None = None
    quota: int | None = Field(None, ge=0, le=2**63 - 1)


class Member(Model):
    experiment: str
    user: str
    role: Role
    added: datetime
    added_by: str


class MemberCreate(Request):
    user: UserName
    role: Literal[Role.PI, Role.COLLABORATOR, Role.VIEWER] = Role.COLLABORATOR


class File(Model):
    """A published file of an experiment."""

    path: str  # relative to the experiment's folder, e.g. raw/lyso_master.h5
    size: int
    modified: datetime
    digest: Digest | None = None  # of files that came through an upload


class FinalisationState(StrEnum):
    CHECKING = "checking"  # asks the agent, and compares
    BLOCKED = "blocked"  # something is missing or different
    HASHING = "hashing"  # nothing arrives any more; the manifest is being made
    DONE = "done"
    OUTDATED = "outdated"  # done, but something has changed since


class Finalisation(Model):
    """Whether all of an experiment's raw data have arrived, and the manifest that says so."""

    experiment: str
    state: FinalisationState
    differences: list[str]  # between what the agent knows, the store and the disk, in plain words
    forced: bool  # signed off in spite of them
    reason: str
    created: datetime
    created_by: str
    ended: datetime | None
    progress: float = 0.0  # 0..1, of the manifest


class FinaliseRequest(Request):
    force: bool = Field(False, description="sign off in spite of differences; needs a reason")
    reason: Reason = ""

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if self.force and not self.reason:
            raise ValueError("say why it is to be signed off in spite of differences")
        return self


# --- uploads and datasets ---------------------------------------------------------------------------------


class UploadState(StrEnum):
    RECEIVING = "receiving"
    COMPLETE = "complete"  # verified, fsynced, published
    FAILED = "failed"
    SUPERSEDED = "superseded"  # a newer version of the same name has been published
    QUARANTINED = "quarantined"  # arrived, but built to mislead its readers: nobody gets it


class Upload(Model):
    """One file on its way, or arrived."""

    id: str
    experiment: str
    instrument: str | None
    path: str  # relative to the experiment's folder
    size: int  # of one whose length is deferred: what has come
    offset: int
    digest: Digest | None  # None: the sender announced none, and not all has come
    digest_by: Literal["sender", "service"] = "sender"  # the service computes what nobody has announced
    version: int
    state: UploadState
    source: str | None = None  # where a file lies that was registered in place: none of its bytes were sent
    concat: str | None = None  # tus: "partial", or "final;" and the uploads that it was put together from
    deferred: bool = False  # tus: its length is still to come
    digest_follows: DigestAlgorithm | None = None  # the sender tells this digest with the last bytes
    error: str = ""
    created: datetime
    ended: datetime | None
    created_by: str


class Registration(Request):
    """A file that lies on storage which the service sees, to be published without sending its bytes."""

    source: str = Field(max_length=4096, description="its absolute path, as the service sees it")
    filename: str = Field(max_length=1000, description="its path below raw/")
    size: int = Field(ge=0, le=2**63 - 1)
    digest: Digest
    experiment: str | None = Field(None, description="that has to be active; without it, the one that is")


BATCH = "application/vnd.beamhub.batch"  # a line of JSON, `Batch`, and the bytes of its files
BATCH_FILES, BATCH_BYTES = 256, 8 * 2**20  # at most


class BatchFile(Request):
    """One of many small files that are sent together. What is wrong with it is said of it alone."""

    filename: str = Field(description="its path below raw/, a user's below shared/")
    size: int = Field(ge=0, le=2**23, description="at most 1 MiB")
    digest: str | None = Field(
        None, description="of its bytes, algorithm:hexadecimal; without one, they are taken as they come"
    )
    key: str | None = Field(None, max_length=255, description="as an Idempotency-Key, of this file")


class Batch(Request):
    """What is sent together, in the order in which the bytes follow."""

    files: list[BatchFile] = Field(min_length=1, max_length=BATCH_FILES)
    experiment: str | None = Field(None, description="needed from users; an instrument's active one")


class Delivery(Model):
    """What has become of one file of a batch: its upload, or why it was refused."""

    upload: Upload | None = None
    problem: Problem | None = None


class Deliveries(Model):
    """One for each file of a batch, in its order."""

    items: list[Delivery]


class DatasetKind(StrEnum):
    ROTATION = "rotation"
    RASTER = "raster"  # a grid scan
    STILL = "still"


class DatasetState(StrEnum):
    RECEIVING = "receiving"
    COMPLETE = "complete"  # every announced frame is readable
    INCOMPLETE = "incomplete"  # stopped early


class Dataset(Model):
    """One master file with all that it points to, or a series of files of one frame each."""

    id: int
    experiment: str
    name: str  # the master's without "_master.h5", the series' without its number
    path: str  # of the master, or as raw/lyso_#####.cbf, relative to the experiment's folder
    format: str = "nxmx"  # how frames are stored: nxmx, cbf, tiff
    kind: DatasetKind
    state: DatasetState
    open_ended: bool = False  # nobody knows how many frames will come: as many are announced as have come
    frames_announced: int
    frames_readable: int  # frames 1..frames_readable can be read now
    shape: tuple[int, int]  # rows (slow), columns (fast)
    metadata: dict[str, Quantity]  # NeXus names: wavelength, detector_distance, beam_center_x, ...
    created: datetime
    ended: datetime | None


class DatasetMove(Request):
    """To which other experiment of the same instrument a dataset belongs, and why."""

    experiment: Annotated[str, StringConstraints(min_length=1, max_length=60)]
    reason: Reason = Field(min_length=1)


# --- templates, triggers, profiles ------------------------------------------------------------------------


class MetricSpec(Model):
    """A metric that a template declares."""

    title: str
    unit: str = ""
    description: str = ""
    better: Literal["higher", "lower"] | None = None
    good: float | None = None
    acceptable: float | None = None
    format: str = ""  # how to print it, as str.format has it: ".2f"


Inputs = Literal["dataset", "datasets", "job", "jobs", "file", "none"]  # what a template works on


class Scaling(Model):
    """How the runtime of a template falls with CPUs: a part of the work is shared by them (Amdahl)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    parallel: float = Field(ge=0, le=1, description="the part of the runtime on one CPU that is shared")
    cpus: int | None = Field(None, ge=1, description="more than these do not help; null: any number does")
    note: str = Field("", max_length=500)


class Template(Model):
    """A parameterised notebook."""

    name: str
    notebook: str | None = None  # its path in the experiment, for a member's own outside of the catalogue
    version: str  # sha256 of the notebook's content, first 16 hexadecimal digits
    title: str
    technique: str
    description: str
    parameters: dict[str, JsonValue]  # JSON Schema (2020-12) of an object
    inputs: Inputs
    metrics: dict[str, MetricSpec]
    requires: dict[str, list[str]]  # {"programs": [...], "python": [...]}
    missing: list[str]  # what of that this facility lacks; empty: can run
    profile: str
    scaling: Scaling | None = None
    live: bool = False  # follows a dataset that is still growing
    source: Literal["shipped", "facility", "experiment"]


SlurmWord = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.:@,+&|-]*)?$", max_length=200)
]


class SlurmOptions(Model):
    """What of a Slurm cluster a job uses, as the facility has configured it; "" is the cluster's default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    account: SlurmWord = ""
    partition: SlurmWord = ""
    qos: SlurmWord = ""
    reservation: SlurmWord = ""
    constraint: SlurmWord = ""


class Profile(Model):
    """What a job asks for, and where it then runs. Profiles are the facility's: people choose one by name."""

    name: str
    title: str
    cpus: int = Field(ge=1)
    memory: int = Field(ge=1)  # bytes
    walltime: int = Field(ge=1)  # seconds
    runner: Literal["local", "slurm"] = "local"
    slurm: SlurmOptions = SlurmOptions()


class NodeState(StrEnum):
    FREE = "free"
    BUSY = "busy"
    OFF = "off"  # to save power; switched on for a job that needs it
    STARTING = "starting"
    UNAVAILABLE = "unavailable"  # down, drained, reserved or not answering


class RunnerState(Model):
    """What there is for jobs of a runner now."""

    name: str
    reason: str = ""  # why it can't be told
    cpus: int = 0  # that jobs may have, on nodes that are off, too
    free: int = 0  # for a job that starts now
    cold: int = 0  # on nodes that would have to be switched on
    nodes: dict[NodeState, int] = {}  # how many; none: the service's own machine


class TriggerEvent(StrEnum):
    DATASET_STARTED = "dataset.started"
    DATASET_FRAMES = "dataset.frames"  # more can be read: every so many, or at parts of what was announced
    DATASET_COMPLETE = "dataset.complete"
    DATASET_INCOMPLETE = "dataset.incomplete"  # stopped early
    FILE_COMPLETE = "file.complete"  # any file from the instrument
    JOB_FINISHED = "job.finished"
    EXPERIMENT_ACTIVATED = "experiment.activated"
    EXTERNAL = "external"  # told by another program of the facility


class TriggerCondition(Request):
    """What must hold as well, of the dataset and of the event."""

    kind: DatasetKind | None = None
    min_frames: int = Field(1, ge=1)
    expression: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = Field(
        "", description="such as `wavelength < 1.1 and frames >= 100` (beamhub.expressions)"
    )
    every: int | None = Field(None, ge=1, description="dataset.frames: at every so many frames")
    at: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        [], max_length=20, description="dataset.frames: at these per cent of the announced frames"
    )
    template: TemplateName | None = Field(None, description="job.finished: of a job of this template")
    name: Slug | None = Field(None, description="external: of this name")


class TriggerGroup(Request):
    """What has the same value of `by` in an experiment makes one job, on all of it, as soon as nothing more
    has come for `wait` seconds, or `at_most` are together. Fewer than `at_least` make none."""

    by: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)] = Field(
        "", description="an expression such as `sample_name` or `folder`; empty: all of the experiment"
    )
    wait: int = Field(ge=1, le=7 * 86400, description="seconds")
    at_least: int = Field(1, ge=1, le=200)
    at_most: int = Field(200, ge=1, le=200)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.at_least > self.at_most:
            raise ValueError("at_least can't be more than at_most")
        return self


class Trigger(Model):
    """A trigger rule: of an instrument, as it applies in an experiment of it, or of one experiment alone."""

    id: int
    instrument: str
    experiment: str | None = None  # the only one that it is for; None: all of the instrument
    version: int  # grows with each change; a rule version starts at most one job per dataset and event
    title: str
    event: TriggerEvent
    pattern: str  # glob on the name of the dataset or file, or if it has a slash, on the path
    condition: TriggerCondition = TriggerCondition()
    group: TriggerGroup | None = None  # None: each occasion starts a job
    template: str
    parameters: dict[str, JsonValue]
    profile: str
    sponsor: str
    priority: int = 0  # of its jobs: the higher ones are started first
    enabled: bool
    changed: list[str] = []  # what is not as on the instrument: the experiment has changed it for itself


class TriggerCreate(Request):
    title: Line
    event: TriggerEvent
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "*"
    condition: TriggerCondition = TriggerCondition()
    group: TriggerGroup | None = None
    template: TemplateName
    parameters: dict[str, JsonValue] = {}
    profile: Slug
    sponsor: Slug
    priority: Priority = 0
    enabled: bool = True


class TriggerChange(Request):
    """What is given is changed. `group: null` has each occasion start a job again."""

    title: Line | None = None
    event: TriggerEvent | None = None
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    condition: TriggerCondition | None = None
    group: TriggerGroup | None = None
    template: TemplateName | None = None
    parameters: dict[str, JsonValue] | None = None
    profile: Slug | None = None
    sponsor: Slug | None = None
    priority: Priority | None = None
    enabled: bool | None = None


class TriggerOverride(Request):
    """What an experiment changes of a rule of its instrument, for itself. What is given is changed; null
    takes it back to what the instrument's rule says."""

    template: TemplateName | None = None
    parameters: dict[str, JsonValue] | None = None
    profile: Slug | None = None
    sponsor: Slug | None = None
    priority: Priority | None = None
    enabled: bool | None = None


class TriggerVersion(Model):
    """One change of a rule: by whom, when, and what it said from then on."""

    rule: int
    version: int
    time: datetime
    author: str
    experiment: str | None  # whose own change of the instrument's rule it was; None: of the rule itself
    change: Literal["created", "changed", "deleted"]
    data: dict[str, JsonValue]  # the whole rule; of an experiment's own change: all that differs in it


class TriggerTryOut(Request):
    """A rule that is only tried out, on what has happened to the last datasets."""

    rule: TriggerCreate
    datasets: int = Field(50, ge=1, le=200, description="how many of the last datasets to look at")


class TriggerSubject(Model):
    """What an event has happened to."""

    kind: Literal["dataset", "file", "job", "experiment"]
    id: str  # of a file: its upload's
    name: str


class TriggerTrial(Model):
    """What a rule makes of one occasion, or of several together: the job that it starts, or why it starts
    none."""

    rule: int = 0  # 0: it was only tried out
    experiment: str
    subjects: list[TriggerSubject]  # more than one: they were gathered for one job
    event: TriggerEvent
    time: datetime  # of the last one
    starts: bool
    reason: str = ""  # why not
    parameters: dict[str, JsonValue] = {}
    job: int | None = None  # that was started on this occasion, now or earlier


class TriggerReplay(Request):
    """What to follow a rule on now, as if all that has happened to it happened again."""

    datasets: list[BigInt] = Field([], max_length=500)
    files: list[AgentPath] = Field([], max_length=500, description="paths in an experiment's folder")
    experiments: list[AgentPath] = Field([], max_length=500)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.datasets and not self.files and not self.experiments:
            raise ValueError("say on which datasets, files or experiments")
        return self

    def admits(self, subject: TriggerSubject) -> bool:
        """Whether it is about this, too."""
        match subject.kind:
            case "dataset":
                return int(subject.id) in self.datasets
            case "file":
                return subject.name in self.files
            case "experiment":
                return subject.id in self.experiments
        return False


class JobRule(Request):
    """Make a job's template, parameters, profile and sponsor a rule of its instrument."""

    title: Line | None = Field(None, description="without it: the template's")
    event: TriggerEvent = TriggerEvent.DATASET_COMPLETE
    pattern: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "*"
    condition: TriggerCondition = TriggerCondition()
    sponsor: Slug | None = Field(None, description="without it: the job's")
    replaces: BigInt | None = Field(None, description="a rule that becomes this one; without it: a new rule")
    backfill: list[BigInt] = Field([], max_length=500, description="datasets to follow it on at once")


class JobRuleMade(Model):
    """The rule that a job has become, and what it has started on the datasets that were chosen."""

    rule: Trigger
    backfill: list[TriggerTrial]


class TriggerGathering(Model):
    """A job in the making: what a rule has gathered for it so far."""

    id: int
    rule: int
    experiment: str
    value: str  # what all of it has in common
    count: int
    started: datetime
    due: datetime | None = None  # when its job starts, unless more comes or automation is paused
    ended: datetime | None  # None: it still waits for more
    job: int | None = None
    reason: str = ""  # why there is no job


class TriggerCall(Request):
    """Something that another program of the facility tells about a dataset."""

    name: Slug
    dataset: BigInt
    values: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")], JsonValue] = Field(
        {}, max_length=50, description="numbers and texts for expressions, where they are `event.<name>`"
    )


# --- jobs -------------------------------------------------------------------------------------------------


class JobState(StrEnum):
    PENDING = "pending"  # waits for credit
    QUEUED = "queued"  # credit is held; waits for CPUs
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class JobInput(Model):
    kind: Literal["dataset", "job", "file"] = "dataset"
    id: int | None  # of the dataset or job; a file is known by its name
    name: str = ""  # of the dataset; title of the job; path of the file in the experiment's folder
    note: str = ""  # what has become of it since


class JobProgress(Model):
    fraction: float | None = None  # 0..1
    step: str = ""


class Artifact(Model):
    """A file that a job made."""

    path: str  # relative to the job's folder
    title: str = ""
    kind: Literal["plot", "data", "log", "notebook"] = "data"
    size: int = 0
    digest: str = ""  # sha256


class JobFailure(Model):
    """Where and with which last words a job has failed; why is the job's reason."""

    cell: int | None = None  # index in the notebook
    title: str = ""  # of the cell: the heading above it, or its first line
    log: str = ""  # the end of the job's log


class Job(Model):
    """One run of one template version with one parameter set."""

    id: int
    experiment: str
    template: str
    template_version: str
    notebook: str | None = None  # path in the experiment, of a job that a member's own notebook was run as
    template_changed: bool | None = None  # since the job was made; null: not looked up, or there is none now
    title: str  # of the template
    state: JobState
    reason: str  # why it is pending, failed or cancelled: one plain sentence
    parameters: dict[str, JsonValue]
    inputs: list[JobInput]
    profile: Profile
    live: bool  # follows a dataset that is still growing
    sponsor: str
    launched_by: str  # a user's name, or "trigger:<rule id>"
    rule_version: int | None = None  # of the rule that has started it
    priority: int = 0  # higher goes first
    parent: int | None
    # an earlier job with the same template version, parameters, inputs and software: its result is the same.
    # Its own id in the answer to a wish that it fulfils already
    repeats: int | None = None
    created: datetime
    started: datetime | None
    ended: datetime | None
    cpu_seconds: int  # charged
    progress: JobProgress
    metrics: dict[str, Quantity]
    artifacts: list[Artifact]
    failure: JobFailure | None = None  # of a failed job
    folder: str  # relative to the experiment's folder: processed/<id>


class Attempt(Model):
    """One of the times that a job was queued, and what became of it. Each is paid for as it was used."""

    job: int
    number: int  # from 1
    runner: str
    ref: str  # the runner's own name for it, such as "slurm 4711"; "" while none has it
    host: str  # "" as long as it is not known
    queued: datetime
    started: datetime | None
    ended: datetime | None
    outcome: Literal["finished", "failed", "cancelled", "interrupted"] | None  # interrupted: another follows
    reason: str
    cpu_seconds: int  # charged
    exit_code: int | None
    cell: int | None  # index of the cell that failed


class JobChange(Request):
    """A member may lower the priority of own jobs; the instrument's staff may set any."""

    priority: Priority


class JobStep(Model):
    """A change of a job's state."""

    time: datetime
    state: JobState
    reason: str
    actor: str  # whose doing it was


NotebookPath = Annotated[
    AgentPath,
    StringConstraints(pattern=r"\.ipynb$"),
    Field(description="a member's own notebook: its path in the experiment, such as shared/mine.ipynb"),
]
ChosenInputs = Annotated[
    list[BigInt | AgentPath],
    Field(max_length=500, description="ids of datasets or jobs, or a file's path, as the template takes"),
]


class JobWish(Request):
    """What is to be run, and who pays: a template out of the catalogue, or a member's own notebook."""

    template: TemplateName | None = None
    notebook: NotebookPath | None = None
    parameters: dict[str, JsonValue] = {}
    profile: Slug | None = None
    sponsor: Slug
    force: bool = Field(False, description="run it even if an identical job has given a result already")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.template is None) == (self.notebook is None):
            raise ValueError("give either a template or a notebook")
        return self


class JobCreate(JobWish):
    """One job."""

    inputs: ChosenInputs = []


class JobsOnEach(JobWish):
    """One job for each of many datasets."""

    datasets: list[BigInt] | None = Field(
        None, min_length=1, max_length=500, description="without it: all of the experiment, of at most 500"
    )


class JobRerun(Request):
    """What is left out is as in the parent. A template that takes jobs gets the parent where `inputs` says
    nothing else."""

    template: TemplateName | None = None
    notebook: NotebookPath | None = None
    parameters: dict[str, JsonValue] | None = None
    inputs: ChosenInputs | None = None
    profile: Slug | None = None
    sponsor: Slug | None = None
    force: bool = Field(False, description="run it even if an identical job has given a result already")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.template is not None and self.notebook is not None:
            raise ValueError("give either a template or a notebook")
        return self


class JobsRerun(Request):
    """Several jobs again: each as it was, but for what is given here."""

    jobs: list[BigInt] = Field(min_length=1, max_length=500)
    parameters: dict[str, JsonValue] = Field({}, description="these are changed, others stay as they were")
    profile: Slug | None = None
    sponsor: Slug | None = None
    force: bool = Field(False, description="run them even if they would repeat a job that has finished")


class JobsCancel(Request):
    jobs: list[BigInt] = Field(min_length=1, max_length=500)
    reason: Annotated[str, StringConstraints(max_length=500)] = ""


class JobOutcome(Model):
    """What came of a wish for one of several jobs: the job as it is now, or the new one; or why nothing."""

    asked: int  # id of the job that was named
    job: Job | None = None
    problem: Problem | None = None


class Relative(Model):
    """A job as its relatives are listed."""

    id: int
    title: str
    template: str
    state: JobState
    launched_by: str
    parent: int | None
    created: datetime


class Difference(Model):
    """Something that a job was asked otherwise than its parent."""

    group: Literal["template", "parameters", "inputs", "job"]
    name: str
    before: JsonValue
    after: JsonValue


class Lineage(Model):
    """Which jobs a job was made from, which were made from it, and what differs from its parent."""

    ancestors: list[Relative]  # the parent first
    children: list[Relative]  # oldest first, at most 500
    differences: list[Difference]
    notebook: list[str]  # lines of a unified diff of the templates' cells: " same", "-before", "+after"


class Spread(Model):
    """A quantity that is not known exactly: four of five earlier ones were between low and high."""

    low: float
    likely: float
    high: float


class Estimate(Model):
    """What a job will probably take, from earlier runs of its template."""

    cpus: int
    frames: int  # of the datasets that it works on
    runs: int  # earlier finished runs of the template, of which the last 60 count
    duration: Spread | None  # seconds; null: there are no earlier runs
    cpu_hours: Spread | None
    most_cpu_hours: float  # that are set aside until it ends
    starts: datetime | None  # probably; null: that cannot be told
    waits: str  # for what, in one sentence; "": it starts at once
    hint: str  # of CPUs that do not help; "": none
    identical: int | None  # a job whose result is the same


class JobCancel(Request):
    reason: Annotated[str, StringConstraints(max_length=500)] = ""


class SeriesPage(Model):
    """Rows of one of a job's series from row `after` on; ask again with `next`."""

    columns: dict[str, str]  # name -> unit
    items: list[dict[str, JsonValue]]
    next: int


class ComparisonRow(Model):
    """One property of several jobs: a value for each, null where a job has none."""

    group: Literal["job", "parameters", "metrics"]
    name: str
    values: list[JsonValue]
    unit: str = ""
    differ: bool


class Comparison(Model):
    """Several jobs side by side."""

    jobs: list[int]
    rows: list[ComparisonRow]
    series: dict[str, list[SeriesPage | None]]  # name -> rows of each job, null where a job has none


class SpecInput(JobInput):
    """What a job works on, and where it lies."""

    path: str  # absolute: of the master file, of the job's folder, of the file


class JobSpec(Model):
    """`job.json`: all that `beamhub.run` needs, on whatever node it runs."""

    id: int
    experiment: str
    template: str
    template_version: str
    parameters: dict[str, JsonValue]
    inputs: list[SpecInput]
    cpus: int
    memory: int  # bytes that a process of it may have
    live: bool = False  # follows a dataset that is still growing
    folder: str  # absolute path of the job's own folder


class JobResult(Model):
    """`result.json`: written last and atomically; the service treats it as hostile input."""

    outcome: Literal["finished", "failed"]
    reason: str = Field("", max_length=2000)
    cell: int | None = None  # index of the cell that failed
    metrics: dict[str, Quantity] = Field(default={}, max_length=200)
    artifacts: list[Artifact] = Field(default=[], max_length=1000)
    software: dict[str, str] = Field(default={}, max_length=200)
    host: str = Field("", max_length=255)
    command: str = Field("", max_length=500_000)  # reproduces the job outside


# --- licences ---------------------------------------------------------------------------------------------


class SponsorshipRule(Request):
    """When a lab's licence pays. All that is given has to hold; what is left out may be anything. `roles`
    are people's: what starts by itself has none, and is not asked for it."""

    instruments: list[Slug] = Field([], max_length=50)
    experiments: list[Annotated[str, StringConstraints(min_length=1, max_length=60)]] = Field(
        [], max_length=200
    )
    templates: list[TemplateName] = Field([], max_length=100)
    roles: list[Role] = Field([], max_length=4)
    states: list[ExperimentState] = Field([], max_length=4)
    valid_from: AwareDatetime | None = None
    valid_until: AwareDatetime | None = None


class LabTerms(Request):
    """A lab's licence pays for what fits one of these rules; without any, for everything on its
    instruments."""

    rules: list[SponsorshipRule] = Field(max_length=50)


class Licence(Model):
    """An allowance of CPU time; `available` = granted - charged - held."""

    id: str
    title: str
    kind: Literal["user", "lab"]
    owner: str | None  # of a user licence
    instruments: list[str]  # that a lab licence sponsors
    granted: int
    charged: int
    held: int
    available: int
    valid_from: datetime
    valid_until: datetime | None
    low: bool = False  # at most a tenth of it is left
    terms: list[SponsorshipRule] = []  # of which one has to fit; none: it pays for everything


class Sponsor(Licence):
    """A licence as it may pay for jobs of the caller in an experiment."""

    refusal: str = ""  # why it does not pay there now


class LicenceCreate(Request):
    id: Slug
    title: Line
    kind: Literal["user", "lab"]
    owner: UserName | None = None
    instruments: list[Slug] = []
    cpu_hours: float = Field(0, ge=0, le=1e9)
    valid_until: datetime | None = None
    terms: list[SponsorshipRule] = Field([], max_length=50)


class Grant(Request):
    """CPU-hours more; with a validity, what is left of them at its end is booked away."""

    cpu_hours: float = Field(gt=0, le=1e9)
    valid_from: AwareDatetime | None = Field(None, description="without it, now")
    valid_until: AwareDatetime | None = Field(None, description="without it, as long as the licence")
    note: Annotated[str, StringConstraints(max_length=500)] = ""

    @model_validator(mode="after")
    def _some_time(self) -> Self:
        if self.valid_from and self.valid_until and self.valid_until <= self.valid_from:
            raise ValueError("valid_until has to be later than valid_from")
        return self


class Granted(Model):
    """A part of a licence's allowance."""

    id: int
    licence: str
    cpu_seconds: int
    left: int  # that has neither been charged nor has expired
    counts: bool  # it has begun; before, it is not part of what the licence has
    valid_from: datetime
    valid_until: datetime | None
    created: datetime
    actor: str
    note: str


class Correction(Request):
    """What an attempt of a job has used in truth, as the facility's accounts say later."""

    attempt: int = Field(ge=1, le=1000)
    cpu_seconds: int = Field(ge=0, le=2**53)
    note: Annotated[str, StringConstraints(max_length=500)] = ""


class LedgerKind(StrEnum):
    GRANT = "grant"
    HOLD = "hold"
    CHARGE = "charge"
    RELEASE = "release"
    EXPIRE = "expire"  # what was left of a grant at its end
    CORRECTION = "correction"  # of what an attempt was charged: more, or (below 0) less


class LedgerLine(Model):
    id: int
    licence: str
    time: datetime
    kind: LedgerKind
    cpu_seconds: int
    job: int | None
    attempt: int | None = None  # of the job
    actor: str
    note: str


class UsageKey(StrEnum):
    """What a report of usage tells apart."""

    EXPERIMENT = "experiment"
    MEMBER = "member"  # who started the jobs, or "trigger:<rule id>"
    TEMPLATE = "template"
    LICENCE = "licence"
    MONTH = "month"  # YYYY-MM in UTC, of when it was charged


class UsageRow(Model):
    """What was charged, corrections included. Keys that were not asked for are null."""

    experiment: str | None = None
    member: str | None = None
    template: str | None = None
    licence: str | None = None
    month: str | None = None
    jobs: int
    cpu_seconds: int


# --- backups ----------------------------------------------------------------------------------------------


class BackupTable(Model):
    rows: int
    sha256: str  # of its lines


class BackupManifest(Model):
    """What a backup of the database holds."""

    version: str  # of beamhub
    revision: str  # of the tables
    created: datetime
    tables: dict[str, BackupTable]


# --- events -----------------------------------------------------------------------------------------------


class Event(Model):
    """One line of the append-only log. `id` is the SSE id; kinds are `<noun>.<what happened>`."""

    id: int
    time: datetime
    kind: str  # dataset.started, dataset.complete, file.complete, job.<state>, member.added, ...
    instrument: str | None
    experiment: str | None
    subject: str  # id of the dataset, job, upload, user, ...
    actor: str
    data: dict[str, Any]
