"""`beamhub demo`: a whole facility on this machine, and a beamtime happening in it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from types import FrameType

import click
import httpx
from beamhub import cluster
from beamhub.client import ApiError, Client, Unreachable
from beamhub.ports import free_ports
from beamhub.schemas import Profile
from rich.console import Console

from beamhub_hub import machine, proxy
from beamhub_hub.beamtime import INSTRUMENT, prepare, resume, user_tokens
from beamhub_hub.credentials import Credentials
from beamhub_hub.display import Display, welcome
from beamhub_hub.processes import Ended, Program, Programs, end_stale
from beamhub_hub.site import Secrets, Site, write_private

BEAMHUB = [sys.executable, "-c", "from beamhub.cli import main; main()"]
PATIENCE = 180.0  # seconds that hub and services have to answer
CLUSTER = "cluster"  # the folder of a Slurm, in the demo's
REFRESH = 1.0  # seconds between looks at what is happening


@dataclass(frozen=True)
class Acquisition:
    """What the virtual detector writes, and how often."""

    count: int
    frames: int
    rate: float
    width: float
    detector: str
    swmr: bool


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="What to open: http://127.0.0.1:PORT.",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Folder of everything that the demo keeps.",
)
@click.option("--fresh", is_flag=True, help="Start over: remove what an earlier demo kept.")
@click.option(
    "--acquisitions", default=1, show_default=True, help="Datasets to acquire, one after the other."
)
@click.option("--no-acquisition", is_flag=True, help="Acquire nothing: the same as --acquisitions 0.")
@click.option("--frames", default=180, show_default=True, help="Frames of a dataset.")
@click.option("--rate", default=5.0, show_default=True, help="Frames per second.")
@click.option("--width", default=0.5, show_default=True, help="Rotation per frame, degrees.")
@click.option("--detector", type=click.Choice(["1M", "4M", "16M"]), default="1M", show_default=True)
@click.option("--swmr", is_flag=True, help="Write each dataset as one file, whose frames are seen meanwhile.")
@click.option("--cpus", type=click.IntRange(1), help="That jobs may use at a time.  [default: all]")
@click.option(
    "--ingest",
    type=click.IntRange(0, 16),
    default=1,
    show_default=True,
    help="Processes that take uploads; 0: the service does.",
)
@click.option(
    "--slurm", is_flag=True, help="Run jobs on a real Slurm of two nodes, started here; takes root."
)
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def demo(
    port: int,
    state: Path,
    acquisitions: int,
    frames: int,
    rate: float,
    width: float,
    detector: str,
    cpus: int | None,
    ingest: int,
    *,
    fresh: bool,
    no_acquisition: bool,
    swmr: bool,
    slurm: bool,
    quiet: bool,
) -> None:
    """Run a whole facility here and watch a beamtime happen.

    Hub, service, Cockpit, a virtual detector and the agent that uploads what it writes; everything is kept in
    one folder, so that the next start goes on where this one ended. Ctrl-C ends all of it.
    """
    console = Console(quiet=quiet)
    count = 0 if no_acquisition else acquisitions
    acquisition = Acquisition(count, frames, rate, width, detector, swmr)
    state = state.absolute()
    # also where a script started us in its background, with SIGINT ignored
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check(machine.python(), machine.folder(state))
        if slurm and (reason := cluster.missing()):
            raise click.ClickException(reason)
        with _alone(state):
            end_stale(state)
            _check(machine.port(port))
            if fresh:
                _clear(state)
            with console.status("Installing the proxy"):
                proxy.install()  # here, where its failure is one sentence
            _run(console, state, port, cpus, ingest, acquisition, slurm=slurm)
    except KeyboardInterrupt:
        console.print("\nEnded. `make demo` or `beamhub demo` goes on from here.")
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}: {error.filename or state}") from error
    except (proxy.ProxyMissing, Ended, Unreachable, ApiError, httpx.HTTPError) as error:
        raise click.ClickException(str(error)) from error


def _check(*found: machine.Finding) -> None:
    if obstacle := machine.obstacle(*found):
        raise click.ClickException(obstacle)


def _run(
    console: Console,
    state: Path,
    port: int,
    cpus: int | None,
    ingest: int,
    acquisition: Acquisition,
    *,
    slurm: bool,
) -> None:
    hub_port, proxy_port, service_port, cockpit_port, ingest_port = free_ports(5)
    site = Site(
        state=state,
        data=state / "data",
        port=port,
        hub_port=hub_port,
        proxy_port=proxy_port,
        service_port=service_port,
        cockpit_port=cockpit_port,
        ingest=ingest,
        ingest_port=ingest_port,
        cpus=cpus,
        profiles=_profiles(cpus or os.cpu_count() or 1) if slurm else (),
        slurm={"conf": str(state / CLUSTER / "slurm.conf"), "interval": 1.0} if slurm else {},
    )
    write_private(state / "site.json", site.model_dump_json(indent=2))
    credentials = Credentials.of(state, site.url)
    credentials.save(state)
    secrets = Secrets.of(state)
    detector_folder = state / "detector"
    detector_folder.mkdir(exist_ok=True)

    since = datetime.now(UTC)
    with Programs(state) as programs, Client(site.url, secrets.operator) as client:
        if slurm:
            with console.status("Starting Slurm"):
                _start_cluster(programs, state / CLUSTER, cpus or os.cpu_count() or 1)
        with console.status("Starting hub, service and Cockpit"):
            config = files("beamhub_hub") / "config" / "demo.py"
            hub = programs.start("hub", [sys.executable, "-m", "jupyterhub", f"--config={config}"])
            # the service is up before the Cockpit, and the hub's proxy lets nobody through before both are
            with Client(site.service_url, secrets.operator) as service:
                _wait_for(service, hub)
                beamtime = prepare(service, state, dials=machine.dials())
            credentials = user_tokens(site, secrets.operator, credentials)
            agent = programs.start(
                "agent", [*BEAMHUB, "sync", str(_agent_config(state, site, detector_folder))]
            )
            _wait_for(client, hub)
            credentials = credentials.model_copy(
                update={"instrument": beamtime.instrument.id, "experiment": beamtime.experiment.id}
            )
            resume(client, beamtime.experiment, since)
            credentials.save(state)  # with an experiment: whoever waits for the file may begin
        notes = machine.notes()
        if slurm:
            look = f"jobs run on two nodes; SLURM_CONF={state / CLUSTER / 'slurm.conf'} squeue shows them"
            notes.append(machine.Finding("Slurm", fine=True, message=look))
        welcome(console, credentials, notes)
        with Display(console, client, INSTRUMENT, beamtime.experiment.id) as display:
            detector = Detector(programs, client, detector_folder, acquisition)
            while True:
                hub.check()
                agent.check()
                display.update(detector.look())
                time.sleep(REFRESH)


def _start_cluster(programs: Programs, folder: Path, cpus: int) -> None:
    """Start a Slurm of two nodes, each with so many CPUs; raises Ended or Unreachable if that fails."""
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    program = programs.start(
        "cluster", [sys.executable, "-m", "beamhub.cluster", str(folder), f"--cpus={cpus}"]
    )
    end = time.monotonic() + PATIENCE
    while not ready.exists():
        program.check()
        if time.monotonic() > end:
            raise Unreachable(f"Slurm doesn't answer after {PATIENCE:.0f} s: see {program.log}")
        time.sleep(0.05)


def _profiles(cpus: int) -> tuple[Profile, ...]:
    """What jobs may ask for: nodes of the cluster, or a CPU of this machine beside them."""
    counts = [count for count in (1, 2, 4, 8, 16, 32) if count <= cpus]
    nodes = [
        Profile(
            name=f"cpu-{count}",
            title=f"{count} CPU{'s' if count > 1 else ''} of a Slurm node",
            cpus=count,
            memory=count * 4 * 1024**3,
            walltime=3600,
            runner="slurm",
        )
        for count in counts
    ]
    here = Profile(name="here-1", title="1 CPU of this machine", cpus=1, memory=4 * 1024**3, walltime=3600)
    return (*nodes, here)


class Detector:
    """The virtual detector: one program per dataset, one dataset after the other."""

    def __init__(self, programs: Programs, client: Client, folder: Path, acquisition: Acquisition) -> None:
        self._programs = programs
        self._client = client
        self._folder = folder
        self._acquisition = acquisition
        self._left = acquisition.count
        self._running: Program | None = None
        self._prefix = ""

    def look(self) -> str:
        """Start the next dataset when its turn has come; what the detector is doing, in words."""
        if self._running is not None and self._running.guard.poll() is None:
            so_far = "in one file" if self._acquisition.swmr else f"{self._written()} of its files so far"
            return f"writes {self._prefix}, {so_far}"
        if self._running is not None and self._running.guard.returncode != 0:
            self._running.check()
        if self._left == 0:
            return f"has written {self._prefix}; `beamhub simulate` writes more" if self._prefix else "idle"
        if not self._warm():
            return "waits until jobs can follow it from its first frame on"
        self._left -= 1
        self._prefix = f"lyso_{self._next_number()}"
        wanted = self._acquisition
        self._running = self._programs.start(
            "detector",
            [
                *BEAMHUB,
                "simulate",
                f"--folder={self._folder}",
                f"--prefix={self._prefix}",
                f"--frames={wanted.frames}",
                f"--rate={wanted.rate}",
                f"--width={wanted.width}",
                f"--detector={wanted.detector}",
                f"--seed={self._next_number()}",
                *(["--swmr"] if wanted.swmr else []),
            ],
        )
        return f"starts {self._prefix}"

    def _warm(self) -> bool:
        try:
            return self._client.health().warm
        except (Unreachable, ApiError):  # the hub starts the service again
            return False

    def _written(self) -> int:
        return len(list(self._folder.glob(f"{self._prefix}_data_*.h5")))

    def _next_number(self) -> int:
        found = (re.match(r"lyso_(\d+)_", path.name) for path in self._folder.iterdir())
        return 1 + max((int(match[1]) for match in found if match), default=0)


def _wait_for(client: Client, hub: Program) -> None:
    """Until the service answers through hub and proxy; raises Ended or Unreachable if that fails."""
    end = time.monotonic() + PATIENCE
    while True:
        hub.check()
        try:
            client.me()
        except (Unreachable, ApiError) as error:
            if time.monotonic() > end:
                raise Unreachable(
                    f"The hub doesn't answer after {PATIENCE:.0f} s ({error}): see {hub.log}"
                ) from error
            time.sleep(0.2)
        else:
            return


def _agent_config(state: Path, site: Site, folder: Path) -> Path:
    path = state / "agent" / "sync.toml"
    path.write_text(
        f"""\
[service]
url = "{site.url}"
token_file = "token"

[instrument]
id = "{INSTRUMENT}"

[[watch]]
path = {json.dumps(str(folder))}
include = ["*.h5", "*.cbf"]

[journal]
path = "journal.sqlite"
"""
    )
    return path


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # one is enough: what follows is the orderly end, and a second one must not cut it short
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state folder; ClickException if another demo does."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException(
                f"a demo is running in {state} already: end it, or use --state"
            ) from None
        yield


def _clear(state: Path) -> None:
    """Remove what an earlier demo kept, and nothing that isn't a demo's."""
    kept = [path for path in state.iterdir() if path.name != "lock"]
    if kept and not Credentials.path(state).exists():
        raise click.ClickException(f"{state} is not a demo's folder, so --fresh doesn't remove it")
    for path in kept:
        if path.is_dir() and not path.is_symlink():
            for folder, names, _files in os.walk(path):  # ended jobs are read-only
                for name in (".", *names):
                    sub = Path(folder, name)
                    if not sub.is_symlink():
                        sub.chmod(stat.S_IRWXU)
            shutil.rmtree(path)
        else:
            path.unlink()
