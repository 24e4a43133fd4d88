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
import socket
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
from beamhub.schemas import Role

pytest_plugins = ("beamhub.testing_stores",)  # postgresql_url, store

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
START = 30.0  # seconds; a healthy service takes two


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

    # --- its process ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start, and wait until it answers."""
        config = {
            "ServerApp": {
                "ip": "127.0.0.1",
                "port": self.port,
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
            "BeamhubApp": {"data_dir": str(self.data_dir), "cpus": self.cpus, **self.settings},
        }
        (self.folder / "empty").mkdir(parents=True, exist_ok=True)
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        environment = os.environ | {
            "HOME": str(self.folder),
            "JUPYTER_NO_CONFIG": "1",
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
        }
        for name in (
            "BEAMHUB_DATA_DIR",
            "BEAMHUB_DATABASE_URL",
            "BEAMHUB_STATE_DIR",
            "COVERAGE_PROCESS_START",
        ):
            environment.pop(name, None)
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyter_server", f"--config={path}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
            )
        deadline = time.monotonic() + START
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the service did not start; its log:\n{self.log}")
            time.sleep(0.02)

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

    def end(self) -> None:
        """Stop it if it runs, and whatever jobs it has left behind."""
        for client in self._clients.values():
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)


def free_port() -> int:
    """A loopback port that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests: each makes a `beamtime` of its own, and none stops it."""
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[RunningService]:
    """A service that a test may kill and start again."""
    with running_service(tmp_path / "service") as running:
        yield running
