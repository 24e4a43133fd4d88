"""Rows that tests begin with."""

from __future__ import annotations

from beamhub.schemas import DatasetKind
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
