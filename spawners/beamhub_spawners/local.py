"""JupyterLab sessions as sandboxed processes on the hub's own machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from beamhub import sandbox
from beamhub.client import ApiError, Client, Unreachable
from beamhub.folders import INCOMING
from beamhub.schemas import Experiment, ExperimentState
from jupyterhub.spawner import LocalProcessSpawner
from tornado.web import HTTPError
from traitlets import Bool, Unicode, default

OPEN_SESSION = "session.open"  # as beamhub.access names it


class LocalSandboxSpawner(LocalProcessSpawner):  # type: ignore[misc]  # jupyterhub has no types
    """One session = one named server = one experiment.

    Whether somebody may open it is the service's decision, asked with the session's own token; who loses the
    experiment, or whose experiment is closed, loses the running session at the next poll. The session sees
    its experiment's folder (read-only, but for `shared`), a private home, and nothing else of what beamhub
    keeps.

    The users needn't have accounts on the machine: all sessions run as the hub's own user, kept apart by
    mounts.
    """

    service_url = Unicode(help="Where the beamhub service answers.", config=True)
    homes = Unicode(help="Folder of the sessions' private homes.", config=True)
    sandboxed = Bool(
        True,
        help="Refuse sessions where bubblewrap doesn't work. False: start them unprotected; then who opens "
        "one can read whatever the hub's own user can, other experiments included.",
        config=True,
    )

    @default("server_token_scopes")
    def _server_token_scopes(self) -> list[str]:
        # the last one lets the session's notebooks and terminals talk to the service, as their user
        return ["users:activity!user", "access:servers!server", "access:services!service=beamhub"]

    @default("default_url")
    def _default_url(self) -> str:
        return "/lab"

    @default("http_timeout")
    def _http_timeout(self) -> int:
        return 90  # seconds: a busy machine takes its time to import JupyterLab

    @default("poll_interval")
    def _poll_interval(self) -> int:
        return 10

    async def start(self) -> tuple[str, int]:
        """Start the session; raises HTTPError, with a sentence for the user, if that may not or cannot be."""
        if not self.name:
            raise _refusal(
                403, "A session belongs to an experiment. Open it from that experiment's page in the Cockpit."
            )
        experiment = await self._experiment()
        folder = Path(experiment.folder)
        self.home = Path(self.homes) / quote(self.user.name, safe="@") / experiment.id
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.notebook_dir = str(folder)
        self.cmd = await self._command(folder)
        address: tuple[str, int] = await super().start()
        return address

    async def poll_and_notify(self) -> int | None:
        """Look after the running session: it ends when its user has lost the experiment, or it is closed."""
        try:
            await self._experiment()
        except HTTPError as refused:
            if refused.status_code < 500:
                self.log.warning("Ending session %s: %s", self._log_name, refused.log_message)
                await self.stop(now=True)
        status: int | None = await super().poll_and_notify()
        return status

    async def _experiment(self) -> Experiment:
        """The session's experiment, as its user sees it; HTTPError if they may have no session there."""
        try:
            experiment = await asyncio.to_thread(self._ask)
        except ApiError as error:
            if error.status in (403, 404):
                raise self._not_a_member() from error
            raise _refusal(
                502, f"The beamhub service refused to say who belongs to {self.name}: {error}"
            ) from error
        except Unreachable as error:
            raise _refusal(
                503, "The beamhub service doesn't answer just now. Try again in a minute."
            ) from error
        if OPEN_SESSION not in experiment.actions:
            raise self._is_closed() if experiment.state is ExperimentState.CLOSED else self._not_a_member()
        return experiment

    def _ask(self) -> Experiment:
        with Client(self.service_url, self.api_token) as client:
            return client.experiment(self.name)

    def _not_a_member(self) -> HTTPError:
        return _refusal(
            403, f"You have no session in {self.name}. Ask its principal investigator to add you as a member."
        )

    def _is_closed(self) -> HTTPError:
        return _refusal(
            403,
            f"{self.name} is closed: its Cockpit has everything to read and to download, and nothing in it "
            "changes. The staff of its instrument can reopen it.",
        )

    async def _command(self, folder: Path) -> list[str]:
        config = files("beamhub_spawners") / "session.py"
        argv = [sys.executable, "-m", "jupyterhub.singleuser", f"--config={config}"]
        broken = await asyncio.to_thread(sandbox.works)
        if not broken:
            return sandbox.command(
                argv,
                read_only=[folder],
                read_write=[folder / "shared", self.home],
                hide=[folder / INCOMING],  # what has not been verified is nobody's data yet
                network=True,  # the session answers the hub's proxy, and asks the hub who its visitor is
                cwd=folder / "shared",
            )
        if self.sandboxed:
            raise _refusal(501, f"Sessions can't be kept apart on this machine: {broken}")
        self.log.warning("Session %s isn't kept apart from others' data: %s", self._log_name, broken)
        return argv

    async def _signal(self, sig: int) -> bool:
        # A polite signal is for Jupyter itself, which bwrap wouldn't pass on; the last one is for
        # everything there is
        try:
            if sig == signal.SIGKILL:
                os.killpg(self.pid, sig)
            else:
                os.kill(_inside(self.pid), sig)
        except ProcessLookupError:
            return False
        return True

    def make_preexec_fn(self, name: str) -> None:
        """The session stays the hub's own user: there is nothing to do between fork and exec."""

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        """What a shell, and beamhub's client, expect in their environment."""
        return {
            **env,
            "USER": self.user.name,
            "HOME": str(self.home),
            "SHELL": "/bin/bash",
            "JUPYTER_CONFIG_PATH": str(files("beamhub_spawners")),  # labconfig/: JupyterLab's settings
            "BEAMHUB_URL": self.service_url,
            "BEAMHUB_TOKEN": self.api_token,
            "BEAMHUB_EXPERIMENT": self.name,
        }


def _inside(pid: int) -> int:
    """The process that bwrap `pid` runs, or `pid` where it isn't bwrap; ProcessLookupError if it's gone."""
    process = Path(f"/proc/{pid}")
    try:
        if process.joinpath("comm").read_text().strip() != "bwrap":
            return pid
        children = process.joinpath(f"task/{pid}/children").read_text().split()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    return _inside(int(children[0])) if children else pid


def _refusal(status: int, sentence: str) -> HTTPError:
    error = HTTPError(status, sentence)
    error.jupyterhub_message = sentence  # type: ignore[attr-defined]  # what the hub's page shows
    return error
