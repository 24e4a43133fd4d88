"""Beamtimes, their members and their files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from beamhub.client.wire import Wire, quoted, quoted_path
from beamhub.schemas import (
    Experiment,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    File,
    Finalisation,
    FinalisationState,
    FinaliseRequest,
    Member,
    MemberCreate,
    Role,
    Sponsor,
)


class Experiments(Wire):
    def experiments(
        self, *, instrument: str | None = None, state: ExperimentState | None = None, limit: int | None = None
    ) -> list[Experiment]:
        """What the caller may see, newest first."""
        return self._list(Experiment, "experiments", limit, instrument=instrument, state=state)

    def experiment(self, experiment: str) -> Experiment:
        return self._get(Experiment, f"experiments/{quoted(experiment)}")

    def create_experiment(self, instrument: str, title: str, pi: str) -> Experiment:
        body = ExperimentCreate(instrument=instrument, title=title, pi=pi)
        return self._send(Experiment, "POST", "experiments", body)

    def change_experiment(self, experiment: str, change: ExperimentChange) -> Experiment:
        return self._send(Experiment, "PATCH", f"experiments/{quoted(experiment)}", change)

    def finalise(self, experiment: str, *, force: bool = False, reason: str = "") -> Finalisation:
        """Begin to check that all raw data have arrived, and to sign off a manifest."""
        body = FinaliseRequest(force=force, reason=reason)
        return self._send(Finalisation, "POST", f"experiments/{quoted(experiment)}/finalise", body)

    def finalised(self, experiment: str, *, timeout: float = 86400.0) -> Finalisation:
        """The finalisation once it has come to its end; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        going = (FinalisationState.CHECKING, FinalisationState.HASHING)
        while (found := self.finalisation(experiment)).state in going:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{experiment} is still {found.state} after {timeout:g} s")
            time.sleep(0.25)
        return found

    def finalisation(self, experiment: str) -> Finalisation:
        """How far that is, and what speaks against it."""
        return self._get(Finalisation, f"experiments/{quoted(experiment)}/finalisation")

    def members(self, experiment: str) -> list[Member]:
        return self._list(Member, f"experiments/{quoted(experiment)}/members")

    def add_member(
        self,
        experiment: str,
        user: str,
        role: Literal[Role.PI, Role.COLLABORATOR, Role.VIEWER] = Role.COLLABORATOR,
    ) -> Member:
        body = MemberCreate(user=user, role=role)
        return self._send(Member, "POST", f"experiments/{quoted(experiment)}/members", body)

    def remove_member(self, experiment: str, user: str) -> None:
        self._call("DELETE", f"experiments/{quoted(experiment)}/members/{quoted(user)}")

    def sponsors(self, experiment: str, template: str | None = None) -> list[Sponsor]:
        """The licences that the caller's jobs in this experiment may be charged to."""
        return self._list(Sponsor, f"experiments/{quoted(experiment)}/sponsors", template=template)

    def files(self, experiment: str, prefix: str = "", limit: int | None = None) -> list[File]:
        return self._list(File, f"experiments/{quoted(experiment)}/files", limit, prefix=prefix)

    def file(self, experiment: str, path: str) -> bytes:
        """A file's content; `download` is for large ones."""
        return self._call("GET", f"experiments/{quoted(experiment)}/files/{quoted_path(path)}").content

    def download(self, experiment: str, path: str, to: Path) -> Path:
        """Stream a file of the experiment to the local path `to`."""
        return self._download(f"experiments/{quoted(experiment)}/files/{quoted_path(path)}", to)
