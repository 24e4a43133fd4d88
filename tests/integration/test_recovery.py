"""kill -9 at each step of an upload: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from beamhub.access import Principal
from beamhub.batches import Batches, Whole
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.frames.inspect import Inspector
from beamhub.schemas import Upload, UploadState
from beamhub.store import Store
from beamhub.uploads import Uploads

from tests.victims import Victims, victims

AGENT = Principal("instrument:mx", "instrument", instrument="mx")
CONTENT = bytes(range(256)) * 4096  # several writes
HALF = len(CONTENT) // 2

# A service that takes one file in and kills itself at the step it is told.
VICTIM = """
import asyncio, hashlib, os, signal, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.schemas import *
from beamhub.store import Store
from beamhub.publications import Findings
from beamhub.uploads import Uploads

folder, step, content = Path(sys.argv[1]), sys.argv[2], bytes(range(256)) * 4096
agent = Principal("instrument:mx", "instrument", instrument="mx")
operator = Principal("root", "user", operator=True)

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def examine(uploads):
    if step == "between publishing and committing":
        kill()
    return Findings({}, lambda tx: kill() if step == "inside the transaction" else None)

def committed():
    if step == "between committing and cleaning up":
        if store.read_sync(lambda tx: tx.events.latest(experiment, upload.id, ["file.complete"])):
            kill()

