"""Rows that tests begin with."""

from __future__ import annotations

from typing import Any

from beamhub.schemas import DatasetKind, Job, Profile
from beamhub.store import Transaction


def rotation(tx: Transaction, experiment: str, name: str, *, frames: int = 10) -> int:
    """A rotation dataset that has just begun; its id."""
    return tx.datasets.create(
        experiment=experiment,
        name=name,
        path=f"raw/{name}_master.h5",
        format="nxmx",
        open_ended=False,
        kind=DatasetKind.ROTATION,
        frames_announced=frames,
        shape=(10, 10),
        metadata={},
        files=[],
    ).id


def job(tx: Transaction, experiment: str, sponsor: str, walltime: int = 1, **more: Any) -> Job:
    """One of ada's on one CPU, for so many seconds at most, that waits for credit."""
    profile = Profile(name="cpu-1", title="1 CPU", cpus=1, memory=1, walltime=walltime)
    usual = {"template": "t", "template_version": "v", "title": "T", "parameters": {}, "inputs": []}
    values = usual | {"profile": profile, "sponsor": sponsor, "launched_by": "ada"} | more
    return tx.jobs.create(experiment=experiment, **values)
