"""A whole facility for tests: `beamhub demo` on free ports, in a folder of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from beamhub.client import Client
from beamhub.ports import free_ports

from beamhub_hub.credentials import Credentials
from beamhub_hub.demo import BEAMHUB

READY = "Ctrl-C ends everything"
PATIENCE = 240.0  # seconds; a busy machine with two CPUs


class DemoFailed(Exception):  # noqa: N818 (reads as what happened)
    """The demo ended instead of becoming ready; the message is what it said."""


class RunningDemo:
    """A demo that a test has started.

    Args:
        state: its folder; one that an earlier demo left makes it go on from there.
        options: of `beamhub demo`, such as "--no-acquisition".
    """

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        [self.port] = free_ports(1)
        self.process = subprocess.Popen(
            [*BEAMHUB, "demo", f"--state={state}", f"--port={self.port}", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._clients: dict[str, Client] = {}
        self._detectors: list[subprocess.Popen[bytes]] = []
        self._lines: list[str] = []
        self._settled = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101  # for mypy: it is a pipe
        for line in self.process.stdout:
            self._lines.append(line)
            if READY in line:
                self._settled.set()
        self._settled.set()

    def ready(self) -> RunningDemo:
        """Wait until people can sign in; raises DemoFailed if that doesn't come."""
        in_time = self._settled.wait(PATIENCE)
        if not in_time or READY not in self.output:
            self.end()
            logs = "\n".join(
                path.read_text(errors="replace")[-3000:] for path in self.state.glob("logs/*.log")
            )
            raise DemoFailed(f"{self.output}\n{logs}")
        return self

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> Credentials:
        return Credentials.model_validate_json(Credentials.path(self.state).read_text())

    @property
    def experiment(self) -> Path:
        """The folder of the active experiment."""
        return self.state / "data" / self.credentials.experiment

    def client(self, user: str) -> Client:
        """The service, as one of the people; closed with the demo."""
        if user not in self._clients:
            self._clients[user] = Client(self.url, self.credentials.users[user].token)
        return self._clients[user]

    def operator(self) -> Client:
        """The service, as those who run it."""
        return Client(self.url, json.loads((self.state / "secrets.json").read_text())["operator"])

    def hub(self, user: str) -> httpx.Client:
        """The hub's REST API, and all else below the hub's address, as one of the people."""
        token = self.credentials.users[user].token
        return httpx.Client(base_url=self.url, headers={"Authorization": f"token {token}"}, timeout=PATIENCE)

    @contextmanager
    def browser(self, user: str) -> Iterator[httpx.Client]:
        """A browser in which one of the people has signed in, through the sign-in form."""
        with httpx.Client(base_url=self.url, follow_redirects=True, timeout=PATIENCE) as browser:
            browser.get("/hub/login")
            form = {
                "username": user,
                "password": self.credentials.users[user].password,
                "_xsrf": browser.cookies.get("_xsrf", path="/hub/") or "",
            }
            answer = browser.post("/hub/login", data=form, follow_redirects=False)
            if answer.status_code != 302:
                raise DemoFailed(f"{user} couldn't sign in: {answer.status_code}")
            yield browser

    def acquire(self, *options: str) -> subprocess.Popen[bytes]:
        """Let the virtual detector write one more dataset; options as of `beamhub simulate`. It ends with the
        demo if it hasn't ended before.
        """
        command = [*BEAMHUB, "simulate", f"--folder={self.state / 'detector'}", "--json", *options]
        detector = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._detectors.append(detector)
        return detector

    def end(self, how: int = signal.SIGINT) -> int:
        """Send the signal and wait for the end; the exit code."""
        for detector in self._detectors:
            detector.terminate()
            detector.send_signal(signal.SIGCONT)  # it may have been stopped by a test that failed
            detector.wait(PATIENCE)
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; the exit code. Raises TimeoutExpired after making an end that doesn't come."""
        for client in self._clients.values():
            client.close()
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()  # its guards end all else
            self.process.wait()
            self._reader.join()
        assert self.process.stdout is not None  # noqa: S101  # for mypy: it is a pipe
        self.process.stdout.close()
        return code
