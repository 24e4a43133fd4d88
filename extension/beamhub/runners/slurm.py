"""Jobs on a Slurm cluster, through its own commands: `sbatch`, `squeue`, `sacct`, `scancel`, `scontrol`.

A job is submitted held, and let go when the service has remembered its number. So it runs at most once,
whatever dies between the two, and whether or not `sbatch` got to say that it had succeeded: one that nobody
remembers stays held, is found by its name, and taken up or removed. Slurm never runs a job again by itself
(`--no-requeue`): one job of Slurm is one attempt, and is charged as Slurm has counted it.

What a controller has forgotten that lost its records is started again when it has given no sign of life for
a while: a job that runs writes into its folder again and again. (Slurm ends what its controller does not know
as soon as the node tells of it.) One that is only asleep and wakes up later changes nothing: each attempt has
a folder of its own, what the one before it writes goes nowhere, and if it has not begun it does not begin.

All jobs are looked after with one `squeue`, however many they are; `sacct` is asked, once for all, for those
that Slurm's controller no longer knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from beamhub.errors import NotFound
from beamhub.jobfolder import STARTED, JobFolder
from beamhub.runners import Phase, Ref, Status, Unavailable
from beamhub.runners.slurm_commands import Commands, Refused
from beamhub.runners.slurm_lines import (
    AGAIN,
    FIELDS,
    FORMAT,
    NODES,
    OWN_END,
    RUNNING,
    WAITING,
    Line,
    account_line,
    moment,
    node_line,
    queue_line,
)
from beamhub.runners.slurm_words import clock, what_it_waits_for, why_it_ended
from beamhub.schemas import JobSpec, NodeState, Profile, RunnerState, Slug, SlurmOptions

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("slurm_job.sh")
LATER = "100"  # niceness of what nobody at the detector watches
STRAY = 60.0  # seconds after which a held job that nobody has remembered is removed
INSIST = 10.0  # seconds between two `scancel` of one job
STARTS = re.compile(r"to start at (\d+) ")  # what sbatch --test-only says
MEMORY = re.compile(rb"slurmstepd.*(exceeded .*memory limit|oom.kill)", re.IGNORECASE)
FORGOTTEN = "Slurm does not know this job any more, and it has left no result."
SILENCE = "Slurm does not know this job any more: after {:g} s without a sign of life it is started again."


class SlurmSettings(BaseModel):
    """How the service reaches a cluster. What jobs use of it stands in their profiles."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    conf: Path | None = Field(None, description="slurm.conf, where it isn't in Slurm's usual place")
    python: Path = Field(Path(sys.executable), description="the Python on the nodes that has beamhub")
    path: str = Field("", description="PATH on the nodes; empty: as the service's own")
    instruments: dict[Slug, SlurmOptions] = Field(
        {}, description="what jobs of an instrument use instead of what their profile says"
    )
    interval: float = Field(2.0, gt=0, description="seconds between two looks at the queue")
    timeout: float = Field(20.0, gt=0, description="seconds that one of Slurm's commands may take")
    patience: float = Field(
        10.0, ge=0, description="seconds for a result to appear on the shared storage, once the job has ended"
    )
    silence: float = Field(
        60.0,
        ge=0,
        description="seconds without a sign of life until a job that Slurm has forgotten is started again",
    )


