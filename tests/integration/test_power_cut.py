"""In which order what is published comes to the disk: seen from the kernel, call by call."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SENDER = """
import asyncio, hashlib, os, sys
from pathlib import Path
from beamhub.access import Principal
from beamhub.batches import Batches, Whole
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.schemas import ExperimentCreate, InstrumentChange, InstrumentCreate
from beamhub.store import Store
from beamhub.uploads import Uploads

folder, batch = Path(sys.argv[1]), sys.argv[2] == "batch"
agent = Principal("instrument:mx", "instrument", instrument="mx")
operator = Principal("root", "user", operator=True)
content = os.urandom(300_000)

async def chunks():
    for start in range(0, len(content), 100_000):
        yield content[start : start + 100_000]

async def main():
    store, inspector = Store(f"sqlite:///{folder}/beamhub.db"), Inspector()
    store.migrate()
    experiments = Experiments(store, folder / "data")
    uploads = Uploads(store, Live(), folder / "data", Datasets(store, folder / "data", inspector).examine)
    await experiments.create_instrument(operator, InstrumentCreate(id="mx", title="MX"))
    made = await experiments.create(operator, ExperimentCreate(instrument="mx", title="t", pi="ada"))
    await experiments.change_instrument(operator, "mx", InstrumentChange(active_experiment=made.id))
    if batch:
        files = [Whole("run/a.bin", memoryview(content), None, "key")]
        (done,) = await Batches(store, uploads).deliver(agent, files)
    else:
        upload = await uploads.create(
            agent, "run/a.bin", len(content), f"sha256:{hashlib.sha256(content).hexdigest()}"
        )
        done = await uploads.append(agent, upload.id, 0, Chunks(chunks()))
    assert done.state == "complete"
    await uploads.close()
    await inspector.close()

asyncio.run(main())
"""
CALLS = "pwrite64,write,fsync,fdatasync,link,linkat,rename,renameat,renameat2,mkdirat,unlink,unlinkat"


@pytest.mark.parametrize("way", ["stream", "batch"])
def test_bytes_are_flushed_then_named_then_committed(tmp_path: Path, way: str) -> None:
    """A power cut between any two steps leaves the whole file or none: never a name without its bytes, never
    a commit without its name."""
    trace = tmp_path / "trace"
    (tmp_path / "data").mkdir()
    strace: list[str | Path] = ["strace", "-f", "-y", "-qq", "-e", f"trace={CALLS}", "-o", trace]
    subprocess.run([*strace, sys.executable, "-c", SENDER, tmp_path, way], check=True)
    calls = [re.sub(r"^\d+ +", "", line) for line in trace.read_text().splitlines()]
    calls = [call for call in calls if "resumed>" not in call]

    def first(says: Callable[[str], object], after: int = 0) -> int:
        return next(number for number in range(after, len(calls)) if says(calls[number]))

    def flushes(call: str, what: str) -> bool:
        return bool(re.match(rf"f(data)?sync\(\d+<[^>]*{what}", call))

    named = first(lambda call: call.startswith("link") and '"a.bin"' in call)
    temporary = r"/\.incoming/[0-9a-f]+(>|\(deleted\))"
    written = max(n for n, call in enumerate(calls) if re.match(rf"p?write(64)?\(\d+<[^>]*{temporary}", call))
    flushed = first(lambda call: flushes(call, temporary), written)
    assert written < flushed < named, "a name for bytes that a power cut would take away"
    made = first(lambda call: call.startswith("mkdirat") and '"run"' in call)
    assert first(lambda call: flushes(call, "/raw>"), made) < named, "its folder would be gone"
    durable = first(lambda call: flushes(call, "/raw/run>"), named)
    committed = first(lambda call: flushes(call, r"beamhub\.db-wal"), named)
    assert durable < committed, "a commit for a name that a power cut would take away"
    assert first(lambda call: call.startswith("unlink") and ".incoming/" in call, named) > committed
