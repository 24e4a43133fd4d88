"""What this machine has and lacks for running beamhub."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from beamhub import checkup, sandbox

from beamhub_hub import proxy
from beamhub_hub.site import Site

FREE = 2 << 30  # bytes of disk that a start asks for
FULL = 0.05  # the part of the data's disk that had better be free


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine, or what to do about it. Without a `needed` one, beamhub doesn't start."""

    name: str
    fine: bool
    message: str
    needed: bool = False


def findings(site: Site, number: int) -> list[Finding]:
    """Everything that is looked at, the needed things first."""
    return [
        python(),
        folder(site.state),
        port(number),
        _proxy(),
        *_database(site),
        _data(site.data),
        *notes(),
        *_slurm(site),
        _program("chromium", "only tests use it", "the acceptance tests can't run: apt-get install chromium"),
    ]


def notes() -> list[Finding]:
    """What a demo does without where it is missing."""
    return [_sandbox(), _dials()]


def obstacle(*found: Finding) -> str:
    """The first of these that makes a start impossible, in words, or ""."""
    return next((finding.message for finding in found if finding.needed and not finding.fine), "")


def dials() -> bool:
    """Whether DIALS can be called."""
    return shutil.which("dials.import") is not None


def python() -> Finding:
    """Whether this Python is new enough."""
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036  # what an installation by hand may have got round
        return Finding(
            "Python", fine=False, message=f"Python is {version}; beamhub needs 3.11 or newer", needed=True
        )
    return Finding("Python", fine=True, message=version, needed=True)


def folder(state: Path) -> Finding:
    """Whether the state folder can be made, and has room."""
    parent = next(above for above in (state.absolute(), *state.absolute().parents) if above.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Finding(
            "folder", fine=False, message=f"{parent} can't be written to: choose --state", needed=True
        )
    free = shutil.disk_usage(parent).free
    if free < FREE:
        message = (
            f"only {free / 1e9:.1f} GB of disk are free in {parent}: free 2 GB or choose --state elsewhere"
        )
        return Finding("disk", fine=False, message=message, needed=True)
    return Finding("disk", fine=True, message=f"{free / 1e9:.0f} GB free in {parent}", needed=True)


def port(number: int) -> Finding:
    """Whether people can be served there."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", number))
        except OSError as error:
            message = (
                f"port {number} can't be used ({error.strerror}): choose another (--port, make demo PORT=…)"
            )
            return Finding("port", fine=False, message=message, needed=True)
    return Finding("port", fine=True, message=f"{number} is free", needed=True)


def _database(site: Site) -> list[Finding]:
    now = checkup.database(site.database)
    found = [Finding("database", fine=now.fine, message=now.message, needed=True)]
    if (site.state / "service").exists():  # there is something to be saved
        saved = checkup.backup(site.state, site.state / "service")
        found.append(Finding("backup", fine=saved.fine, message=saved.message))
    return found


def _data(data: Path) -> Finding:
    """Whether there is room for what will be measured."""
    there = next(above for above in (data.absolute(), *data.absolute().parents) if above.exists())
    disk = shutil.disk_usage(there)
    room = f"{disk.free / 1e9:.0f} GB ({100 * disk.free / disk.total:.0f} %) free in {there}"
    if disk.free < FULL * disk.total:
        message = f"only {room}: uploads fail when it is full; finalise experiments and move them elsewhere"
        return Finding("data", fine=False, message=message)
    return Finding("data", fine=True, message=room)


def _slurm(site: Site) -> list[Finding]:
    conf = checkup.slurm_conf(site.slurm)
    if conf is None:
        return []
    looked = {"MUNGE": checkup.munge(conf), "Slurm": checkup.slurm(conf)}
    return [Finding(name, fine=found.fine, message=found.message) for name, found in looked.items()]


def _proxy() -> Finding:
    try:
        proxy.install()
    except proxy.ProxyMissing as missing:
        return Finding("proxy", fine=False, message=str(missing), needed=True)
    return Finding("proxy", fine=True, message="installed", needed=True)


def _sandbox() -> Finding:
    broken = sandbox.works()
    if broken:
        message = (
            "jobs run without a sandbox, so that each can read all experiments, the service's secrets and "
            f"the network; JupyterLab sessions don't start: {broken}"
        )
        return Finding("sandbox", fine=False, message=message)
    return Finding(
        "sandbox", fine=True, message="bubblewrap works: jobs and sessions see their experiment only"
    )


def _dials() -> Finding:
    if not dials():
        message = "not installed, so datasets aren't processed: apt-get install dials"
        return Finding("DIALS", fine=False, message=message)
    return Finding("DIALS", fine=True, message="found: each complete rotation is processed with it")


def _program(name: str, found: str, missing: str) -> Finding:
    return Finding(
        name, fine=shutil.which(name) is not None, message=found if shutil.which(name) else missing
    )