async def chunks():
    yield content[: len(content) // 2]
    yield content[len(content) // 2 :]
    if step == "before the last byte was acknowledged":
        kill()

async def main():
    global store, experiment, upload
    store, live = Store(f"sqlite:///{folder}/beamhub.db"), Live()
    store.migrate()
    experiments = Experiments(store, folder / "data")
    uploads = Uploads(store, live, folder / "data", examine)
    await experiments.create_instrument(operator, InstrumentCreate(id="mx", title="MX"))
    request = ExperimentCreate(instrument="mx", title="t", pi="ada")
    experiment = (await experiments.create(operator, request)).id
    await experiments.change_instrument(operator, "mx", InstrumentChange(active_experiment=experiment))
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    upload = await uploads.create(agent, "run/a.bin", len(content), digest)
    print(experiment, upload.id, flush=True)
    if step == "half-way":
        async def half():
            yield content[: len(content) // 2]
        await uploads.append(agent, upload.id, 0, Chunks(half()))
        kill()
    store.on_commit(committed)
    await uploads.append(agent, upload.id, 0, Chunks(chunks()))

asyncio.run(main())
"""
# as above, but many small files at once
BATCH_VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.incoming import Incoming
from beamhub.schemas import ExperimentCreate, InstrumentChange, InstrumentCreate
from beamhub.store import Store
from beamhub.batches import Batches, Whole
from beamhub.publications import Findings
from beamhub.uploads import Uploads

folder, step = Path(sys.argv[1]), sys.argv[2]
agent = Principal("instrument:mx", "instrument", instrument="mx")
operator = Principal("root", "user", operator=True)

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def examine(uploads):
    if step == "between publishing and committing":
        kill()
    return Findings({}, lambda tx: kill() if step == "inside the transaction" else None)

def at(moment, method):
    count = 0
    def counted(*arguments):
        nonlocal count
        count += 1
        result = method(*arguments)
        if step == moment and count == 10:
            kill()
        return result
    return counted

Incoming.keep = at("while they are written", Incoming.keep)
Incoming._link = at("while they are published", Incoming._link)

async def main():
    store = Store(f"sqlite:///{folder}/beamhub.db")
    store.migrate()
    experiments = Experiments(store, folder / "data")
    uploads = Uploads(store, Live(), folder / "data", examine)
    await experiments.create_instrument(operator, InstrumentCreate(id="mx", title="MX"))
    request = ExperimentCreate(instrument="mx", title="t", pi="ada")
    experiment = (await experiments.create(operator, request)).id
    await experiments.change_instrument(operator, "mx", InstrumentChange(active_experiment=experiment))
    print(experiment, flush=True)
    commits = []
    def committed():
        commits.append(step)
        if commits == ["between beginning and publishing"]:
            kill()
        if commits == ["between committing and cleaning up"] * 2:
            kill()
    store.on_commit(committed)
    files = [Whole(f"run/{n}.txt", memoryview(b"%d" % n), None, f"key-{n}") for n in range(20)]
    await Batches(store, uploads).deliver(agent, files)

asyncio.run(main())
"""
BATCH_STEPS = [
    "while they are written",
    "between beginning and publishing",
    "while they are published",
    "between publishing and committing",
    "inside the transaction",
    "between committing and cleaning up",
]
STEPS = [
    "half-way",
    "before the last byte was acknowledged",
    "between publishing and committing",
    "inside the transaction",
    "between committing and cleaning up",
]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with victims(VICTIM, tmp_path_factory.mktemp("victim")) as found:
        yield found


@pytest.fixture(scope="module")
def batch_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with victims(BATCH_VICTIM, tmp_path_factory.mktemp("victim")) as found:
        yield found


async def rest(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize("step", STEPS)
async def test_a_killed_service_goes_on_where_it_was(tmp_path: Path, victim: Victims, step: str) -> None:
    (tmp_path / "data").mkdir()
    code, told = victim.run(tmp_path, step)
    assert code == -signal.SIGKILL
    experiment, upload_id = told.split()
    root = tmp_path / "data" / experiment
    orphan = root / ".incoming" / "0123456789abcdef"  # as from a kill before its row was written
    orphan.touch()

    store, inspector = Store(f"sqlite:///{tmp_path / 'beamhub.db'}"), Inspector()
    store.migrate()
    uploads = Uploads(store, Live(), tmp_path / "data", Datasets(store, tmp_path / "data", inspector).examine)
    await uploads.leftovers.recover()
    await uploads.leftovers.recover()  # and again, as after a kill while recovering
    await asyncio.gather(*uploads.publications.tasks)
    upload = await uploads.get(AGENT, upload_id)
    if upload.state is UploadState.RECEIVING:
        assert step in ("half-way", "before the last byte was acknowledged")
        assert upload.offset in (HALF, len(CONTENT))
        upload = await uploads.append(AGENT, upload_id, upload.offset, Chunks(rest(CONTENT[upload.offset :])))

    assert upload.state is UploadState.COMPLETE
    assert [str(path.relative_to(root)) for path in root.rglob("*.bin")] == ["raw/run/a.bin"]
    assert f"sha256:{hashlib.sha256((root / upload.path).read_bytes()).hexdigest()}" == upload.digest
    assert (root / upload.path).stat().st_nlink == 1
    assert os.listdir(root / ".incoming") == []  # noqa: PTH208
    events = store.read_sync(lambda tx: tx.events.after(0, limit=100))
    assert [event.subject for event in events if event.kind == "file.complete"] == [upload_id]
    await uploads.close()
    await inspector.close()
    store.close()


@pytest.mark.parametrize("recovered", [True, False], ids=["recovered", "at once"])
@pytest.mark.parametrize("step", BATCH_STEPS)
async def test_a_batch_that_a_kill_has_cut_is_published_once(
    tmp_path: Path, batch_victim: Victims, step: str, recovered: bool
) -> None:
    """Whether the service finishes it by itself, or its sender is there first."""
    (tmp_path / "data").mkdir()
    code, told = batch_victim.run(tmp_path, step)
    assert code == -signal.SIGKILL
    root = tmp_path / "data" / told.strip()

    store, inspector = Store(f"sqlite:///{tmp_path / 'beamhub.db'}"), Inspector()
    store.migrate()
    uploads = Uploads(store, Live(), tmp_path / "data", Datasets(store, tmp_path / "data", inspector).examine)
    if recovered:
        await uploads.leftovers.recover()
        await asyncio.gather(*uploads.publications.tasks)
    files = [Whole(f"run/{n}.txt", memoryview(b"%d" % n), None, f"key-{n}") for n in range(20)]
    answers = await Batches(store, uploads).deliver(AGENT, files)
    await uploads.leftovers.recover()
    await asyncio.gather(*uploads.publications.tasks)

    for number, answer in enumerate(answers):
        assert isinstance(answer, Upload)
        assert (answer.state, answer.path) == (UploadState.COMPLETE, f"raw/run/{number}.txt")
        path = root / answer.path
        assert (path.read_bytes(), path.stat().st_nlink) == (b"%d" % number, 1)
    assert len(list((root / "raw").rglob("*.txt"))) == 20
    assert os.listdir(root / ".incoming") == []  # noqa: PTH208
    events = store.read_sync(lambda tx: tx.events.after(0, limit=100))
    files_told = [event.kind for event in events if event.kind.startswith(("file.", "upload."))]
    assert files_told == ["file.complete"] * 20
    await uploads.close()
    await inspector.close()
    store.close()
