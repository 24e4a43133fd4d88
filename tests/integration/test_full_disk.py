"""A disk that really is full: a small file system in memory, in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 120 * 2**20  # of which the service leaves 64 to others

SERVICE = """
import asyncio, hashlib, os, shutil, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.errors import DiskFull
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.schemas import *
from beamhub.store import Store
from beamhub.uploads import Uploads

state, folder = Path(sys.argv[1]), Path(sys.argv[2])
ada = Principal("ada", "user", operator=True)
content = os.urandom(4 * 2**20)
digest = "sha256:" + hashlib.sha256(content).hexdigest()

async def chunks(data):
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]

async def refused(work):
    try:
        await work
    except DiskFull as error:
        return str(error)
    raise SystemExit("the disk was not full")

async def main():
    store, live = Store(f"sqlite:///{state}/beamhub.db"), Live()
    store.migrate()
    experiments = Experiments(store, folder)
    uploads = Uploads(store, live, folder, Datasets(store, folder, Inspector()).examine)
    await experiments.create_instrument(ada, InstrumentCreate(id="mx", title="MX"))
    id_ = (await experiments.create(ada, ExperimentCreate(instrument="mx", title="t", pi="ada"))).id
    upload = await uploads.create(ada, "a.bin", len(content), digest, id_)
    filler = folder / "filler"
    with filler.open("wb") as file:  # leaves about one megabyte
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - 2**20)

    print(await refused(uploads.append(ada, upload.id, 0, Chunks(chunks(content)))))
    kept = (await uploads.get(ada, upload.id)).offset
    assert 0 < kept < len(content) and kept % 2**16 == 0, kept
    await refused(uploads.append(ada, upload.id, kept, Chunks(chunks(content[kept:])), ("sha256", bytes(32))))
    assert (await uploads.get(ada, upload.id)).offset == kept
    await refused(uploads.create(ada, "b.bin", len(content), digest[:-8] + 8 * "0", id_))

    filler.unlink()
    done = await uploads.append(ada, upload.id, kept, Chunks(chunks(content[kept:])))
    assert done.state == "complete"
    assert (folder / id_ / "shared" / "a.bin").read_bytes() == content
    await uploads.close()
    store.close()

asyncio.run(main())
"""


# the whole way: an agent and a service, whose data lie on the small disk
FACILITY = """
import errno, os, shutil, sys
from pathlib import Path
import httpx
from beamhub.schemas import UploadState
from beamhub.testing import running_service
from tests.integration.agents import RunningAgent, write_large

folder, data = Path(sys.argv[1]), Path(sys.argv[2])

def fill(left):
    with (data / "filler").open("wb") as file:
        while True:
            try:
                return os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(data).free - left)
            except OSError as error:  # something has come meanwhile
                assert error.errno == errno.ENOSPC

def told(agent):
    return " ".join(agent.status.errors) if agent.status else ""

database = f"sqlite:///{folder}/beamhub.db"
with running_service(folder / "service", data_dir=str(data), database_url=database) as service:
    agent = RunningAgent(folder / "agent", service, service.beamtime())
    identity = {"Authorization": f"Bearer {agent.beamtime.agent_token}", "Tus-Resumable": "1.0.0"}
    try:
        fill(left=2**20)
        announced = {**identity, "Upload-Length": "24000000", "Upload-Metadata": "filename bGFyZ2UuY2Jm"}
        refused = httpx.post(f"{service.api}uploads", headers=announced)
        assert (refused.status_code, refused.json()["title"]) == (507, "Disk full"), refused.text
        write_large(agent.data / "large.cbf", 24)
        agent.start()
        agent.until(lambda: "There is no room for raw/large.cbf" in told(agent))
        assert agent.uploads() == [], "nothing has begun"

        agent.kill()
        (data / "filler").unlink()
        agent.upload["limit"] = '"8 MB/s"'
        agent.start()
        begun = agent.until_halfway()
        fill(left=2**20)
        agent.until(lambda: "There is no room for raw/large.cbf" in told(agent))
        kept = service.client("ada").upload_status(begun.id)
        assert kept.state is UploadState.RECEIVING and 0 < kept.offset < kept.size, kept
        here = {**identity, "Content-Type": "application/offset+octet-stream"}
        refused = httpx.patch(
            f"{service.api}uploads/{begun.id}",
            headers={**here, "Upload-Offset": str(kept.offset)},
            content=(agent.data / "large.cbf").read_bytes()[kept.offset :],
        )
        assert refused.status_code == 507, refused.text

        (data / "filler").unlink()
        agent.until_arrived("large.cbf")
        (upload,) = agent.uploads()
        assert upload.id == begun.id, "it was begun again"
        published = data / agent.beamtime.experiment / "raw/large.cbf"
        assert published.read_bytes() == (agent.data / "large.cbf").read_bytes()
        agent.until(lambda: not told(agent))
        assert "does not answer" not in agent.log, agent.log
    finally:
        if agent.process:
            agent.kill()
"""


def on_a_small_disk(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script that sees a disk of `SIZE` bytes at the last of these folders."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    size = str(SIZE)
    sandbox: list[str | Path] = ["bwrap", "--dev-bind", "/", "/", "--size", size, "--tmpfs", folders[-1]]
    return subprocess.run(
        [*sandbox, sys.executable, "-W", "error", "-c", script, *folders],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )


def test_an_agent_waits_for_room_and_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    done = on_a_small_disk(FACILITY, tmp_path, tmp_path / "small")
    assert done.returncode == 0, done.stdout


def test_a_full_disk_stops_an_upload_and_room_lets_it_go_on(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    done = on_a_small_disk(SERVICE, tmp_path, tmp_path / "small")
    assert done.returncode == 0, done.stdout
    assert "no room for shared/a.bin" in done.stdout
