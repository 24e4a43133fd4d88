"""A hostile file on its way into quarantine, killed at every step; and no job gets at one that is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.quarantine import Quarantine
from beamhub.schemas import ExperimentCreate, InstrumentChange, InstrumentCreate, UploadState
from beamhub.store import Store
from beamhub.testing import RunningService
from beamhub.uploads import Uploads

from tests.unit.test_quarantine import EVIL
from tests.unit.uploading import AGENT, OPERATOR, SAM
from tests.victims import victims

HALF = len(EVIL) // 2
# Takes the rest of the file in, and kills itself at the n-th change of the disk or the database from then on.
VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.frames.inspect import Inspector
from beamhub.store import Store
from beamhub.uploads import Uploads

folder, upload, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rest = Path(sys.argv[4]).read_bytes()

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def chunks():
    yield rest

async def main():
    store = Store(f"sqlite:///{folder}/beamhub.db")
    inspector = Inspector()
    uploads = Uploads(store, Live(), folder / "data", Datasets(store, folder / "data", inspector).examine)
    store.on_commit(step)
    changes = ("os.link", "os.remove", "os.mkdir", "os.chmod")
    sys.addaudithook(lambda event, _: step() if event in changes else None)
    agent = Principal("instrument:mx", "instrument", instrument="mx")
    await uploads.append(agent, upload, int(sys.argv[5]), Chunks(chunks()))
    await uploads.close()
    await inspector.close()

asyncio.run(main())
"""


async def first_half() -> AsyncIterator[bytes]:
    yield EVIL[:HALF]


async def test_a_kill_at_any_step_leaves_a_hostile_file_in_quarantine_alone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    await asyncio.to_thread((site / "data").mkdir, parents=True)
    store, live, inspector = Store(f"sqlite:///{site}/beamhub.db"), Live(), Inspector()
    store.migrate()
    experiments = Experiments(store, site / "data")
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="mx", title="MX", staff=["sam"]))
    experiment = await experiments.create(SAM, ExperimentCreate(instrument="mx", title="L", pi="ada"))
    await experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment.id))
    uploads = Uploads(store, live, site / "data", Datasets(store, site / "data", inspector).examine)
    digest = f"sha256:{hashlib.sha256(EVIL).hexdigest()}"
    upload = await uploads.create(AGENT, "a_data_000001.h5", len(EVIL), digest)
    await uploads.append(AGENT, upload.id, 0, Chunks(first_half()))
    await uploads.close()
    store.close()

    step, killed, rest = 0, True, tmp_path / "rest"
    rest.write_bytes(EVIL[HALF:])
    with victims(VICTIM, tmp_path) as victim:
        while killed:
            step += 1
            root = tmp_path / f"killed-{step}"
            await asyncio.to_thread(shutil.copytree, site, root)
            code, _ = victim.run(root, upload.id, step, rest, HALF)
            killed = code == -signal.SIGKILL
            assert killed or code == 0

            store = Store(f"sqlite:///{root}/beamhub.db")
            uploads = Uploads(store, Live(), root / "data", Datasets(store, root / "data", inspector).examine)
            await uploads.leftovers.recover()
            await uploads.close()
            await Quarantine(store, root / "data").recover()
            there = {str(path.relative_to(root / "data")) for path in (root / "data").rglob(f"*{upload.id}*")}
            there |= {str(path.relative_to(root / "data")) for path in (root / "data").rglob("*.h5")}
            assert there == {f".quarantine/{experiment.id}/{upload.id}"}
            events = store.read_sync(lambda tx: tx.events.after(0, limit=100))
            assert [event.kind for event in events].count("file.quarantined") == 1
            found = store.read_sync(lambda tx: tx.uploads.get(upload.id))
            assert found is not None
            assert found.state is UploadState.QUARANTINED
            store.close()
    await inspector.close()
    assert step > 5


def test_no_job_gets_at_the_quarantine(service: RunningService, tmp_path: Path) -> None:
    mine = service.beamtime()
    path = tmp_path / "a_data_000001.h5"
    path.write_bytes(EVIL)
    evil = service.agent(mine).upload(path)
    kept = service.data_dir / ".quarantine" / mine.experiment / evil.id
    assert kept.read_bytes() == EVIL
    template = json.loads((service.folder / "templates" / "echo.ipynb").read_text())
    template["metadata"]["beamhub"] |= {"title": "Peek", "metrics": {"seen": {"title": "Seen"}}}
    template["cells"][1]["source"] = (
        "from pathlib import Path\nfrom beamhub import report\n"
        f"kept = Path({str(kept)!r})\n"
        "near = Path(data).parents[2]\n"
        "report.metric('seen', sum(p.exists() for p in (kept, kept.parent, near / '.quarantine')))\n"
    )
    (service.folder / "templates" / "peek.ipynb").write_text(json.dumps(template))
    ada, licence = service.client("ada"), service.licence(mine)
    job = ada.submit(mine.experiment, "peek", service.dataset(mine).id, sponsor=licence)
    assert ada.wait(job.id, timeout=120).metrics["seen"].value == 0