class SlurmRunner:
    """Runs jobs on a cluster that shares the data folder with this machine, as the service's own OS user.

    Args:
        state: the service's own folder; hidden from jobs where a node should see it.
        data_dir: the folder of all experiments, under the same path on all nodes.
        require_sandbox: refuse jobs on nodes where sandboxes can't be made. Otherwise jobs run without one
            there, as their log says, with all that the service's OS user may read and write.
    """

    cpus: int | None = None

    def __init__(
        self, settings: SlurmSettings, state: Path, data_dir: Path, *, require_sandbox: bool = False
    ) -> None:
        self._settings = settings
        self._commands = Commands(_environment(settings), settings.timeout)
        self._state = state.absolute()
        self._data_dir = data_dir.absolute()
        self._require_sandbox = require_sandbox
        # several beamhubs may use one account on a cluster
        self._prefix = f"beamhub-{hashlib.sha256(bytes(self._data_dir)).hexdigest()[:8]}-"
        self._lines: Mapping[int, Line] = {}  # as squeue told last
        self._looked = 0.0  # when that was, monotonic
        self._unsure = True  # whether there may be jobs that nobody has remembered
        self._prepared: dict[str, int] = {}  # what is being remembered: name -> number
        self._ended: dict[int, float] = {}  # when a job was first seen to have ended, monotonic
        self._forgotten: dict[int, float] = {}  # since when Slurm does not know it, monotonic
        self._cancelled: dict[int, float] = {}
        self._estimates: dict[int, datetime] = {}

    # --- what the engine asks ----------------------------------------------------------------------------

    async def prepare(self, spec: JobSpec, profile: Profile, experiment: Path) -> Ref:
        name = f"{self._prefix}{spec.id}"
        number = None
        if self._unsure or name in self._prepared:  # which another service may have taken up meanwhile
            await self._look()
            left = (line.number for line in self._lines.values() if line.held and line.name == name)
            number = next(left, None)
        await asyncio.to_thread(Path(spec.folder, f".attempt-{spec.attempt}").touch)
        if number is None:
            number = await self._submit(name, spec, profile, experiment)
        self._prepared[name] = number
        return {
            "slurm": number,
            "name": name,
            "folder": spec.folder,
            "walltime": profile.walltime,
            "memory": profile.memory,
        }

    async def release(self, ref: Ref) -> None:
        try:
            await self._commands.call("scontrol", "release", str(_number(ref)))
        except (Unavailable, Refused) as error:  # poll() sees that it is still held, and tries again
            log.warning("Slurm's job %d could not be let go: %s", _number(ref), error)

    async def poll(self, refs: Sequence[Ref]) -> list[Status]:
        if not refs and not self._unsure:
            return []
        try:
            looked = await self._refresh(refs)
            known = [_known(ref, self._lines) for ref in refs]
            missing = [_number(ref) for ref, line in zip(refs, known, strict=True) if line is None]
            if missing and looked:
                accounts = await self._accounts(missing)
                known = [line or accounts.get(_key(ref)) for ref, line in zip(refs, known, strict=True)]
        except Unavailable as error:
            return [Status(Phase.UNKNOWN, str(error)) for _ in refs]
        statuses = [
            await self._status(ref, line) if line else await self._without(ref)
            for ref, line in zip(refs, known, strict=True)
        ]
        await self._tidy({_number(ref) for ref in refs})
        return statuses

    async def cancel(self, ref: Ref) -> None:
        number, now = _number(ref), time.monotonic()
        if now - self._cancelled.get(number, -INSIST) < INSIST:
            return
        self._cancelled[number] = now
        self._prepared.pop(str(ref["name"]), None)
        self._unsure = True  # until it is seen to be gone
        try:
            await self._commands.call("scancel", str(number))
        except (Unavailable, Refused) as error:  # asked again as long as the job is there
            log.warning("Slurm's job %d could not be cancelled: %s", number, error)
        self._looked = 0.0

    async def estimate(self, profile: Profile, instrument: str) -> datetime | None:
        try:
            told = await self._commands.call(
                *("sbatch", "--test-only", *self._asks(profile, instrument), str(SCRIPT)), errors=True
            )
        except Refused as error:
            raise OSError(f"Slurm refuses it: {error}") from error
        found = STARTS.search(told)
        return moment(found[1]) if found else None

    async def accounts(self, attempts: Sequence[tuple[int, str]]) -> list[int | None]:
        refs: list[Ref] = [
            {"slurm": int(ref.removeprefix("slurm ")), "name": f"{self._prefix}{job}"}
            for job, ref in attempts
        ]
        lines = await self._accounts([_number(ref) for ref in refs]) if refs else {}
        known = [lines.get(_key(ref)) for ref in refs]
        return [line.cpus * line.elapsed if line and line.nodes else None for line in known]

    async def state(self) -> RunnerState:
        """Of the nodes that the account may use, whatever their partition."""
        try:
            told = await self._commands.call("sinfo", "--noheader", "--Node", f"--format={NODES}")
        except (Unavailable, Refused) as error:
            return RunnerState(name="slurm", reason=f"{str(error).removesuffix('.')}.")
        nodes = dict(node_line(row) for row in told.splitlines())  # each is listed once for each partition
        counts = dict.fromkeys(NodeState, 0)
        for state, _, _ in nodes.values():
            counts[state] += 1
        there = [node for node in nodes.values() if node[0] is not NodeState.UNAVAILABLE]
        return RunnerState(
            name="slurm",
            cpus=sum(total for _, _, total in there),
            free=sum(idle for state, idle, _ in there if state is not NodeState.OFF),
            cold=sum(idle for state, idle, _ in there if state is NodeState.OFF),
            nodes={state: count for state, count in counts.items() if count},
        )

    async def warm(self) -> None:
        """Nothing to do: nodes that the caches of the service's own machine reach use those."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Slurm tells nothing by itself."""

    async def expect(self, experiments: Sequence[Path]) -> None:
        """Nothing to do: nodes are not kept."""

    # --- submitting ----------------------------------------------------------------------------------------

    async def _submit(self, name: str, spec: JobSpec, profile: Profile, experiment: Path) -> int:
        folder = Path(spec.folder)
        line = [
            *("--hold", "--no-requeue", "--parsable", "--export=ALL", "--open-mode=append"),
            *self._asks(profile, spec.experiment.rsplit("-", 2)[0]),
            f"--job-name={name}",
            f"--chdir={folder}",
            f"--output={str(folder / 'log.txt').replace('%', '%%')}",
            *([] if spec.live else [f"--nice={LATER}"]),
        ]
        script = [str(SCRIPT), str(self._settings.python), str(folder), str(spec.attempt)]
        script += [f"--experiment={experiment}", f"--hide={self._state}", f"--hide={self._data_dir}"]
        script += [f"--caches={self._state / 'warm'}"]
        script += ["--require-sandbox"] if self._require_sandbox else []
        try:
            told = await self._commands.call("sbatch", *line, *script)
        except Refused as error:
            raise OSError(f"Slurm refuses it: {error}") from error
        except Unavailable:
            self._unsure = True  # it may have been taken nevertheless
            raise
        return int(told.split(";")[0])

    def _asks(self, profile: Profile, instrument: str) -> list[str]:
        """What a job of this profile asks Slurm for."""
        options = profile.slurm.model_dump()
        if instrument in self._settings.instruments:
            own = self._settings.instruments[instrument].model_dump()
            options |= {option: value for option, value in own.items() if value}
        return [
            *("--nodes=1", "--ntasks=1", f"--cpus-per-task={profile.cpus}"),
            f"--mem={-(-profile.memory // 1024**2)}M",
            f"--time={-(-profile.walltime // 60)}",
            *(f"--{option}={value}" for option, value in options.items() if value),
        ]

    async def _tidy(self, remembered: set[int]) -> None:
        """Removes what was submitted and never remembered, and lets go what was remembered and never let
        go."""
        for name in [name for name, number in self._prepared.items() if number in remembered]:
            del self._prepared[name]
        held = [line for line in self._lines.values() if line.held and line.name.startswith(self._prefix)]
        known = remembered.union(self._prepared.values())
        stray = [line for line in held if line.number not in known]
        self._unsure = bool(stray)
        old = datetime.now(UTC) - timedelta(seconds=STRAY)
        abandoned = [line.number for line in stray if line.submitted and line.submitted < old]
        waiting = [line.number for line in held if line.number in remembered - self._cancelled.keys()]
        for command, numbers in (("scontrol release", waiting), ("scancel", abandoned)):
            if numbers:
                self._lines = {n: line for n, line in self._lines.items() if n not in numbers}
                with contextlib.suppress(Unavailable, Refused):  # the next look sees them again
                    await self._commands.call(*command.split(), *map(str, numbers))
        alive = remembered.union(self._lines)
        self._ended = {number: when for number, when in self._ended.items() if number in alive}
        self._forgotten = {number: when for number, when in self._forgotten.items() if number in remembered}
        self._cancelled = {number: when for number, when in self._cancelled.items() if number in alive}
        self._estimates = {number: when for number, when in self._estimates.items() if number in alive}

    # --- looking -------------------------------------------------------------------------------------------

    async def _refresh(self, refs: Sequence[Ref]) -> bool:
        """Looks at the queue, unless that was just done and nothing tells that it has changed; whether it
        did."""
        lines = self._lines
        known = lines.keys() | self._forgotten.keys()
        looks = (
            time.monotonic() - self._looked >= self._settings.interval
            or any(_number(ref) not in known for ref in refs)
            or await asyncio.to_thread(_moved_on, refs, lines)
        )
        if looks:
            await self._look()
        return looks

    async def _look(self) -> None:
        began = time.monotonic()
        if self._commands.silent and began - self._looked < self._settings.interval:
            raise Unavailable(self._commands.silence())
        self._looked = began
        try:
            # also of partitions that are hidden: a job that is not listed counts as forgotten
            which = ("--me", "--all", "--local", "--states=all")
            told = await self._commands.call("squeue", *which, "--noheader", f"--format={FORMAT}")
        except Refused as error:
            raise Unavailable(f"Slurm does not tell about its queue: {error}.") from error
        self._lines = {line.number: line for row in told.splitlines() if (line := queue_line(row))}

    async def _accounts(self, numbers: Sequence[int]) -> dict[tuple[int, str], Line]:
        """What Slurm's accounting knows of jobs that its controller has forgotten, by number and name, as
        several may have had a number; where there is none, its record of completed jobs, if it keeps one."""
        asked = ("--allocations", "--noheader", "--parsable2", f"--format={FIELDS}")
        jobs = f"--jobs={','.join(map(str, numbers))}"
        for source in ((), ("--completion",)):
            try:
                told = await self._commands.call("sacct", *source, *asked, jobs)
            except Refused:
                continue  # a cluster without it
            lines = [line for row in told.splitlines() if (line := account_line(row))]
            if lines:
                return {(line.number, line.name): line for line in lines}
        return {}

    # --- telling -------------------------------------------------------------------------------------------

    async def _without(self, ref: Ref) -> Status:
        """Of a job that Slurm does not know."""
        number = _number(ref)
        if await asyncio.to_thread(_has_result, ref):
            return Status(Phase.GONE, FORGOTTEN)
        since = self._forgotten.setdefault(number, time.monotonic())
        last = await asyncio.to_thread(_last_sign, ref)
        silent = time.monotonic() - since
        if last is not None:
            silent = min(silent, (datetime.now(UTC) - last).total_seconds())
        if silent < self._settings.silence and number not in self._cancelled:
            return Status(Phase.UNKNOWN, SILENCE.format(self._settings.silence))
        del self._forgotten[number]  # Slurm may give this number away again
        return Status(Phase.GONE, FORGOTTEN, ended=last, again=True)

    async def _status(self, ref: Ref, line: Line) -> Status:
        self._forgotten.pop(line.number, None)
        if line.state == "CONFIGURING":
            return Status(Phase.WAITING, f"Waits for {line.nodes or 'a node'}, which is being switched on.")
        if line.state == "SUSPENDED":
            return Status(Phase.WAITING, f"Slurm has suspended it on {line.nodes}.")
        if line.state in WAITING:
            return Status(Phase.WAITING, self._waits(line))
        if line.state in RUNNING:
            return Status(Phase.RUNNING, started=line.begin)
        if line.state in OWN_END and not await asyncio.to_thread(_has_result, ref):
            first = self._ended.setdefault(line.number, time.monotonic())
            if time.monotonic() - first < self._settings.patience:
                return Status(Phase.RUNNING, started=line.begin)
            if not await asyncio.to_thread(_has_begun, ref):  # Slurm's own word for that says less
                line = replace(line, state="LAUNCH_FAILED")
        began = line.begin if line.nodes else None
        return Status(
            Phase.GONE,
            await _why_ended(ref, line),
            started=began,
            ended=line.end if began else None,
            cpu_seconds=line.cpus * line.elapsed if began else 0,
            again=line.state in AGAIN,
        )

    def _waits(self, line: Line) -> str:
        text = what_it_waits_for(line.why)
        now = datetime.now(UTC)
        estimate = self._estimates.get(line.number)
        if line.begin is None or line.begin <= now:
            self._estimates.pop(line.number, None)
            return f"{text}."
        # told anew only when it makes a difference: the scheduler refines it all the time
        if estimate is None or abs(line.begin - estimate) > max(timedelta(minutes=1), (estimate - now) / 5):
            self._estimates[line.number] = estimate = line.begin
        return f"{text}; it probably starts at {clock(estimate, now)}."


