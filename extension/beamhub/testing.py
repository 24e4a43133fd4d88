"""Fixtures for tests of beamhub, and of what others build on it: a real service, without a hub.

    def test_mine(service: RunningService) -> None:
        beamtime = service.beamtime()
        ada = service.client("ada")
        assert ada.experiment(beamtime.experiment).role == "pi"

This module is a pytest plugin: installing beamhub is enough.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth import IdentityProvider, User
from tornado.web import RequestHandler
from traitlets import Dict

from beamhub.client import ApiError, Client, Unreachable
from beamhub.ports import free_ports
from beamhub.schemas import Dataset, LicenceCreate, Role

# a plugin that this one imports: pytest wants to know before, however beamhub was installed
pytest.register_assert_rewrite("beamhub.testing_stores")

from beamhub.testing_stores import run_database  # noqa: E402

pytest_plugins = ("beamhub.testing_stores", "beamhub.testing_slurm")

BASE_URL = "/services/beamhub/"
COOKIE = "beamhub-testing"
# ada leads experiments, ben collaborates, sam is staff, eve belongs nowhere, operator is the facility
PEOPLE: Mapping[str, Mapping[str, Any]] = {
    "ada": {"kind": "user", "admin": False},
    "ben": {"kind": "user", "admin": False},
    "sam": {"kind": "user", "admin": False},
    "eve": {"kind": "user", "admin": False},
    "operator": {"kind": "service", "admin": False},
}
TEMPLATE = "echo"  # a template that every service of these tests has
LISTENING = "beamhub: experiments in"  # what a process of the service logs when it takes requests
START = 150.0  # seconds; a healthy service takes two, on a busy machine many more


class _KnownUser(User):
    hub_user: Mapping[str, Any]


class TokenIdentityProvider(IdentityProvider):
    """Knows people by fixed tokens, as JupyterHub's does by asking the hub: a token in the header
    `Authorization: token …` or, as a browser has it, in a cookie."""

    users = Dict(help="token -> the hub's model of the user: name, kind, admin").tag(config=True)
    token = ""
    auth_enabled = True
    login_available = True

    def get_user(self, handler: RequestHandler) -> User | None:
        scheme, _, token = handler.request.headers.get("Authorization", "").partition(" ")
        known = self.users.get(token.strip()) if scheme.lower() in ("token", "bearer") else None
        if known is not None:
            handler._token_authenticated = True  # type: ignore[attr-defined]
        else:
            known = self.users.get(handler.get_cookie(COOKIE) or "")
        if known is None:
            return None
        user = _KnownUser(username=known["name"])
        user.hub_user = known
        return user


@dataclass(frozen=True)
class Beamtime:
    """An instrument with a running experiment: its PI is ada, its staff sam."""

    instrument: str
    experiment: str
    agent_token: str


@dataclass
class RunningService:
    """The service in a process of its own, on a loopback port, with SQLite in a temporary folder."""

    folder: Path
    port: int
    tokens: dict[str, str]
    cpus: int = 2
    settings: dict[str, Any] = field(default_factory=dict)  # more traits of BeamhubApp
    process: subprocess.Popen[bytes] | None = None
    _ingests: list[Ingest] = field(default_factory=list)
    _clients: dict[str, Client] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.url}{BASE_URL}api/v1/"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text(errors="replace")

    def client(self, name: str) -> Client:
        """A client of somebody of PEOPLE; closed with the service."""
        return self._client(self.tokens[name], instrument=False)

    def agent(self, beamtime: Beamtime) -> Client:
        """A client of an instrument's agent; closed with the service."""
        return self._client(beamtime.agent_token, instrument=True)

    def _client(self, token: str, *, instrument: bool) -> Client:
        if token not in self._clients:
            self._clients[token] = Client(self.url, token, instrument=instrument)
        return self._clients[token]

    def beamtime(self, *, members: Mapping[str, Role] | None = None) -> Beamtime:
        """A new instrument and its active experiment."""
        instrument = f"mx-{next(self._numbers)}"
        operator, sam = self.client("operator"), self.client("sam")
        operator.create_instrument(instrument, f"Beamline {instrument}", staff=["sam"])
        experiment = sam.create_experiment(instrument, "Lysozyme", pi="ada").id
        for user, role in (members or {}).items():
            sam.add_member(experiment, user, role)  # type: ignore[arg-type]
        sam.activate(instrument, experiment)
        token = sam.new_instrument_token(instrument).token
        return Beamtime(instrument, experiment, token)

    def dataset(self, beamtime: Beamtime, *, name: str = "lyso", frames: int = 4) -> Dataset:
        """A complete rotation dataset of small frames, that the instrument's agent has sent."""
        folder = self.folder / beamtime.instrument
        folder.mkdir(exist_ok=True)
        for path in write_dataset(folder, name, frames=frames):
            self.agent(beamtime).upload(path)
        found = self.client("ada").datasets(beamtime.experiment)
        return next(dataset for dataset in found if dataset.name == name)

    def licence(self, beamtime: Beamtime, cpu_hours: float = 100.0) -> str:
        """The id of a new lab licence for the beamtime's instrument."""
        id_ = f"lab-{beamtime.instrument}"
        self.client("operator").create_licence(
            LicenceCreate(
                id=id_, title="Lab", kind="lab", instruments=[beamtime.instrument], cpu_hours=cpu_hours
            )
        )
        return id_

    # --- its process ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until it answers."""
        (self.folder / "empty").mkdir(parents=True, exist_ok=True)
        write_template(self.folder / "templates")
        self.process = self.spawn("service", self.port, **self.settings)
        deadline = time.monotonic() + START
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start; its log:\n{self.log}")
            time.sleep(0.02)

    def spawn(self, name: str, port: int, **settings: Any) -> subprocess.Popen[bytes]:
        """A process of this service that listens on `port`, with these traits of BeamhubApp."""
        config = {
            "ServerApp": {
                "ip": "127.0.0.1",
                "port": port,
                "port_retries": 0,
                "base_url": BASE_URL,
                "root_dir": str(self.folder / "empty"),
                "open_browser": False,
                "allow_root": True,
                "answer_yes": True,
                "terminals_enabled": False,
                "jpserver_extensions": {"beamhub": True},
                "reraise_server_extension_failures": True,
                "identity_provider_class": "beamhub.testing.TokenIdentityProvider",
                "authorizer_class": "beamhub.app.Closed",
            },
            "TokenIdentityProvider": {
                "users": {self.tokens[name]: {"name": name, **model} for name, model in PEOPLE.items()}
            },
            "BeamhubApp": {
                "data_dir": str(self.data_dir),
                "cpus": self.cpus,
                "warm": False,  # most tests are over before it would help
                "templates": [str(self.folder / "templates")],
                **settings,
            },
        }
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(config))
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {
            "HOME": str(self.folder),
            "JUPYTER_NO_CONFIG": "1",
            "TMPDIR": str(temporary),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            **({"MALLOC_ARENA_MAX": "2"} if "ingest" in settings else {}),
        }
        for variable in (
            "BEAMHUB_DATA_DIR",
            "BEAMHUB_DATABASE_URL",
            "BEAMHUB_STATE_DIR",
            "COVERAGE_PROCESS_START",
        ):
            environment.pop(variable, None)
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyter_server", f"--config={path}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
            )

    def _answers(self) -> bool:
        try:
            self.client("operator").me()
        except Unreachable:
            return False
        except ApiError as error:
            raise RuntimeError(f"the service does not work ({error}); its log:\n{self.log}") from error
        return True

    def kill(self) -> None:
        """End it without any warning, as a crash or a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as an operator would; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=START)

    def restart(self) -> None:
        self.stop()
        self.start()

    def ingest(self, port: int | None = None) -> Ingest:
        """One more process that takes uploads, on a port of its own or on that of others; ended with the
        service."""
        ingest = Ingest(self, f"ingest-{len(self._ingests) + 1}", port or free_port())
        self._ingests.append(ingest)
        ingest.start()
        return ingest

    def another(self) -> Ingest:
        """One more process that is the service, on the same database and data; ended with the service."""
        another = Ingest(self, f"service-{len(self._ingests) + 2}", free_port(), whole=True)
        self._ingests.append(another)
        another.start()
        return another

    def end(self) -> None:
        """Stop it if it runs, and whatever jobs it has left behind."""
        for client in self._clients.values():
            client.close()
        try:
            for ingest in self._ingests:
                ingest.end()
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)  # it may have been stopped by a test that failed
                self.stop()
        finally:
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)


@dataclass
class Ingest:
    """A process beside the service: one that takes uploads, or does the `whole` of what the service does."""

    service: RunningService
    name: str
    port: int
    whole: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.url}{BASE_URL}api/v1/"

    @property
    def log(self) -> str:
        return (self.service.folder / f"{self.name}.log").read_text(errors="replace")

    def client(self, name: str) -> Client:
        """A client of this process; to be closed."""
        return Client(self.url, self.service.tokens[name])

    def start(self) -> None:
        """Start, and wait until it listens."""
        listening = self.log.count(LISTENING) if self.process else 0
        settings = {} if self.whole else {"ingest": f"127.0.0.1:{self.port}"}
        port = self.port if self.whole else 0
        self.process = self.service.spawn(self.name, port, **self.service.settings, **settings)
        deadline = time.monotonic() + START
        while self.log.count(LISTENING) == listening:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start; its log:\n{self.log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it without any warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Stop it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)  # it may have been stopped by a test that failed
            self.process.wait(timeout=START)


def write_dataset(folder: Path, name: str, *, frames: int = 4, per_file: int = 2) -> list[Path]:
    """A rotation dataset as DECTRIS's filewriter writes it, of frames of 16 x 20 pixels: frame n (from 1)
    has n counts everywhere, and its first pixel is masked. Returns the master's path, then those of the data
    files."""
    import h5py
    import numpy as np

    master = folder / f"{name}_master.h5"
    paths = []
    with h5py.File(master, "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector["detectorSpecific/nimages"] = frames
        detector["detectorSpecific/ntrigger"] = 1
        detector["detectorSpecific/x_pixels_in_detector"] = 20
        detector["detectorSpecific/y_pixels_in_detector"] = 16
        mask = np.zeros((16, 20), np.uint32)
        mask[0, 0] = 1
        detector["detectorSpecific/pixel_mask"] = mask
        detector["pixel_mask"] = mask
        detector["bit_depth_image"] = 16
        detector["detector_distance"] = 0.2
        detector["detector_distance"].attrs["units"] = "m"
        file["entry/instrument/beam/incident_wavelength"] = 1.0
        file["entry/instrument/beam/incident_wavelength"].attrs["units"] = "angstrom"
        file["entry/sample/goniometer/omega"] = np.arange(frames) * 0.1
        file["entry/sample/goniometer/omega"].attrs["units"] = "degree"
        data = file.create_group("entry/data")
        for number, first in enumerate(range(0, frames, per_file), 1):
            path = folder / f"{name}_data_{number:06d}.h5"
            data[f"data_{number:06d}"] = h5py.ExternalLink(path.name, "/entry/data/data")
            counts = np.arange(first, min(first + per_file, frames)) + 1
            images = np.broadcast_to(counts[:, None, None], (len(counts), 16, 20)).astype(np.uint16)
            with h5py.File(path, "w") as part:
                part.create_dataset("entry/data/data", data=images, chunks=(1, 16, 20))
            paths.append(path)
    return [master, *paths]


def write_template(folder: Path) -> Path:
    """Writes the template `TEMPLATE` into a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{TEMPLATE}.ipynb"
    path.write_text(json.dumps(_template()))
    return path


