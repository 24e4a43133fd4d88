"""A typed client of the service's REST API: synchronous; for scripts, notebooks, dashboards, the command.

    client = Client("https://hub.example.org", token)          # or Client.from_environment()
    for experiment in client.experiments():
        print(experiment.id, experiment.title)

Methods are named like the resources and return the objects of `beamhub.schemas`. Lists come whole: pages
are followed. An error that the service answers with is raised as `ApiError`, whose `problem` says what
happened and what to do; a service that can't be reached raises `Unreachable`.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, JsonValue, ValidationError

from beamhub import digests
from beamhub.schemas import (
    BATCH,
    BATCH_BYTES,
    BATCH_FILES,
    AgentCommand,
    AgentFile,
    AgentOrders,
    Attempt,
    Batch,
    BatchFile,
    Because,
    Comparison,
    Correction,
    Dataset,
    DatasetMove,
    Deliveries,
    Delivery,
    Estimate,
    Event,
    Experiment,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    File,
    FilesChoice,
    Finalisation,
    FinalisationState,
    FinaliseRequest,
    Grant,
    Granted,
    Health,
    Heartbeat,
    Instrument,
    InstrumentChange,
    InstrumentCreate,
    InstrumentToken,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobOutcome,
    JobRerun,
    JobResult,
    JobRule,
    JobRuleMade,
    JobsCancel,
    JobsOnEach,
    JobsRerun,
    JobState,
    JobStep,
    LabTerms,
    LedgerLine,
    Licence,
    LicenceCreate,
    Lineage,
    Me,
    Member,
    MemberCreate,
    Page,
    Problem,
    Profile,
    Role,
    RunnerState,
    SeriesPage,
    SkipRequest,
    Sponsor,
    SponsorshipRule,
    Template,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCreate,
    TriggerGathering,
    TriggerOverride,
    TriggerReplay,
    TriggerTrial,
    TriggerTryOut,
    TriggerVersion,
    Upload,
    UploadState,
    UsageKey,
    UsageRow,
)

if TYPE_CHECKING:
    import numpy as np

RETRY = 1.0  # seconds between tries to reach a service that is away
M = TypeVar("M", bound=BaseModel)

SERVICE = "/services/beamhub"
PART = 8 * 2**20  # bytes per PATCH of an upload
BLOCK = 256 * 2**10  # bytes per read and write
LONGEST_PAGE = 500  # items; what the service gives at most
LONGEST_PAUSE = 10.0  # seconds between attempts to reconnect


class ApiError(Exception):
    """The service refused. `problem` has its reasons."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(" ".join(part for part in (problem.detail or problem.title, problem.remedy) if part))
        self.problem = problem

    @property
    def status(self) -> int:
        return self.problem.status


class Unreachable(Exception):  # noqa: N818 (reads as what happened)
    """No answer from the service."""


@dataclass(frozen=True)
class Message:
    """One message of the live feed. Stored events have an `id`; progress and the like are not kept, and have
    none."""

    id: int | None
    kind: str
    experiment: str | None = None
    instrument: str | None = None
    subject: str = ""
    actor: str = ""
    time: datetime | None = None
    data: dict[str, Any] = field(default_factory=dict)


