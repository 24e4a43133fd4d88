"""Jobs on the machine of the service, each in a sandbox of its own.

A job's processes are a session and process group of their own: they go on when the service ends, and are
found again by the group's number and the start time of its first process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from beamhub import sandbox
from beamhub.boot import boot_id
from beamhub.folders import INCOMING
from beamhub.run import GO
from beamhub.runners import Phase, Ref, Status
from beamhub.runners.pool import Pool
from beamhub.schemas import JobSpec, Profile, RunnerState

log = logging.getLogger(__name__)

LOST = "each can read all experiments, the service's secrets and the network"
WARM = "beamhub_notebooks.warm"  # does once what jobs would otherwise do each time
# Niceness: the service comes first, then what somebody at the detector watches, then all else.
LIVE, BATCH, IDLE = 5, 10, 19
CODES = 1000  # that are kept
SIGNALLED = 128  # exit codes above it tell which signal ended a process, as in a shell
PAGE = os.sysconf("SC_PAGE_SIZE")
CHILDREN = Path("/proc/thread-self/children").exists()  # of each thread; the kernel may be made without


class LocalRunner:
    """Runs jobs on `cpus` of this machine's CPUs.

    Args:
        cpus: for all jobs together.
        state: the service's own folder; keeps caches of compiled code and fonts. Jobs see nothing else of it.
        data_dir: the folder of all experiments. A job sees its own experiment's, and no other.
        warm: whether `warm` is to fill these caches.
        ready: how many interpreters wait for jobs of each experiment that is expected to have some.
        require_sandbox: refuse jobs where sandboxes can't be made. Otherwise jobs run without one there, as a
            warning says once, with all that the service itself may read and write.
    """

    def __init__(
        self,
        cpus: int,
        state: Path,
        data_dir: Path,
        *,
        warm: bool = True,
        ready: int = 0,
        require_sandbox: bool = False,
    ) -> None:
        self.cpus = cpus
        self._broken = sandbox.works()
        self._require_sandbox = require_sandbox
        if self._broken:
            log.warning(
                "%s: %s",
                "jobs are refused" if require_sandbox else "jobs run without a sandbox: " + LOST,
                self._broken,
            )
        self._warm = warm
        self._state = state.absolute()
        self._data_dir = data_dir.absolute()
        self._caches = self._state / "warm"
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._codes: dict[int, int] = {}  # exit codes of those that have ended lately
        self._niceness: dict[int, int] = {}  # to be, of those that have waited with another
        self._watched: set[int] = set()
        self._changed: Callable[[], None] = lambda: None
        # without a sandbox that a folder's new name reaches, nobody waits
        self.pool = Pool(self._data_dir, 0 if self._broken else ready, max(ready, cpus), self._wait)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._changed = callback

    async def prepare(self, spec: JobSpec, profile: Profile, experiment: Path) -> Ref:
        ref = await asyncio.to_thread(self._prepare, spec, profile, experiment)
        self._watch(_int(ref, "pid"))
        return ref

    async def release(self, ref: Ref) -> None:
        await asyncio.to_thread(self._release, ref)

    async def poll(self, refs: Sequence[Ref]) -> list[Status]:
        for ref in refs:
            self._watch(_int(ref, "pid"))
        return await asyncio.to_thread(self._poll, refs)

    async def cancel(self, ref: Ref) -> None:
        await asyncio.to_thread(self._cancel, ref)

    async def estimate(self, profile: Profile, instrument: str) -> datetime | None:  # noqa: ARG002
        """It begins when the jobs before it have made room."""
        return None

    async def accounts(self, attempts: Sequence[tuple[int, str]]) -> list[int | None]:
        """It keeps none."""
        return [None for _ in attempts]

    async def state(self) -> RunnerState:
        return RunnerState(name="local", cpus=self.cpus, free=self.cpus)

    async def expect(self, experiments: Sequence[Path]) -> None:
        await asyncio.to_thread(self.pool.expect, experiments)

    def _watch(self, pid: int) -> None:
        """Has the change told when this process ends: it is the last of a sandbox to do so."""
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._watched.discard(pid)
            self._changed()

        if pid not in self._watched:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and is being looked at
                descriptor = os.pidfd_open(pid)
                loop.add_reader(descriptor, ended)
                self._watched.add(pid)

    def _prepare(self, spec: JobSpec, profile: Profile, experiment: Path) -> Ref:
        if self._broken and self._require_sandbox:
            raise OSError(self._broken)
        folder = Path(spec.folder)
        nice = LIVE if spec.live else BATCH
        child = self.pool.take(folder, experiment)
        if child is None:
            child = self._spawn(folder, experiment, nice)
        else:
            self._niceness[child.pid] = nice
        self._children[child.pid] = child
        started = _process(child.pid)
        if started is None:
            raise OSError("the job's first process ended at once")
        ref: Ref = {"pid": child.pid, "start_time": started.start_time, "memory": profile.memory}
        return {**ref, "began": _uptime(), "boot": boot_id()}

    def _wait(self, folder: Path, experiment: Path) -> subprocess.Popen[bytes]:
        return self._spawn(folder, experiment, IDLE if _may_hurry() else LIVE, "--warm")

    def _spawn(self, folder: Path, experiment: Path, nice: int, *options: str) -> subprocess.Popen[bytes]:
        """The first process of a job in `folder`, which waits for the word and then looks at the folder."""
        self._caches.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "beamhub.run", "--held", *options, str(folder)]
        environment = self._environment()
        if self._broken:
            environment |= sandbox.without(folder)
        else:
            argv = sandbox.command(
                argv,
                read_write=[folder],
                read_only=[experiment, self._caches],
                hide=[self._state, self._data_dir, experiment / INCOMING],
                network=False,
                cwd=folder,
            )
        # before it runs: a process that it is starting meanwhile would be left as it was
        slower = nice - os.getpriority(os.PRIO_PROCESS, 0)
        argv = ["nice", "-n", str(slower), *argv]
        # appended to, so that a job which truncates its log does not make holes in it
        with (folder / "log.txt").open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    def _release(self, ref: Ref) -> None:
        child = self._children.get(_int(ref, "pid"))
        if child is not None and child.stdin is not None:
            try:
                if (nice := self._niceness.pop(child.pid, None)) is not None:
                    _set_niceness(child.pid, nice)
                child.stdin.write(GO)
                child.stdin.close()
            except (BrokenPipeError, ProcessLookupError):  # it has been killed meanwhile: poll() tells
                log.warning("the job's process %d ended before it was let go", child.pid)

    def _poll(self, refs: Sequence[Ref]) -> list[Status]:
        all_processes = cache(lambda: list(_processes()))
        for pid, child in list(self._children.items()):
            if (code := child.poll()) is not None:  # takes the exit code, so that no zombie stays
                self._children.pop(pid, None)
                self._codes.pop(pid, None)
                self._codes[pid] = code if code >= 0 else 128 - code
                if len(self._codes) > CODES:
                    del self._codes[next(iter(self._codes))]
                self._niceness.pop(pid, None)
                if child.stdin is not None:
                    child.stdin.close()
        return [self._status(ref, all_processes) for ref in refs]

    def _cancel(self, ref: Ref) -> None:
        if _members(ref, _processes()):
            try:
                os.killpg(_int(ref, "pid"), signal.SIGKILL)
            except ProcessLookupError:
                return  # the last one has just ended

    async def warm(self) -> None:
        if not self._warm or importlib.util.find_spec(WARM) is None:
            return
        self._caches.mkdir(parents=True, exist_ok=True)
        child = await asyncio.create_subprocess_exec(
            "nice",
            *("-n", "15", sys.executable, "-m", WARM),
            env=self._environment()
            | {
                "NUMBA_CACHE_DIR": str(self._caches / "numba"),
                "MPLCONFIGDIR": str(self._caches / "matplotlib"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _, errors = await child.communicate()
        except asyncio.CancelledError:
            child.kill()
            await child.wait()
            raise
        if child.returncode != 0:
            log.warning("jobs will start more slowly: %s failed: %s", WARM, errors.decode(errors="replace"))

    def _environment(self) -> dict[str, str]:
        """All that a job inherits: nothing of the service's own environment, where its secrets are, but the
        places of programs."""
        return {
            "PATH": os.pathsep.join((f"{sys.prefix}/bin", os.environ.get("PATH", os.defpath))),
            "HOME": "/tmp",  # noqa: S108 (in the sandbox, private)
            "LANG": "C.UTF-8",
            "PYTHONNOUSERSITE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "BEAMHUB_WARM": str(self._caches),
        }

    def _status(self, ref: Ref, all_processes: Callable[[], Sequence[_Process]]) -> Status:
        # in a sandbox nobody leaves it
        family = set() if self._broken else _family(ref)
        if not family:
            family = _descendants(_members(ref, all_processes()), all_processes())
        began = ref.get("began")
        elapsed = _uptime() - began if isinstance(began, float) and _of_this_boot(ref) else None
        if not family:
            code = self._codes.get(_int(ref, "pid"))  # asked for again where the end could not be settled
            killed = code is None or code > SIGNALLED
            return Status(
                Phase.GONE,
                "Its processes were killed." if killed else "",
                exit_code=code,
                elapsed=elapsed,
                again=killed,
            )
        limit = _int(ref, "memory")
        used = sum(map(_private_memory, family))
        if used > limit:
            self._cancel(ref)
            return Status(
                Phase.RUNNING,
                reason=f"It used more than {limit / 1024**3:g} GiB of memory: choose a profile with more.",
                elapsed=elapsed,
            )
        return Status(Phase.RUNNING, elapsed=elapsed)


@cache
def _may_hurry() -> bool:
    """Whether a process that has been made slow can be made faster again: that takes a privilege."""
    with subprocess.Popen(["sleep", "60"]) as trial:
        try:
            os.setpriority(os.PRIO_PROCESS, trial.pid, IDLE)
            os.setpriority(os.PRIO_PROCESS, trial.pid, LIVE)
        except PermissionError:
            return False
        finally:
            trial.kill()
    return True


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    group: int
    nice: int
    start_time: int  # clock ticks after boot


def _processes() -> Iterator[_Process]:
    """All that live on this machine; zombies do not."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (process := _process(int(entry.name))) is not None:
            yield process