def _template() -> dict[str, Any]:
    """A template notebook that reports and keeps what it is told."""

    def cell(source: str, *tags: str) -> dict[str, Any]:
        return {
            "cell_type": "code",
            "id": f"cell-{len(source)}",
            "execution_count": None,
            "metadata": {"tags": list(tags)},
            "outputs": [],
            "source": source,
        }

    word = {"type": "string", "title": "Word", "description": "what to say", "default": "hello"}
    work = """from pathlib import Path
from IPython.display import HTML, display
from beamhub import report
print(word)
display(HTML(word))
for n in range(3):
    report.series("counts", units={"frame": "", "value": "counts"}, frame=n, value=n * n)
report.progress(0.5, "half way")
report.metric("length", len(word))
Path("said.txt").write_text(word)
report.artifact("said.txt", "What was said")
assert word != "fail", "it was told to fail"
"""
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "beamhub": {
                "title": "Echo",
                "technique": "testing",
                "description": "Says a word.",
                "parameters": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"word": word},
                },
                "metrics": {"length": {"title": "Length"}},
            },
        },
        "cells": [cell('data = ""\ncpus = 1\nword = "hello"', "parameters"), cell(work)],
    }


def free_port() -> int:
    """A loopback port that nobody uses, nor will be told by another process of tests."""
    [port] = free_ports(1)
    return port


@contextlib.contextmanager
def running_service(folder: Path, **settings: Any) -> Iterator[RunningService]:
    """A service in `folder`; `settings` are traits of `beamhub.app.BeamhubApp`."""
    tokens = {name: secrets.token_hex(16) for name in PEOPLE}
    service = RunningService(folder, free_port(), tokens, settings=settings)
    try:
        service.start()
        yield service
    finally:
        service.end()


@pytest.fixture(scope="session")
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """One service for all tests: each makes a `beamtime` of its own, and none stops it."""
    folder = tmp_path_factory.mktemp("service")
    with run_database(request, folder) as url, running_service(folder, database_url=url) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path, database_url: str) -> Iterator[RunningService]:
    """A service that a test may kill and start again."""
    with running_service(tmp_path / "service", database_url=database_url) as running:
        yield running
