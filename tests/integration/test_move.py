"""A dataset that went into the wrong experiment goes into the right one, whole, at whatever moment a kill
comes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.errors import BeamhubError, Conflict, Forbidden, NotFound
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.moves import Moves
from beamhub.schemas import (
    Dataset,
    ExperimentCreate,
    InstrumentChange,
    InstrumentCreate,
    Upload,
    UploadState,
)
from beamhub.store import Store
from beamhub.testing import TEMPLATE, RunningService, write_dataset
from beamhub.uploads import Uploads

from tests.victims import victims

OPERATOR = Principal("root", "user", operator=True)
SAM, ADA, BEN = (Principal(name, "user") for name in ("sam", "ada", "ben"))
AGENT = Principal("instrument:mx", "instrument", instrument="mx")
FILES = ("lyso_data_000001.h5", "lyso_data_000002.h5", "lyso_master.h5")

# Moves a dataset, or goes on with it, and kills itself at the n-th change of the disk or the database.
VICTIM = """
import os, signal, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.moves import Moves
from beamhub.store import Store

folder, todo, left, target = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

store = Store(f"sqlite:///{folder}/beamhub.db")
store.on_commit(step)
sys.addaudithook(lambda event, _: step() if event in ("os.link", "os.remove", "os.mkdir") else None)
moves = Moves(store, folder / "data")
if todo == "recover":
    moves._recover()
else:
    moves._move(Principal("sam", "user"), 1, target, "wrong sample")
"""


@dataclass
class Site:
    """One instrument with Ada's experiment, which has a dataset, and Ben's."""

    root: Path
    store: Store
    moves: Moves
    uploads: Uploads
    datasets: Datasets
    experiments: Experiments
    ada: str
    ben: str

    async def activate(self, experiment: str) -> None:
        await self.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment))

    async def send(self, folder: Path, name: str = "lyso", frames: int = 4) -> Dataset:
        await asyncio.to_thread(folder.mkdir)
        for path in write_dataset(folder, name, frames=frames):
            content = path.read_bytes()

            async def chunks(content: bytes = content) -> AsyncIterator[bytes]:
                yield content

            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            upload = await self.uploads.create(AGENT, f"run/{path.name}", len(content), digest)
            if upload.state is UploadState.RECEIVING:
                await self.uploads.append(AGENT, upload.id, 0, Chunks(chunks()))
        active = self.store.read_sync(lambda tx: tx.instruments.get("mx"))
        assert active
        return (await self.datasets.list(SAM, active.active_experiment or "")).items[0]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    root = tmp_path / "site"
    (root / "data").mkdir(parents=True)
    store, live = Store(f"sqlite:///{root}/beamhub.db"), Live()
    store.migrate()
    experiments = Experiments(store, root / "data")
    for id_ in ("mx", "em"):
        await experiments.create_instrument(OPERATOR, InstrumentCreate(id=id_, title=id_, staff=["sam"]))
    ids = []
    for pi in ("ada", "ben"):
        request = ExperimentCreate(instrument="mx", title=pi, pi=pi)
        ids.append((await experiments.create(SAM, request)).id)
    inspector = Inspector()
    datasets = Datasets(store, root / "data", inspector)
    uploads = Uploads(store, live, root / "data", datasets.examine)
    site = Site(root, store, Moves(store, root / "data"), uploads, datasets, experiments, *ids)
    await site.activate(site.ada)
    yield site
    await uploads.close()
    await inspector.close()
    store.close()


def files(root: Path) -> set[str]:
    data = root / "data"
    return {str(path.relative_to(data)) for path in data.rglob("*.h5")}


async def test_a_dataset_moves_with_all_that_belongs_to_it(site: Site, tmp_path: Path) -> None:
    dataset = await site.send(tmp_path / "run")
    moved = await site.moves.move(SAM, dataset.id, site.ben, "wrong sample")
    assert (moved.experiment, moved.path, moved.name) == (site.ben, "raw/run/lyso_master.h5", "lyso")
    assert files(site.root) == {f"{site.ben}/raw/run/{name}" for name in FILES}
    assert (await site.datasets.frame(BEN, dataset.id, 4))[5, 5] == 4
    with pytest.raises(NotFound):
        await site.datasets.get(ADA, dataset.id)
    assert (await site.uploads.list(ADA, site.ada)).items == []
    assert {one.path for one in (await site.uploads.list(BEN, site.ben)).items} == {
        f"raw/run/{name}" for name in FILES
    }
    events = site.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    told = [(e.experiment, e.actor, e.data) for e in events if e.kind == "dataset.moved"]
    data = {"name": "lyso", "from": site.ada, "to": site.ben, "files": 3, "reason": "wrong sample"}
    assert told == [(site.ada, "sam", data), (site.ben, "sam", data)]
    assert not site.store.read_sync(lambda tx: tx.moves.all())

    back = await site.moves.move(SAM, dataset.id, site.ada, "it was right")
    assert (back.experiment, back.path) == (site.ada, "raw/run/lyso_master.h5")


async def test_names_that_are_taken_become_a_later_version_together(site: Site, tmp_path: Path) -> None:
    dataset = await site.send(tmp_path / "first")
    await site.activate(site.ben)
    other = await site.send(tmp_path / "second", frames=6)
    moved = await site.moves.move(SAM, dataset.id, site.ben, "wrong sample")
    assert (moved.path, moved.name) == ("raw/run/version-2/lyso_master.h5", "lyso.v2")
    for number in (1, 4):
        assert (await site.datasets.frame(BEN, dataset.id, number))[5, 5] == number
    assert (await site.datasets.frame(BEN, other.id, 6))[5, 5] == 6
    back = await site.moves.move(SAM, dataset.id, site.ada, "it was right")
    assert (back.path, back.name) == ("raw/run/lyso_master.h5", "lyso")
    assert len(files(site.root)) == 3 + 4


async def test_a_move_looks_at_the_disk_while_others_write(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes to its names meanwhile is kept."""
    dataset = await site.send(tmp_path / "run")
    comes = Upload(
        id="0123",
        experiment=site.ben,
        instrument="mx",
        path=dataset.path,
        size=1,
        offset=1,
        digest=None,
        version=1,
        state=UploadState.COMPLETE,
        error="",
        created=datetime.now(UTC),
        created_by="ben",
        ended=datetime.now(UTC),
    )
    really = os.path.lexists

    def slowly(path: Path) -> bool:
        if not site.store.read_sync(lambda tx: tx.uploads.get(comes.id)):
            site.store.write_sync(lambda tx: tx.uploads.create(comes))
        return really(path)

    monkeypatch.setattr(os.path, "lexists", slowly)
    with pytest.raises(Conflict, match="Another file has just come to raw"):
        await site.moves.move(SAM, dataset.id, site.ben, "wrong sample")
    moved = await site.moves.move(SAM, dataset.id, site.ben, "wrong sample")
    assert (moved.experiment, moved.path) == (site.ben, "raw/run/version-2/lyso_master.h5")


