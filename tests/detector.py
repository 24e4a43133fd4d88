"""A detector that writes its frames into one HDF5 file, with readers beside it (SWMR).

Run as a program, it is the detector: a process of its own, as HDF5 wants it, that can be stopped and killed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

SHAPE = (512, 512)
LINK = "/entry/data/data"
CODECS: dict[str, dict[str, Any]] = {
    "": {},
    "lz4": {"compression": hdf5plugin.LZ4()},
    "bslz4": {"compression": hdf5plugin.Bitshuffle(cname="lz4")},
    "bszstd": {"compression": hdf5plugin.Bitshuffle(cname="zstd")},
    "gzip": {"compression": "gzip"},
}


def counts(number: int, shape: tuple[int, int] = SHAPE, dtype: str = "uint32") -> NDArray[Any]:
    """Frame `number` (from 0) of any such detector; packed, it has a tenth of its size."""
    return np.random.default_rng(number).integers(0, 8, size=shape, dtype=dtype)


@dataclass
class Detector:
    """Args:
    path: of its file.
    codec: how it packs its frames.
    swmr: it lets others read beside it.
    link: where in the file the frames lie.
    images: how many it announces, if its file is a master that tells so.
    mask: it tells which pixels don't count: the first.
    """

    path: Path
    codec: str = ""
    swmr: bool = True
    link: str = LINK
    images: int = 0
    mask: bool = False
    shape: tuple[int, int] = SHAPE
    dtype: str = "uint32"

    def __enter__(self) -> Detector:
        told = json.dumps(vars(self) | {"path": str(self.path)})
        self.process = subprocess.Popen(
            [sys.executable, __file__, told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is not None:  # perhaps while it was stopped
            self.process.kill()
        self.process.communicate()  # the end of its input: it closes the file
        assert failed is not None or self.process.returncode == 0

    def write(self, frames: int) -> None:
        """Returns when so many more are written and all is flushed."""
        self.begin("write", frames)
        self._answer()

    def tell(self, order: str, frames: int = 1) -> None:
        """As `begin`, and returns when that is done."""
        self.begin(order, frames)
        self._answer()

    def begin(self, order: str, frames: int = 1) -> None:
        """Orders: `write`; `run`, flushing at any moment; `skip`, which leaves holes; `unpacked`, frames that
        skip the filters."""
        assert self.process.stdin
        self.process.stdin.write(f"{order} {frames}\n")
        self.process.stdin.flush()

    def _answer(self) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline()


def _detect(
    path: str, codec: str, link: str, images: int, shape: list[int], dtype: str, **more: bool
) -> None:
    chance = random.Random(7)
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        frames = file.create_dataset(
            link, (0, *shape), dtype, maxshape=(None, *shape), chunks=(1, *shape), **CODECS[codec]
        )
        if images:
            file["entry/instrument/detector/detectorSpecific/nimages"] = images
        if more["mask"]:
            mask = np.zeros(shape, "u4")
            mask[0, 0] = 1
            file.create_dataset("entry/instrument/detector/pixel_mask", data=mask, **CODECS["bslz4"])
        if more["swmr"]:
            file.swmr_mode = True
        _say("ready")
        for line in sys.stdin:
            order, count = line.split()
            for _ in range(int(count)):
                number = len(frames)
                frames.resize(number + 1, 0)
                image = counts(number, (shape[0], shape[1]), dtype)
                if order == "unpacked":
                    frames.id.write_direct_chunk((number, 0, 0), image.tobytes(), filter_mask=1)
                elif order != "skip":
                    frames[number] = image
                if order == "run" and chance.random() < 0.2:
                    frames.flush()
            frames.flush()
            file.flush()
            _say(order)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _detect(**json.loads(sys.argv[1]))
