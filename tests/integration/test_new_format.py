"""A format that nobody has thought of is one module with its class, and its name in the list of formats."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import beamhub
import numpy as np

FORMAT = '''
"""Frames as one array of NumPy's in one file."""
from __future__ import annotations

import os

import numpy as np

from beamhub.frames.format import Contents, DataFile, DatasetInfo, Frames, MissingFrameError, Part, check_size
from beamhub.frames.outside import open_confined
from beamhub.schemas import DatasetKind, Quantity


class Npy:
    name = "npy"

    def part(self, path):
        return Part(self.name, str(path)) if path.suffix == ".npy" else None

    def title(self, dataset):
        return dataset.stem if dataset.suffix == ".npy" else None

    def look(self, path, root):
        frames = NpyFrames(path, root)
        return Contents(frames.info, len(frames))

    def frames(self, dataset, root, first=None):
        return NpyFrames(dataset, root)


class NpyFrames(Frames):
    def __init__(self, path, root):
        with os.fdopen(open_confined(path, root), "rb") as file:
            self._stack = np.load(file, allow_pickle=False)
        count, *shape = self._stack.shape
        check_size(path.name, count, tuple(shape))
        self.name = path.name
        self._path = path
        kind, dtype = DatasetKind.STILL, self._stack.dtype.name
        files = (DataFile(path.name, "", 0, count),)
        told = {"count_time": Quantity(value=0.5, unit="s")}
        self.info = DatasetInfo(kind, count, tuple(shape), dtype, files, told)

    def __len__(self):
        return len(self._stack)

    def has(self, index):
        return 0 <= index < len(self)

    def counts(self, index):
        if not self.has(index):
            raise MissingFrameError(f"{self.name} has no frame {index + 1}")
        return self._stack[index]

    def files_arrived(self):
        return 1

    def file(self, index):
        return self._path

    @property
    def mask(self):
        return np.zeros(self.info.shape, bool)
'''

SERVICE = """
import asyncio, sys
from pathlib import Path
import numpy as np
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.schemas import ExperimentCreate, InstrumentChange, InstrumentCreate
from beamhub.store import Store
from beamhub.uploads import Uploads

folder, file = Path(sys.argv[1]), Path(sys.argv[2])
agent = Principal("instrument:mx", "instrument", instrument="mx")
operator = Principal("root", "user", operator=True)

async def chunks():
    yield file.read_bytes()

async def main():
    store, inspector = Store(f"sqlite:///{folder}/beamhub.db"), Inspector()
    store.migrate()
    experiments, datasets = Experiments(store, folder / "data"), Datasets(store, folder / "data", inspector)
    uploads = Uploads(store, Live(), folder / "data", datasets.examine)
    await experiments.create_instrument(operator, InstrumentCreate(id="mx", title="MX"))
    made = await experiments.create(operator, ExperimentCreate(instrument="mx", title="t", pi="ada"))
    await experiments.change_instrument(operator, "mx", InstrumentChange(active_experiment=made.id))
    upload = await uploads.create(agent, file.name, file.stat().st_size)
    await uploads.append(agent, upload.id, 0, Chunks(chunks()))
    (dataset,) = (await datasets.list(operator, made.id)).items
    print(dataset.name, dataset.format, dataset.state, dataset.frames_announced, dataset.frames_readable)
    print(dataset.metadata["count_time"].value, dataset.metadata["count_time"].unit)
    assert np.array_equal(await datasets.frame(operator, dataset.id, 3), np.load(file)[2])
    await uploads.close()
    await inspector.close()
    store.close()

asyncio.run(main())
"""


def environment_with(folder: Path, module: str, text: str, name: str) -> Path:
    """The Python of an environment in which beamhub has one format more. Its child processes have it too:
    they look neither at variables nor at what lies about."""
    package = folder / "code" / "beamhub"
    shutil.copytree(Path(beamhub.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    formats = package / "frames" / "formats"
    (formats / f"{module}.py").write_text(text)
    listed = (formats / "__init__.py").read_text()
    for old, new in (
        ("from beamhub.frames.formats.nxmx", f"from beamhub.frames.formats.{module} import {name}\n"),
        ("Nxmx(), ", f"{name}(), "),
    ):
        assert listed.count(old) == 1
        listed = listed.replace(old, new + old)
    (formats / "__init__.py").write_text(listed)
    venv.create(folder / "environment", symlinks=True)
    (library,) = (folder / "environment").glob("lib/python*/site-packages")
    (library / "first.pth").write_text(f"{package.parent}\n{sysconfig.get_path('purelib')}\n")
    return folder / "environment" / "bin" / "python"


def test_a_format_is_one_class(tmp_path: Path) -> None:
    stack = np.random.default_rng(1).integers(0, 1000, (5, 20, 30), dtype=np.uint16)
    np.save(tmp_path / "stack.npy", stack)
    (tmp_path / "data").mkdir()
    python = environment_with(tmp_path, "npy", FORMAT, "Npy")
    told = subprocess.run(
        [python, "-W", "error", "-c", SERVICE, tmp_path, tmp_path / "stack.npy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert told.stdout.splitlines() == ["stack npy complete 5 5", "0.5 s"]
    assert told.returncode == 0