def _environment(settings: SlurmSettings) -> dict[str, str]:
    """Of Slurm's commands, and with that of the jobs."""
    usual = os.pathsep.join((str(settings.python.parent), os.environ.get("PATH", os.defpath)))
    environment = {
        "PATH": settings.path or usual,
        "LANG": "C.UTF-8",
        "SLURM_TIME_FORMAT": "%s",  # seconds since 1970
        "PYTHONNOUSERSITE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if settings.conf:
        environment["SLURM_CONF"] = str(settings.conf)
    return environment


def _known(ref: Ref, lines: Mapping[int, Line]) -> Line | None:
    """The line of this job, and not of another that has got its number since."""
    line = lines.get(_number(ref))
    return line if line is not None and line.name == ref["name"] else None


def _key(ref: Ref) -> tuple[int, str]:
    return _number(ref), str(ref["name"])


def _has_result(ref: Ref) -> bool:
    # listing a folder asks the file server, where looking for one name may be answered from memory
    with contextlib.suppress(FileNotFoundError):
        return "result.json" in os.listdir(str(ref["folder"]))  # noqa: PTH208
    return False


def _moved_on(refs: Iterable[Ref], lines: Mapping[int, Line]) -> bool:
    """Whether the folder of a job tells that it has begun or ended since Slurm was asked."""
    return any(
        (line.state in WAITING and Path(str(ref["folder"]), STARTED).exists())
        or (line.state in RUNNING and Path(str(ref["folder"]), "result.json").exists())
        for ref in refs
        if (line := lines.get(_number(ref)))
    )


async def _why_ended(ref: Ref, line: Line) -> str:
    state = line.state
    if state in OWN_END and await asyncio.to_thread(_out_of_memory, ref):
        state = "OUT_OF_MEMORY"
    return why_it_ended(state, walltime=_int(ref, "walltime"), memory=_int(ref, "memory"), nodes=line.nodes)


def _out_of_memory(ref: Ref) -> bool:
    """Whether Slurm itself wrote into the job's log that it used too much memory: where memory is watched
    without control groups, the job's state doesn't tell."""
    with contextlib.suppress(NotFound), _folder(ref).open("log.txt") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        return MEMORY.search(file.read(4096)) is not None
    return False


def _has_begun(ref: Ref) -> bool:
    return _folder(ref).started() is not None


def _last_sign(ref: Ref) -> datetime | None:
    """When the job has last written into its folder; None if it has not begun."""
    folder = _folder(ref)
    return folder.last_sign() if folder.started() else None


def _folder(ref: Ref) -> JobFolder:
    path = Path(str(ref["folder"]))
    return JobFolder(path.parents[1], int(path.name))


def _number(ref: Ref) -> int:
    return _int(ref, "slurm")


def _int(ref: Ref, name: str) -> int:
    value = ref[name]
    if not isinstance(value, int):
        raise TypeError(f"the reference of a Slurm job has no {name}: {ref}")
    return value