async def test_what_can_not_move_stays(site: Site, tmp_path: Path) -> None:
    dataset = await site.send(tmp_path / "run")
    elsewhere = await site.experiments.create(SAM, ExperimentCreate(instrument="em", title="x", pi="ben"))
    before = files(site.root)
    for somebody, target, refusal in (
        (SAM, elsewhere.id, Conflict),
        (SAM, site.ada, Conflict),
        (SAM, "mx-2026-99999", NotFound),
        (ADA, site.ben, Forbidden),
        (BEN, site.ben, NotFound),
        (AGENT, site.ben, BeamhubError),
    ):
        with pytest.raises(refusal):
            await site.moves.move(somebody, dataset.id, target, "x")
    (site.root / "data" / site.ada / "raw/run/lyso_data_000002.h5").unlink()
    with pytest.raises(BeamhubError, match="is gone"):
        await site.moves.move(SAM, dataset.id, site.ben, "x")
    assert files(site.root) == before - {f"{site.ada}/raw/run/lyso_data_000002.h5"}
    assert not site.store.read_sync(lambda tx: tx.moves.all())
    assert site.store.read_sync(lambda tx: tx.datasets.require(dataset.id)).experiment == site.ada


async def test_a_kill_at_any_step_loses_and_doubles_nothing(site: Site, tmp_path: Path) -> None:
    await site.send(tmp_path / "run")
    step, killed = 0, True
    with victims(VICTIM, tmp_path) as victim:
        while killed:
            step += 1
            root = tmp_path / f"killed-{step}"
            shutil.copytree(site.root, root)
            code, _ = victim.run(root, "move", step, site.ben)
            killed = code == -signal.SIGKILL
            assert killed or code == 0
            inodes = {path.stat().st_ino for path in (root / "data").rglob("*.h5")}
            assert len(inodes) == 3, "a file is lost or doubled"
            victim.run(root, "recover", 1 + step % 4, "")  # killed again while it recovers
            assert victim.run(root, "recover", 0, "") == (0, "")
            assert files(root) == {f"{site.ben}/raw/run/{name}" for name in FILES}
            store = Store(f"sqlite:///{root}/beamhub.db")
            dataset = store.read_sync(lambda tx: tx.datasets.require(1))
            events = store.read_sync(lambda tx: tx.events.after(0, limit=1000))
            assert dataset.experiment == site.ben
            assert [event.kind for event in events].count("dataset.moved") == 2
            assert not store.read_sync(lambda tx: tx.moves.all())
            store.close()
    assert step > 10


def test_jobs_stay_and_say_that_their_input_has_moved(service: RunningService) -> None:
    beamtime = service.beamtime()
    ada, sam, licence = service.client("ada"), service.client("sam"), service.licence(beamtime)
    dataset = service.dataset(beamtime)
    job = ada.submit(beamtime.experiment, TEMPLATE, dataset.id, sponsor=licence)
    ada.wait(job.id)
    right = sam.create_experiment(beamtime.instrument, "The right one", pi="ben").id
    moved = sam.move_dataset(dataset.id, right, "wrong sample")
    assert moved.experiment == right
    (seen,) = ada.job(job.id).inputs
    assert seen.note == f"moved to {right} by sam: wrong sample"
    assert ada.datasets(beamtime.experiment) == []
    assert ada.files(beamtime.experiment, "raw") == []
    assert service.client("ben").frame(dataset.id, 1).shape == (16, 20)
