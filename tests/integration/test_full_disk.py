"""A disk that really is full: a small file system in memory, in a mount namespace of its own."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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


async def test_a_full_disk_stops_an_upload_and_room_lets_it_go_on(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
    small = tmp_path / "small"
    small.mkdir()
    sandbox: list[str | Path] = ["bwrap", "--dev-bind", "/", "/", "--size", str(80 * 2**20), "--tmpfs", small]
    process = await asyncio.create_subprocess_exec(
        *sandbox,
        sys.executable,
        "-W",
        "error",
        "-c",
        SERVICE,
        tmp_path,
        small,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert "no room for shared/a.bin" in told.decode()