class Client:
    """One caller's view of the service at `url` (the hub's address, such as https://hub.example.org).

    `token` is a JupyterHub API token, or with `instrument=True` the token of an instrument's agent. Safe to
    share between threads. Reads are tried again when the connection breaks; writes carry an idempotency key,
    so trying them again never does anything twice.
    """

    def __init__(self, url: str, token: str, *, instrument: bool = False, timeout: float = 60.0) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise ValueError(
                f"not the address of a hub: {url!r}; it should look like https://hub.example.org"
            )
        root = url.split(SERVICE, 1)[0].rstrip("/")
        self.url = f"{root}{SERVICE}/api/v1/"
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                "Authorization": f"{'Bearer' if instrument else 'token'} {token}",
                "Accept": "application/json",
            },
            timeout=httpx.Timeout(timeout, connect=10.0),
        )

    @classmethod
    def from_environment(cls, *, timeout: float = 60.0) -> Self:
        """A client from BEAMHUB_URL and BEAMHUB_TOKEN; in a JupyterLab session its own hub token serves."""
        url, token = os.environ.get("BEAMHUB_URL"), os.environ.get("BEAMHUB_TOKEN")
        token = token or os.environ.get("JUPYTERHUB_API_TOKEN")
        if not url or not token:
            missing = "BEAMHUB_URL" if not url else "BEAMHUB_TOKEN"
            raise ValueError(
                f"{missing} is not set. Set BEAMHUB_URL to the hub's address (https://hub.example.org) and "
                "BEAMHUB_TOKEN to a token from its page Token."
            )
        return cls(url, token, timeout=timeout)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- people, instruments, trigger rules ------------------------------------------------------------

    def health(self) -> Health:
        return self._get(Health, "health")

    def metrics(self) -> str:
        """The service in numbers, as Prometheus reads them."""
        return self._call("GET", "metrics").text

    def me(self) -> Me:
        return self._get(Me, "me")

    def instruments(self) -> list[Instrument]:
        return self._list(Instrument, "instruments")

    def instrument(self, instrument: str) -> Instrument:
        return self._get(Instrument, f"instruments/{_part(instrument)}")

    def create_instrument(
        self,
        id: str,  # noqa: A002 (the field's name)
        title: str,
        *,
        technique: str = "macromolecular crystallography",
        staff: list[str] | None = None,
    ) -> Instrument:
        body = InstrumentCreate(id=id, title=title, technique=technique, staff=staff or [])
        return self._send(Instrument, "POST", "instruments", body)

    def change_instrument(self, instrument: str, change: InstrumentChange) -> Instrument:
        return self._send(Instrument, "PATCH", f"instruments/{_part(instrument)}", change)

    def activate(self, instrument: str, experiment: str | None) -> Instrument:
        """Make this experiment the one that the instrument's files go to; None: none."""
        return self.change_instrument(instrument, InstrumentChange(active_experiment=experiment))

    def new_instrument_token(self, instrument: str) -> InstrumentToken:
        """A new token for the instrument's agent. Older ones stop working at once."""
        return self._send(InstrumentToken, "POST", f"instruments/{_part(instrument)}/token")

    def heartbeat(self, instrument: str, heartbeat: Heartbeat) -> AgentOrders:
        """What an instrument's agent tells every few seconds; the answer says what it is to do."""
        return self._send(AgentOrders, "PUT", f"instruments/{_part(instrument)}/heartbeat", heartbeat)

    def pause_uploads(self, instrument: str, reason: str) -> Instrument:
        """The instrument begins no upload any more; what is on its way is finished."""
        return self._send(Instrument, "POST", f"{_uploads(instrument)}/pause", Because(reason=reason))

    def resume_uploads(self, instrument: str) -> Instrument:
        return self._send(Instrument, "POST", f"{_uploads(instrument)}/resume")

    def retry_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str = ""
    ) -> AgentCommand:
        """The agent sends again what has failed: these files, those of the pattern, or all."""
        choice = FilesChoice(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/retry", choice)

    def skip_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str
    ) -> AgentCommand:
        """The agent leaves out these files, or those of the pattern, that have not arrived."""
        choice = SkipRequest(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/skip", choice)

    def unskip_uploads(
        self, instrument: str, paths: Sequence[str] = (), *, pattern: str | None = None, reason: str = ""
    ) -> AgentCommand:
        """The agent sends after all what was to be skipped: these files, those of the pattern, or all."""
        choice = FilesChoice(paths=list(paths), pattern=pattern, reason=reason)
        return self._send(AgentCommand, "POST", f"{_uploads(instrument)}/unskip", choice)

    def agent_files(
        self,
        instrument: str,
        *,
        state: Literal["failed", "skipped"] | None = None,
        limit: int | None = None,
    ) -> list[AgentFile]:
        """What the agent has not sent, and why."""
        return self._list(AgentFile, f"instruments/{_part(instrument)}/agent/files", limit, state=state)

    def agent_commands(self, instrument: str) -> list[AgentCommand]:
        """What the agent has been told to do and has not done yet."""
        return self._get(Page[AgentCommand], f"instruments/{_part(instrument)}/agent/commands").items

    def triggers(self, instrument: str) -> list[Trigger]:
        return self._list(Trigger, f"instruments/{_part(instrument)}/triggers")

    def create_trigger(self, instrument: str, trigger: TriggerCreate) -> Trigger:
        return self._send(Trigger, "POST", f"instruments/{_part(instrument)}/triggers", trigger)

    def change_trigger(self, trigger: int, change: TriggerChange) -> Trigger:
        return self._send(Trigger, "PATCH", f"triggers/{trigger}", change)

    def experiment_triggers(self, experiment: str) -> list[Trigger]:
        """The rules as they apply in this experiment; `changed` says what is different there."""
        return self._list(Trigger, f"experiments/{_part(experiment)}/triggers")

    def create_experiment_trigger(self, experiment: str, trigger: TriggerCreate) -> Trigger:
        """A rule for this experiment alone."""
        return self._send(Trigger, "POST", f"experiments/{_part(experiment)}/triggers", trigger)

    def override_trigger(self, experiment: str, trigger: int, change: TriggerOverride) -> Trigger:
        """Have a rule of the instrument differ in this experiment; null is as on the instrument again."""
        return self._send(Trigger, "PATCH", f"experiments/{_part(experiment)}/triggers/{trigger}", change)

    def trigger_versions(self, trigger: int) -> list[TriggerVersion]:
        """All that a rule was, newest first."""
        return self._list(TriggerVersion, f"triggers/{trigger}/versions")

    def try_out_experiment_trigger(
        self, experiment: str, rule: TriggerCreate, *, datasets: int = 50
    ) -> list[TriggerTrial]:
        """As `try_out_trigger`, on the experiment's datasets."""
        body = TriggerTryOut(rule=rule, datasets=datasets)
        path = f"experiments/{_part(experiment)}/triggers/try-out"
        return self._send(Page[TriggerTrial], "POST", path, body).items

    def try_out_trigger(
        self, instrument: str, rule: TriggerCreate, *, datasets: int = 50
    ) -> list[TriggerTrial]:
        """What a rule would have made of what has happened to the last datasets."""
        body = TriggerTryOut(rule=rule, datasets=datasets)
        path = f"instruments/{_part(instrument)}/triggers/try-out"
        return self._send(Page[TriggerTrial], "POST", path, body).items

    def gatherings(self, trigger: int) -> list[TriggerGathering]:
        """What a rule has gathered or is gathering, newest first."""
        return self._list(TriggerGathering, f"triggers/{trigger}/gatherings")

    def missed_jobs(self, instrument: str) -> list[TriggerTrial]:
        """The jobs that rules did not start because automation was paused."""
        path = f"instruments/{_part(instrument)}/triggers/missed"
        return _parse(Page[TriggerTrial], self._call("GET", path)).items

    def catch_up(self, instrument: str) -> list[TriggerTrial]:
        """Start the jobs that were missed while automation was paused."""
        path = f"instruments/{_part(instrument)}/triggers/missed"
        return self._send(Page[TriggerTrial], "POST", path).items

    def forget_missed(self, instrument: str) -> None:
        """Leave it at that."""
        self._call("DELETE", f"instruments/{_part(instrument)}/triggers/missed")

    def replay_trigger(
        self,
        trigger: int,
        datasets: Sequence[int] = (),
        *,
        files: Sequence[str] = (),
        experiments: Sequence[str] = (),
    ) -> list[TriggerTrial]:
        """Follows a rule now on what has happened to these datasets before."""
        body = TriggerReplay(datasets=list(datasets), files=list(files), experiments=list(experiments))
        return self._send(Page[TriggerTrial], "POST", f"triggers/{trigger}/replay", body).items

    def call_triggers(self, instrument: str, call: TriggerCall) -> Event:
        """Tells an instrument's rules of something outside."""
        return self._send(Event, "POST", f"instruments/{_part(instrument)}/triggers/call", call)

    def delete_trigger(self, trigger: int) -> None:
        self._call("DELETE", f"triggers/{trigger}")

    # --- experiments -----------------------------------------------------------------------------------

    def experiments(
        self, *, instrument: str | None = None, state: ExperimentState | None = None, limit: int | None = None
    ) -> list[Experiment]:
        """What the caller may see, newest first."""
        return self._list(Experiment, "experiments", limit, instrument=instrument, state=state)

    def experiment(self, experiment: str) -> Experiment:
        return self._get(Experiment, f"experiments/{_part(experiment)}")

    def create_experiment(self, instrument: str, title: str, pi: str) -> Experiment:
        body = ExperimentCreate(instrument=instrument, title=title, pi=pi)
        return self._send(Experiment, "POST", "experiments", body)

    def change_experiment(self, experiment: str, change: ExperimentChange) -> Experiment:
        return self._send(Experiment, "PATCH", f"experiments/{_part(experiment)}", change)

    def finalise(self, experiment: str, *, force: bool = False, reason: str = "") -> Finalisation:
        """Begin to check that all raw data have arrived, and to sign off a manifest."""
        body = FinaliseRequest(force=force, reason=reason)
        return self._send(Finalisation, "POST", f"experiments/{_part(experiment)}/finalise", body)

    def finalised(self, experiment: str, *, timeout: float = 86400.0) -> Finalisation:
        """The finalisation once it has come to its end; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        going = (FinalisationState.CHECKING, FinalisationState.HASHING)
        while (found := self.finalisation(experiment)).state in going:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{experiment} is still {found.state} after {timeout:g} s")
            time.sleep(0.25)
        return found

    def finalisation(self, experiment: str) -> Finalisation:
        """How far that is, and what speaks against it."""
        return self._get(Finalisation, f"experiments/{_part(experiment)}/finalisation")

    def members(self, experiment: str) -> list[Member]:
        return self._list(Member, f"experiments/{_part(experiment)}/members")

    def add_member(
        self,
        experiment: str,
        user: str,
        role: Literal[Role.PI, Role.COLLABORATOR, Role.VIEWER] = Role.COLLABORATOR,
    ) -> Member:
        body = MemberCreate(user=user, role=role)
        return self._send(Member, "POST", f"experiments/{_part(experiment)}/members", body)

    def remove_member(self, experiment: str, user: str) -> None:
        self._call("DELETE", f"experiments/{_part(experiment)}/members/{_part(user)}")

    def sponsors(self, experiment: str, template: str | None = None) -> list[Sponsor]:
        """The licences that the caller's jobs in this experiment may be charged to."""
        return self._list(Sponsor, f"experiments/{_part(experiment)}/sponsors", template=template)

    def files(self, experiment: str, prefix: str = "", limit: int | None = None) -> list[File]:
        return self._list(File, f"experiments/{_part(experiment)}/files", limit, prefix=prefix)

    def file(self, experiment: str, path: str) -> bytes:
        """A file's content; `download` is for large ones."""
        return self._call("GET", f"experiments/{_part(experiment)}/files/{_path(path)}").content

    def download(self, experiment: str, path: str, to: Path) -> Path:
        """Stream a file of the experiment to the local path `to`."""
        return self._download(f"experiments/{_part(experiment)}/files/{_path(path)}", to)

    # --- uploads and datasets --------------------------------------------------------------------------

    def uploads(
        self, experiment: str, *, state: UploadState | None = None, limit: int | None = None
    ) -> list[Upload]:
        return self._list(Upload, "uploads", limit, experiment=experiment, state=state)

    def upload_status(self, upload: str) -> Upload:
        return self._get(Upload, f"uploads/{_part(upload)}")

    def quarantine(self, instrument: str) -> list[Upload]:
        """Files that are kept from everybody; `error` says why."""
        return self._list(Upload, f"instruments/{_part(instrument)}/quarantine")

    def release_upload(self, upload: str, reason: str) -> Upload:
        """Publish a quarantined file after all."""
        return self._send(Upload, "POST", f"uploads/{_part(upload)}/release", Because(reason=reason))

    def discard_upload(self, upload: str, reason: str) -> Upload:
        """Delete a quarantined file."""
        return self._send(Upload, "POST", f"uploads/{_part(upload)}/discard", Because(reason=reason))

    def cancel_upload(self, upload: str) -> None:
        self._call("DELETE", f"uploads/{_part(upload)}", headers={"Tus-Resumable": "1.0.0"})

    def upload_together(self, paths: Sequence[Path], experiment: str | None = None) -> list[Delivery]:
        """Send small files (of up to 1 MiB), many by one request, into `shared/`, with an instrument's token
        into `raw/`. In their order, what has become of each: its upload, or why it was refused."""
        deliveries: list[Delivery] = []
        together: list[tuple[BatchFile, bytes]] = []
        key, room = uuid.uuid4().hex, BATCH_BYTES
        for number, path in enumerate(paths):
            content = path.read_bytes()
            name = unicodedata.normalize("NFC", path.name)  # macOS takes accents apart
            if together and (len(content) > room or len(together) == BATCH_FILES):
                deliveries += self._deliver(together, experiment)
                together, room = [], BATCH_BYTES
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            file = BatchFile(filename=name, size=len(content), digest=digest, key=f"{key}-{number}")
            together.append((file, content))
            room -= len(content)
        return deliveries + (self._deliver(together, experiment) if together else [])

    def _deliver(self, files: Sequence[tuple[BatchFile, bytes]], experiment: str | None) -> list[Delivery]:
        head = Batch(files=[file for file, _ in files], experiment=experiment).model_dump_json().encode()
        answer = self._call(
            "POST",
            "uploads/batch",
            # it may be repeated, since each file has a key
            headers={"Content-Type": BATCH, "Idempotency-Key": uuid.uuid4().hex},
            content=b"".join([head, b"\n", *(content for _, content in files)]),
        )
        return Deliveries.model_validate_json(answer.content).items

    def upload(
        self,
        path: Path,
        experiment: str | None = None,
        *,
        name: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Upload:
        """Send a file into the experiment's `shared/` folder, as `name` (which may have folders). With an
        instrument's token it goes into `raw/` of the experiment that is active there.

        It is read once, and its digest sent with the last bytes. A broken connection resumes where it
        stopped; a file that is already there with the same content is not sent again. Of a file that changes
        meanwhile nothing is kept: ApiError. `progress(sent, size)` is called as bytes are taken in. Returns
        the complete upload.
        """
        composed = unicodedata.normalize("NFC", name or path.name)  # macOS takes accents apart
        named = _given({"filename": composed, "experiment": experiment})
        with path.open("rb") as file:
            outgoing = _Outgoing(file)
            try:
                upload = self._announce(outgoing.size, named | {"digest": "sha256"})
            except ApiError as error:
                if error.status != 428:
                    raise
                # one of this name and size is there already: only its digest tells whether it is this
                upload = self._announce(outgoing.size, named | {"sha256": outgoing.digest()})
            pauses = _pauses()
            while upload.state is UploadState.RECEIVING:
                if progress:
                    progress(upload.offset, outgoing.size)
                try:
                    self._send_part(upload, outgoing)
                    pauses = _pauses()
                except Unreachable:
                    _wait(pauses)
                except ApiError as error:
                    # 409: it stands elsewhere; 429: too many at once; 460: damaged on the way;
                    # 502, 503: being restarted
                    if error.status not in (409, 429, 460, 502, 503):
                        raise
                    _wait(pauses)
                upload = self.upload_status(upload.id)
        if upload.state is UploadState.FAILED:
            raise ApiError(Problem(title="Upload failed", status=460, detail=upload.error))
        if progress:
            progress(outgoing.size, outgoing.size)
        return upload

    def _announce(self, size: int, metadata: dict[str, str]) -> Upload:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Length": str(size),
            "Upload-Metadata": _metadata(metadata),
            "Idempotency-Key": uuid.uuid4().hex,
        }
        return Upload.model_validate_json(self._call("POST", "uploads", headers=headers).content)

    def _send_part(self, upload: Upload, outgoing: _Outgoing) -> None:
        """The next bytes of a file; with the last ones its digest, which is of what has been sent."""
        length = min(PART, outgoing.size - upload.offset)
        blocks = outgoing.blocks(upload.offset, length)
        last = upload.digest_follows is not None and upload.offset + length == outgoing.size
        content = b"".join(blocks) if last else blocks
        if outgoing.changed(complete=last):
            self._call("DELETE", f"uploads/{upload.id}", headers={"Tus-Resumable": "1.0.0"})
            raise ApiError(
                Problem(
                    title="File changed",
                    status=422,
                    detail=f"{outgoing.name} changed while it was sent.",
                    remedy="Send it again once it is finished.",
                )
            )
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(upload.offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(length),
        }
        if last:
            headers["Upload-Metadata"] = _metadata({"sha256": outgoing.digest()})
        self._call("PATCH", f"uploads/{upload.id}", headers=headers, content=content)

    def datasets(self, experiment: str, *, limit: int | None = None) -> list[Dataset]:
        """Newest first."""
        return self._list(Dataset, f"experiments/{_part(experiment)}/datasets", limit)

    def dataset(self, dataset: int) -> Dataset:
        return self._get(Dataset, f"datasets/{dataset}")

    def end_dataset(self, dataset: int) -> Dataset:
        """No more frames will come of it."""
        return self._send(Dataset, "POST", f"datasets/{dataset}/end", None)

    def move_dataset(self, dataset: int, experiment: str, reason: str) -> Dataset:
        """Move a dataset with its files to another experiment of the same instrument."""
        body = DatasetMove(experiment=experiment, reason=reason)
        return self._send(Dataset, "POST", f"datasets/{dataset}/move", body)

    def frame(
        self,
        dataset: int,
        n: int,
        *,
        bin: int = 1,  # noqa: A002
        region: tuple[int, int, int, int] | None = None,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Frame `n` (from 1), rows by columns, in counts; masked pixels have the largest value of the dtype.

        `bin` b takes the maximum of b x b pixels; `region` is (x0, y0, x1, y1) in pixels of the full frame,
        x1 and y1 exclusive.
        """
        import io

        import numpy as np

        params: dict[str, Any] = {"bin": bin}
        if region is not None:
            params |= dict(zip(("x0", "y0", "x1", "y1"), region, strict=True))
        answer = self._call("GET", f"datasets/{dataset}/frames/{n}", params=params)
        frame: np.ndarray[Any, np.dtype[Any]] = np.load(io.BytesIO(answer.content), allow_pickle=False)
        return frame

    def frame_png(self, dataset: int, n: int, *, bin: int = 1) -> bytes:  # noqa: A002
        return self._call(
            "GET", f"datasets/{dataset}/frames/{n}", params={"bin": bin, "format": "png"}
        ).content

    # --- templates, profiles, jobs ---------------------------------------------------------------------

    def templates(self, experiment: str | None = None) -> list[Template]:
        """By name; with an experiment, also those that its members keep in shared/templates."""
        return self._list(Template, "templates", experiment=experiment)

    def template(self, name: str, experiment: str | None = None) -> Template:
        return self._get(Template, f"templates/{_part(name)}", experiment=experiment)

    def notebooks(self, experiment: str) -> list[Template]:
        """Members' own notebooks below shared/ that can be run as jobs, by their paths."""
        return self._list(Template, f"experiments/{_part(experiment)}/notebooks")

    def runners(self) -> list[RunnerState]:
        """What there is for jobs now, by where they run."""
        return self._list(RunnerState, "runners")

    def profiles(self) -> list[Profile]:
        return self._list(Profile, "profiles")

    def jobs(
        self,
        experiment: str | None = None,
        *,
        dataset: int | None = None,
        state: JobState | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """Newest first; without an experiment those of all that the caller may see."""
        return self._list(Job, "jobs", limit, experiment=experiment, dataset=dataset, state=state)

    def job(self, job: int) -> Job:
        return self._get(Job, f"jobs/{job}")

    def attempts(self, job: int) -> list[Attempt]:
        """The times that a job was queued, one by one."""
        return self._get(Page[Attempt], f"jobs/{job}/attempts").items

    def history(self, job: int) -> list[JobStep]:
        """Every change of a job's state, oldest first."""
        return self._get(Page[JobStep], f"jobs/{job}/history").items

    def set_priority(self, job: int, priority: int) -> Job:
        """Jobs of higher priority go first. A member may lower that of own jobs; staff may set any."""
        return self._send(Job, "PATCH", f"jobs/{job}", JobChange(priority=priority))

    def submit(
        self,
        experiment: str,
        template: str,
        inputs: int | str | Sequence[int | str] = (),
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> Job:
        """Start a job. If an identical one has a result already, that one is returned (its `repeats` is its
        own id), unless you `force` another. With the same `key` (any text of the caller's) the same call
        starts only one.

        Args:
            template: its name, or the path of a member's own notebook, such as shared/mine.ipynb.
            inputs: what it works on: ids of datasets, or of jobs, or a file's path.
        """
        body = JobCreate(
            **_runs(template),
            parameters=parameters or {},
            inputs=[inputs] if isinstance(inputs, int | str) else list(inputs),
            profile=profile,
            sponsor=sponsor,
            force=force,
        )
        return self._send(Job, "POST", f"experiments/{_part(experiment)}/jobs", body, key=key)

    def submit_on_each(
        self,
        experiment: str,
        template: str,
        datasets: Sequence[int] | None = None,
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> list[Job]:
        """Start a job on each of these datasets, at most 500; None: on all that the experiment has."""
        body = JobsOnEach(
            **_runs(template),
            parameters=parameters or {},
            datasets=None if datasets is None else list(datasets),
            profile=profile,
            sponsor=sponsor,
            force=force,
        )
        path = f"experiments/{_part(experiment)}/jobs-on-each"
        return self._send(Page[Job], "POST", path, body, key=key).items

    def rerun(
        self,
        job: int,
        *,
        template: str | None = None,
        parameters: dict[str, JsonValue] | None = None,
        inputs: Sequence[int | str] | None = None,
        profile: str | None = None,
        sponsor: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> Job:
        """Start a job like this one; what is left out is as it was there. `template` may be the path of a
        member's own notebook. If an identical one has a result already, that one is returned (its `repeats`
        is its own id), unless you `force` another."""
        body = JobRerun(
            **_runs(template),
            parameters=parameters,
            inputs=None if inputs is None else list(inputs),
            profile=profile,
            sponsor=sponsor,
            force=force,
        )
        return self._send(Job, "POST", f"jobs/{job}/rerun", body, key=key)

    def estimate(
        self,
        experiment: str,
        template: str,
        inputs: int | str | Sequence[int | str],
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
    ) -> Estimate:
        """What a job that `submit` would start will probably take."""
        body = JobCreate(
            **_runs(template),
            parameters=parameters or {},
            inputs=[inputs] if isinstance(inputs, int | str) else list(inputs),
            profile=profile,
            sponsor=sponsor,
        )
        return self._send(Estimate, "POST", f"experiments/{_part(experiment)}/jobs/estimate", body)

    def estimate_rerun(
        self,
        job: int,
        *,
        template: str | None = None,
        parameters: dict[str, JsonValue] | None = None,
        inputs: Sequence[int | str] | None = None,
        profile: str | None = None,
        sponsor: str | None = None,
    ) -> Estimate:
        """What the job that `rerun` would start will probably take."""
        body = JobRerun(
            **_runs(template),
            parameters=parameters,
            inputs=None if inputs is None else list(inputs),
            profile=profile,
            sponsor=sponsor,
        )
        return self._send(Estimate, "POST", f"jobs/{job}/estimate", body)

    def lineage(self, job: int) -> Lineage:
        """Which jobs a job was made from, which were made from it, and what differs from its parent."""
        return self._get(Lineage, f"jobs/{job}/lineage")

    def rerun_all(self, request: JobsRerun) -> list[JobOutcome]:
        """Run several jobs again, each for itself."""
        return self._send(Page[JobOutcome], "POST", "jobs/rerun", request).items

    def cancel_all(self, jobs: Sequence[int], reason: str = "") -> list[JobOutcome]:
        """Stop several jobs, each for itself."""
        request = JobsCancel(jobs=list(jobs), reason=reason)
        return self._send(Page[JobOutcome], "POST", "jobs/cancel", request).items

    def make_rule(self, job: int, rule: JobRule) -> JobRuleMade:
        """Make a job the rule of its instrument, and follow that on the datasets of `rule.backfill`."""
        return self._send(JobRuleMade, "POST", f"jobs/{job}/rule", rule)

    def compare(self, *jobs: int) -> Comparison:
        """Jobs side by side."""
        return self._get(Comparison, "comparison", jobs=",".join(map(str, jobs)))

    def cancel(self, job: int, reason: str = "") -> Job:
        return self._send(Job, "POST", f"jobs/{job}/cancel", JobCancel(reason=reason))

    def wait(self, job: int, *, timeout: float = 3600.0) -> Job:
        """The job once it has ended; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (found := self.job(job)).state.ended:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is still {found.state} after {timeout:g} s")
            time.sleep(0.25)
        return found

    def job_log(self, job: int, after: int = 0) -> tuple[str, int]:
        """The log's text from byte `after` on, and the byte to go on from."""
        answer = self._call("GET", f"jobs/{job}/log", params={"after": after})
        return answer.text, int(answer.headers["X-Next"])

    def follow_log(self, job: int, after: int = 0, *, patience: float = 300.0) -> Iterator[str]:
        """The log's text from byte `after` on as it is written, until the job has ended. A service that
        can't be reached is asked again for `patience` seconds; nothing is lost or told twice."""
        gone: float | None = None
        while True:
            try:
                answer = self._call("GET", f"jobs/{job}/log", params={"after": after, "wait": 20})
            except Unreachable:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > patience:
                    raise
                time.sleep(RETRY)
                continue
            gone = None
            after = int(answer.headers["X-Next"])
            if answer.text:
                yield answer.text
            elif JobState(answer.headers["X-State"]).ended:
                return

    def series(self, job: int, name: str, after: int = 0) -> SeriesPage:
        """Rows of a series that the job writes, from row `after` on."""
        return self._get(SeriesPage, f"jobs/{job}/series/{_part(name)}", after=after)

    def notebook(self, job: int, format: Literal["html", "ipynb"] = "ipynb") -> str:  # noqa: A002
        return self._call("GET", f"jobs/{job}/notebook", params={"format": format}).text

    def result(self, job: int) -> JobResult:
        """What came out of an ended job, with software versions, host, and the command that repeats it."""
        return self._get(JobResult, f"jobs/{job}/result")

    def job_files(self, job: int) -> list[File]:
        return self._list(File, f"jobs/{job}/files")

    def job_file(self, job: int, path: str) -> bytes:
        return self._call("GET", f"jobs/{job}/files/{_path(path)}").content

    def download_job_file(self, job: int, path: str, to: Path) -> Path:
        return self._download(f"jobs/{job}/files/{_path(path)}", to)

    # --- licences --------------------------------------------------------------------------------------

    def licences(self) -> list[Licence]:
        return self._list(Licence, "licences")

    def licence(self, licence: str) -> Licence:
        return self._get(Licence, f"licences/{_part(licence)}")

    def create_licence(self, licence: LicenceCreate) -> Licence:
        return self._send(Licence, "POST", "licences", licence)

    def grant(
        self,
        licence: str,
        cpu_hours: float,
        note: str = "",
        *,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> Licence:
        return self._send(
            Licence,
            "POST",
            f"licences/{_part(licence)}/grants",
            Grant(cpu_hours=cpu_hours, note=note, valid_from=valid_from, valid_until=valid_until),
        )

    def grants(self, licence: str, *, limit: int | None = None) -> list[Granted]:
        """The parts of its allowance, newest first."""
        return self._list(Granted, f"licences/{_part(licence)}/grants", limit)

    def set_terms(self, licence: str, rules: Sequence[SponsorshipRule]) -> Licence:
        """Says for what a lab's licence pays; without rules, for everything on its instruments."""
        return self._send(Licence, "PUT", f"licences/{_part(licence)}/terms", LabTerms(rules=list(rules)))

    def correct(self, job: int, attempt: int, cpu_seconds: int, note: str = "") -> Job:
        """Charges what an attempt of a job has used in truth."""
        body = Correction(attempt=attempt, cpu_seconds=cpu_seconds, note=note)
        return self._send(Job, "POST", f"jobs/{job}/corrections", body)

    def usage(self, *by: UsageKey, begin: date | None = None, end: date | None = None) -> list[UsageRow]:
        """What was charged from the day `begin` to the day `end`, in the experiments that you may see."""
        return self._list(UsageRow, "usage", None, **_usage(by, begin, end))

    def usage_csv(self, *by: UsageKey, begin: date | None = None, end: date | None = None) -> str:
        """The same as CSV."""
        params = _given({**_usage(by, begin, end), "format": "csv"})
        return self._call("GET", "usage", params=params).text

    def ledger(self, licence: str, *, limit: int | None = None) -> list[LedgerLine]:
        """Newest first."""
        return self._list(LedgerLine, f"licences/{_part(licence)}/ledger", limit)

    # --- events ----------------------------------------------------------------------------------------

    def past_events(
        self, experiment: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Event]:
        """Stored events after the one with id `after`, oldest first."""
        return self._list(Event, "events", limit, experiment=experiment, after=after)

    def events(self, experiment: str | None = None, last_id: int | None = None) -> Iterator[Message]:
        """What happens from now on (or after event `last_id`), as it happens; never ends by itself.

        Breaks of the connection are bridged: no stored event is lost or told twice. A refusal is raised.
        """
        pauses = _pauses()
        params = {"experiment": experiment} if experiment else {}
        while True:
            headers = {"Accept": "text/event-stream"} | (
                {} if last_id is None else {"Last-Event-ID": str(last_id)}
            )
            try:
                with self._stream(
                    "events", params=params, headers=headers, timeout=httpx.Timeout(30.0, connect=10.0)
                ) as answer:
                    for message in _messages(answer.iter_lines()):
                        pauses = _pauses()
                        if message.id is not None:
                            last_id = message.id
                        if message.kind:
                            yield message
            except ApiError as error:
                if error.status < 500:
                    raise
            except Unreachable:
                if last_id is None:  # never connected: nothing to resume
                    raise
            _wait(pauses)

    # --- the wire --------------------------------------------------------------------------------------

    def _get(self, model: type[M], path: str, **params: Any) -> M:
        return _parse(model, self._call("GET", path, params=_given(params)))

    def _list(self, model: type[M], path: str, limit: int | None = None, **params: Any) -> list[M]:
        items: list[M] = []
        params = _given(params) | {"limit": LONGEST_PAGE if limit is None else min(limit, LONGEST_PAGE)}
        while True:
            page = _parse(Page[model], self._call("GET", path, params=params))  # type: ignore[valid-type]
            items += page.items
            if page.next is None or (limit is not None and len(items) >= limit):
                return items[:limit]
            params["after"] = page.next

    def _send(
        self, model: type[M], method: str, path: str, body: BaseModel | None = None, key: str | None = None
    ) -> M:
        headers = {"Content-Type": "application/json"}
        if method == "POST":
            headers["Idempotency-Key"] = key or uuid.uuid4().hex
        content = b"{}" if body is None else body.model_dump_json(exclude_unset=True).encode()
        return _parse(model, self._call(method, path, headers=headers, content=content))

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        # an answer lost on its way is asked for again where that can do no harm
        headers = options.get("headers", {})
        repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in headers
        for attempt in (1, 2, 3):
            try:
                answer = self._http.request(method, path, **options)
                break
            except httpx.TransportError as error:
                if not repeatable or attempt == 3 or isinstance(error, httpx.ConnectError):
                    raise self._no_answer(error) from error
        if answer.is_error or answer.is_redirect:
            raise _refusal(answer)
        return answer

    def _no_answer(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"No answer from {self.url}: {str(error) or type(error).__name__}.")

    @contextmanager
    def _stream(self, path: str, **options: Any) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", path, **options) as answer:
                if answer.is_error or answer.is_redirect:
                    answer.read()
                    raise _refusal(answer)
                yield answer
        except httpx.TransportError as error:
            raise self._no_answer(error) from error

    def _download(self, path: str, to: Path) -> Path:
        part = to.with_name(f".{to.name}.part")
        with self._stream(path) as answer, part.open("wb") as file:
            for block in answer.iter_bytes(BLOCK):
                file.write(block)
        return part.replace(to)


def _parse(model: type[M], answer: httpx.Response) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise ApiError(
            Problem(
                title="Not an answer of beamhub",
                status=502,
                detail=f"{answer.url} answered something that is no {model.__name__}.",
                remedy="Check that the address is the hub's, and that client and service are of one version.",
            )
        ) from error


def _runs(template: str | None) -> dict[str, Any]:
    """A template by its name, or a member's notebook by its path."""
    return {"notebook" if template and template.endswith(".ipynb") else "template": template}


def _refusal(answer: httpx.Response) -> ApiError:
    if answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return ApiError(Problem.model_validate_json(answer.content))
    return ApiError(
        Problem(
            title=answer.reason_phrase or "Error",
            status=answer.status_code,
            detail=f"{answer.url} answered {answer.status_code} {answer.reason_phrase}.",
            remedy="Check that the hub and its service beamhub run, and that the address is the hub's.",
        )
    )


def _messages(lines: Iterator[str]) -> Iterator[Message]:
    """Messages of a text/event-stream; one without a kind only tells where to resume."""
    import json

    kind, id_, data = "", None, ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "id":
            id_ = int(value)
        elif name == "data":
            data += value
        elif not line and (kind or id_ is not None):
            content = json.loads(data) if data else {}
            when = content.get("time")
            yield Message(
                id=id_,
                kind=kind,
                experiment=content.get("experiment"),
                instrument=content.get("instrument"),
                subject=content.get("subject", ""),
                actor=content.get("actor", ""),
                time=datetime.fromisoformat(when) if when else None,
                data=content.get("data", {}),
            )
            kind, id_, data = "", None, ""


class _Outgoing:
    """An open file that is sent; what has been read of it is in its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self.name = file.name
        self._file = file
        self._stamp = self._now()
        self._running = digests.Running("sha256")

    @property
    def size(self) -> int:
        return self._stamp[0]

    def changed(self, *, complete: bool) -> bool:
        """Whether the file is not what it was, so that what has been read may be of both; or has not been
        read in full, where it should have been."""
        return self._now() != self._stamp or (complete and self._running.position != self.size)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def blocks(self, position: int, length: int) -> Iterator[bytes]:
        """The bytes from `position` on, which lies at most where reading has come to."""
        end = position + length
        while block := os.pread(self._file.fileno(), min(BLOCK, end - position), position):
            self._running.add(memoryview(block)[max(self._running.position - position, 0) :])
            position += len(block)
            yield block

    def digest(self) -> str:
        """Hexadecimal, of all of it: what has not been read is read now."""
        self._running.catch_up(self._file.fileno())
        return str(self._running).partition(":")[2]


def _metadata(values: dict[str, str]) -> str:
    """As tus has it in a header."""
    return ",".join(f"{key} {b64encode(value.encode()).decode()}" for key, value in values.items())


def _pauses() -> Iterator[float]:
    pause = 0.2
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE)


def _wait(pauses: Iterator[float]) -> None:
    time.sleep(next(pauses))


def _usage(by: Sequence[UsageKey], begin: date | None, end: date | None) -> dict[str, str | None]:
    return {
        "by": ",".join(by) or None,
        "from": begin.isoformat() if begin else None,
        "to": end.isoformat() if end else None,
    }


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _uploads(instrument: str) -> str:
    return f"instruments/{_part(instrument)}/uploads"


def _part(text: str) -> str:
    return quote(text, safe="")


def _path(text: str) -> str:
    return quote(text, safe="/")