def _process(pid: int) -> _Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the second field is the name in parentheses, which may itself have spaces and parentheses
    state, parent, group, *rest = text.rpartition(")")[2].split()
    if state in "ZX":
        return None
    return _Process(pid, int(parent), int(group), int(rest[13]), int(rest[16]))


def _members(ref: Ref, processes: Iterable[_Process]) -> list[int]:
    """The living processes of the job's group. The number of a group is not given away while the group has
    members, but may be afterwards: then its first process has another start time. None outlives the machine.
    """
    if not _of_this_boot(ref):
        return []
    group = _int(ref, "pid")
    members = [process for process in processes if process.group == group]
    strangers = any(one.pid == group and one.start_time != ref["start_time"] for one in members)
    return [] if strangers else [process.pid for process in members]


def _family(ref: Ref) -> set[int]:
    """The job's first process and all that it has started, and what they have, without a look at all others
    of a large machine; nothing if it has ended, or if the kernel does not tell whose children are whose."""
    first = _process(_int(ref, "pid"))
    if first is None or first.start_time != ref["start_time"] or not _of_this_boot(ref) or not CHILDREN:
        return set()
    found: set[int] = set()
    waiting = [first.pid]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        threads: list[Path] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            threads += Path(f"/proc/{pid}/task").iterdir()
        for thread in threads:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                waiting += map(int, (thread / "children").read_text().split())
    return found


def _of_this_boot(ref: Ref) -> bool:
    return ref.get("boot", boot_id()) == boot_id()  # jobs of earlier versions do not tell


def _descendants(roots: Iterable[int], processes: Iterable[_Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return found


def _set_niceness(pid: int, nice: int) -> None:
    """Of a process and all that it has started, with all their threads.

    What it starts meanwhile may still get the old one, and go into a group of its own: so all are looked at
    until nobody has it.
    """
    while True:
        processes = list(_processes())
        family = _descendants([pid], processes)
        others = {process.group for process in processes if process.pid in family and process.nice != nice}
        if not others:
            return
        for group in others:
            with contextlib.suppress(ProcessLookupError):  # it has ended, or is in another one now
                os.setpriority(os.PRIO_PGRP, group, nice)


def _uptime() -> float:
    """Seconds since this machine was started."""
    return float(Path("/proc/uptime").read_text().split()[0])


def _private_memory(pid: int) -> int:
    """Bytes in memory that this process does not share with files or other processes."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(resident) - int(shared)) * PAGE


def _int(ref: Ref, name: str) -> int:
    value = ref[name]
    if not isinstance(value, int):
        raise TypeError(f"the reference of a local job has no {name}: {ref}")
    return value
