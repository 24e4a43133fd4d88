"""What the tests of the agent have in common."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beamhub.schemas import AgentStatus, File, Upload, UploadState
from beamhub.testing import Beamtime, RunningService

PATIENCE = 100.0  # seconds, of a slow machine
LARGE = 192  # MiB: some tenths of a second to send
SLOW = '"4 MB/s"'  # a limit with which that takes most of a minute


@dataclass
class RunningAgent:
    """`beamhub sync` in a process of its own, watching `data`."""

    folder: Path
    service: RunningService
    beamtime: Beamtime
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=lambda: {"settle": "0.2"})  # of [[watch]]
    upload: dict[str, str] = field(default_factory=lambda: {"parallel": "2"})
    tables: str = ""  # more of them
    environment: dict[str, str] = field(default_factory=dict)  # beyond the tests' own
    url: str = ""  # of the service, if not its own
    wrapper: list[str] = field(default_factory=list)  # a command that starts it
    journal: str = "journal.sqlite"

    def __post_init__(self) -> None:
        self.data.mkdir(parents=True)
        self.token(self.beamtime.agent_token)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def token(self, token: str) -> None:
        new = self.folder / "token.new"
        new.write_text(token)
        new.chmod(0o600)
        new.rename(self.folder / "token")

    def command(self, *options: str) -> list[str]:
        watch, upload = (
            "\n".join(f"{key} = {value}" for key, value in table.items())
            for table in (self.settings, self.upload)
        )
        (self.folder / "sync.toml").write_text(
            f'[service]\nurl = "{self.url or self.service.url}"\ntoken_file = "token"\n'
            f'[instrument]\nid = "{self.beamtime.instrument}"\n'
            f'[journal]\npath = "{self.journal}"\n[upload]\n{upload}\n'
            f'[[watch]]\npath = "data"\n{watch}\n{self.tables}'
        )
        return [sys.executable, "-m", "beamhub.cli", "sync", str(self.folder / "sync.toml"), *options]

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command()], stdout=log, stderr=log, env=os.environ | self.environment
            )

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=os.environ | self.environment,
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def hurry(self) -> None:
        """Lifts the limit, as `systemctl reload` does."""
        del self.upload["limit"]
        self.command()
        self.signal(signal.SIGHUP)

    def stop(self) -> int:
        assert self.process is not None
        self.signal(signal.SIGTERM)
        code = self.process.wait(timeout=PATIENCE)
        self.process = None
        return code

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    # --- what has become of it all ---

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert self.process is None or self.process.poll() is None, f"the agent has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"it did not happen; the agent's log:\n{self.log}"
            time.sleep(0.01)

    @property
    def status(self) -> AgentStatus | None:
        return self.service.client("sam").instrument(self.beamtime.instrument).agent

    def uploads(self, experiment: str | None = None) -> list[Upload]:
        return self.service.client("ada").uploads(experiment or self.beamtime.experiment)

    def files(self, experiment: str | None = None) -> dict[str, File]:
        files = self.service.client("ada").files(experiment or self.beamtime.experiment, "raw")
        return {file.path.removeprefix("raw/"): file for file in files if file.path.startswith("raw/")}

    def until_arrived(self, *names: str) -> None:
        def complete() -> set[str]:
            uploads = self.uploads()
            return {u.path.removeprefix("raw/") for u in uploads if u.state is UploadState.COMPLETE}

        self.until(lambda: set(names) <= complete())

    def until_halfway(self) -> Upload:
        """Waits until the service has a part of one file; with a limit, so that it is not over before it is
        seen."""
        assert "limit" in self.upload
        found: list[Upload] = []

        def halfway() -> bool:
            found[:] = [u for u in self.uploads() if u.state is UploadState.RECEIVING and u.offset > 0]
            return bool(found)

        self.until(halfway)
        return found[0]

    def assert_all_there_once(self, experiment: str | None = None) -> None:
        """Every file that was to be sent is published, byte for byte, in one version; and nothing else."""
        expected = {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.data.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        folder = self.service.data_dir / (experiment or self.beamtime.experiment)
        found = {
            str(path.relative_to(folder / "raw")): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / "raw").rglob("*")
            if path.is_file()
        }
        assert found == expected
        self.until(lambda: not list((folder / ".incoming").iterdir()))  # the temporary name goes last
        complete = [u.path for u in self.uploads(experiment) if u.state is UploadState.COMPLETE]
        assert len(complete) == len(set(complete)) == len(expected)


def write_large(path: Path, mebibytes: int = LARGE) -> None:
    """A file of which each part is different, under its final name at once."""
    block = os.urandom(2**20)
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        for number in range(mebibytes):
            file.write(number.to_bytes(8, "big") + block[8:])
    hidden.rename(path)


def grown(agent: RunningAgent, mebibytes: int) -> Callable[[], bool]:
    """Whether so much of a growing file has come."""

    def enough() -> bool:
        return any(u.deferred and u.offset >= mebibytes * 2**20 for u in agent.uploads())

    return enough
