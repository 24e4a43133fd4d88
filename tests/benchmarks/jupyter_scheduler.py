"""The peer of our jobs: jupyter-scheduler, in a Jupyter Server of its own.

It also has an environment of its own, `.bench/jupyter-scheduler`: its wheel enables a server extension
wherever it is installed. That is made once, from the lock file beside this, and again when the lock file has
changed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from beamhub.ports import free_ports

LOCK = Path(__file__).with_name("jupyter-scheduler.lock")
ENVIRONMENT = Path(".bench/jupyter-scheduler")
PATIENCE = 120  # seconds until the server answers, and until a job ends
POLL = 0.02  # seconds
ENDS = ("COMPLETED", "FAILED")  # a job that has not begun yet is called "STOPPED"


@dataclass(frozen=True)
class Scheduler:
    """A Jupyter Server that runs jobs."""

    http: httpx.Client
    runtime: str  # what jobs run in

    def seconds(self, notebook: str) -> float:
        """From asking for a job until it is known to have ended.

        Args:
            notebook: path in the server's folder. It has a parameter `n`.
        """
        began = time.perf_counter()
        wish = {
            "name": "try it",
            "input_uri": notebook,
            "runtime_environment_name": self.runtime,
            "output_formats": ["ipynb"],
            "parameters": {"n": "1"},
        }
        asked = self.http.post("scheduler/jobs", json=wish).raise_for_status().json()
        while (job := self._get(f"scheduler/jobs/{asked['job_id']}"))["status"] not in ENDS:
            if time.perf_counter() - began > PATIENCE:
                break
            time.sleep(POLL)
        if job["status"] != "COMPLETED":
            raise SystemExit(f"a job of jupyter-scheduler {job['status']}: {job['status_message']}")
        return time.perf_counter() - began

    def _get(self, path: str) -> dict[str, str]:
        found: dict[str, str] = self.http.get(path).raise_for_status().json()
        return found


@contextmanager
def scheduler(folder: Path) -> Iterator[Scheduler]:
    """A server for the notebooks in `folder`, on loopback, that ends with all that it has started."""
    python = _environment()
    state = folder / ".jupyter-scheduler"
    state.mkdir()
    [port], token = free_ports(1), secrets.token_hex(16)
    command = [python, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    environment = {
        "PATH": os.pathsep.join((str(Path(python).parent), os.environ["PATH"])),
        "HOME": str(state),
        "LANG": "C.UTF-8",
        "JUPYTER_TOKEN": token,
    }
    with (state / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url, headers = f"http://127.0.0.1:{port}/", {"Authorization": f"token {token}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=PATIENCE, trust_env=False) as http:
            runtime = _first_answer(http, server, state / "server.log")
            yield Scheduler(http, runtime)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _first_answer(http: httpx.Client, server: subprocess.Popen[bytes], log: Path) -> str:
    """The name of the environment that jobs run in, as soon as the server tells it."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            found = http.get("scheduler/runtime_environments").raise_for_status().json()
            return str(found[0]["name"])
        except httpx.TransportError:
            time.sleep(POLL)
    raise SystemExit(f"jupyter-scheduler's server did not start: {log.read_text()[-2000:]}")


def _environment() -> str:
    """Its Python."""
    folder = ENVIRONMENT.absolute()
    python, made_of = folder / "bin" / "python", folder / "made-of"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not made_of.exists() or made_of.read_text() != digest:
        print("installing jupyter-scheduler, once, for comparison")  # noqa: T201
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--require-hashes", "-r", str(LOCK)], check=True)
        made_of.write_text(digest)
    return str(python)
