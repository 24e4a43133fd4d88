"""From events to jobs: how fast rules are matched, and the jobs that they want are made."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beamhub.catalogue import Catalogue
from beamhub.engine import Engine
from beamhub.events import Live, emit
from beamhub.jobs import Jobs
from beamhub.plans import profiles
from beamhub.schemas import (
    DatasetKind,
    ExperimentState,
    InstrumentCreate,
    LicenceCreate,
    Quantity,
    Role,
    TriggerCreate,
)
from beamhub.store import Store, Transaction
from beamhub.testing import TEMPLATE, write_template

EVENTS, RULES = 10_000, 50
TOGETHER = 500  # events that are written in one transaction


def rows() -> Iterator[tuple[Any, ...]]:
    """What it takes to read the log, match the rules and queue the jobs, credit held for each."""
    with tempfile.TemporaryDirectory(prefix="beamhub-bench-") as name:
        folder = Path(name)
        store = Store(f"sqlite:///{folder / 'beamhub.db'}")
        store.migrate()
        write_template(folder / "templates")
        catalogue = Catalogue([folder / "templates"])
        jobs = Jobs(store, catalogue, profiles(2), folder / "data")
        engine = Engine(store, Live(), jobs, {}, folder / "data")
        experiment = store.write_sync(_found)
        for first in range(0, EVENTS, TOGETHER):
            store.write_sync(lambda tx, first=first: _measure(tx, experiment, first))  # type: ignore[misc]
        began, used = time.perf_counter(), time.process_time()
        asyncio.run(engine.dispatch())
        took, used = time.perf_counter() - began, time.process_time() - used
        made = store.read_sync(lambda tx: tx.jobs.list(only=None, after=None, limit=1)).items[0].id
        store.close()
        if made != EVENTS:
            raise SystemExit(f"{made} jobs were made of {EVENTS} events")
    what = f"{EVENTS:,} events × {RULES} rules matched and {EVENTS:,} jobs queued, SQLite"
    yield what, took, "s", 20.0
    yield f"{what}: CPU time", used, "s"


def _found(tx: Transaction) -> str:
    """An instrument with an experiment and its rules, of which one is for each dataset."""
    tx.instruments.create(InstrumentCreate(id="sim-mx", title="MX", staff=["sam"]))
    experiment = tx.experiments.create("sim-mx", "Lysozyme", "ada")
    tx.experiments.change(experiment, state=ExperimentState.RUNNING)
    tx.members.add(experiment, "ada", Role.PI, "sam")
    tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
    tx.licences.grant("lab", 10**12)
    for number in range(RULES):
        rule = {
            "title": f"Rule {number}",
            "event": "dataset.complete",
            "pattern": f"s{number:02d}*" if number % 2 else "*",
            "condition": {"expression": f"frames > 5 and part == {number} and kind == 'rotation'"},
            "template": TEMPLATE,
            "parameters": {"word": {"expression": "name + ' at ' + kind"}},
            "profile": "cpu-1",
            "sponsor": "lab",
        }
        tx.triggers.create("sim-mx", None, TriggerCreate.model_validate(rule), author="sam")
    return experiment


def _measure(tx: Transaction, experiment: str, first: int) -> None:
    for number in range(first, first + TOGETHER):
        dataset = tx.datasets.create(
            experiment=experiment,
            name=f"s{number % RULES:02d}-{number}",
            path=f"raw/s{number}_master.h5",
            format="nxmx",
            open_ended=False,
            kind=DatasetKind.ROTATION,
            frames_announced=10,
            shape=(10, 10),
            metadata={
                "wavelength": Quantity(value=0.98, unit="angstrom"),
                "part": Quantity(value=number % RULES),
            },
            files=[],
        )
        tx.datasets.change(dataset.id, frames_readable=10)
        emit(
            tx,
            "dataset.complete",
            actor="sim-mx",
            instrument="sim-mx",
            experiment=experiment,
            subject=str(dataset.id),
            data={"name": dataset.name, "frames_readable": 10},
        )
