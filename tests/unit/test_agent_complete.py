"""Which HDF5 files are held back: real files, real writers, and files that mean no good."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from beamhub.agent.complete import TOLD, Holding
from beamhub.agent.config import Watch
from beamhub.agent.disk import Disk
from beamhub.agent.file import Stamp, look
from beamhub.agent.hdf5 import judge
from beamhub.agent.reader import CRASHED, Reader, Verdict
from beamhub.testing import write_dataset

from tests.unit.reading import LIBVER, reader, root

__all__ = ["reader", "root"]

# following a link that it should not follow, a test would hang on a pipe that nobody writes to
pytestmark = pytest.mark.timeout(60)


def write(path: Path, **options: object) -> Path:
    with h5py.File(path, "w", **options) as file:
        file["entry/data"] = np.arange(1000)
    return path


def stamp_of(path: Path) -> Stamp:
    stamp = look(str(path))
    assert stamp is not None
    return stamp


# --- what a look shows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"libver": LIBVER}, {"libver": LIBVER, "userblock_size": 2048}, {"libver": "earliest"}],
)
def test_a_closed_file_is_complete(root: Path, options: dict[str, object]) -> None:
    assert judge(write(root / "a.h5", **options), root) == Verdict()


@pytest.mark.parametrize("block", [0, 512])
@pytest.mark.parametrize("swmr", [True, False])
def test_an_open_file_is_not(root: Path, *, block: int, swmr: bool) -> None:
    path = root / "a.h5"
    with h5py.File(path, "w", libver=LIBVER, userblock_size=block) as file:
        file["entry/data"] = np.arange(1000)
        if swmr:
            file.swmr_mode = True
        file.flush()
        assert judge(path, root) == Verdict(problem="has not been closed by its writer")
    assert judge(path, root) == Verdict()


def test_the_file_of_a_writer_that_was_killed_looks_open(root: Path) -> None:
    code = (
        "import h5py, os, sys; f = h5py.File(sys.argv[1], 'w', libver=('v110', 'v110'));"
        "f['a'] = 1; f.swmr_mode = True; f.flush(); os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(root / "a.h5")], check=False)
    assert run.returncode == -9
    assert judge(root / "a.h5", root).problem == "has not been closed by its writer"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is not an HDF5 file"),
        (b"\0" * 100_000, "it is not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", "it is"),
        (b"\x89HDF\r\n\x1a\n\x03\x08\x08", "it is"),
        (None, "it is truncated"),
    ],
)
def test_what_does_not_open(root: Path, content: bytes | None, problem: str) -> None:
    path = write(root / "a.h5")
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)

    verdict = judge(path, root)

    assert verdict.problem.startswith(f"can't be opened: {problem}")
    assert not verdict.hopeless


def test_what_a_master_points_to(root: Path) -> None:
    master, *data = write_dataset(root, "lyso", frames=6)
    with h5py.File(master, "a", libver=LIBVER) as file:
        layout = h5py.VirtualLayout((4, 4), "u2")
        layout[:2] = h5py.VirtualSource("deep/virtual.h5", "x", (2, 4))
        layout[2:] = h5py.VirtualSource(file["entry/instrument/detector/pixel_mask"])[:2, :4]
        file.create_virtual_dataset("deep/down/virtual", layout)
        file["self"] = h5py.ExternalLink(master.name, "/entry")

    assert judge(master, root) == Verdict(sources=("deep/virtual.h5", *(path.name for path in data)))


@pytest.mark.parametrize("target", ["/etc/passwd", "../pipe", "sub/../../pipe"])
def test_what_points_out_of_its_folder_is_not_followed(root: Path, target: str) -> None:
    os.mkfifo(root.parent / "pipe")
    for number, path in enumerate((root / "link.h5", root / "virtual.h5", root / "raw.h5")):
        with h5py.File(path, "w", libver=LIBVER) as file:
            if number == 0:
                file["x"] = h5py.ExternalLink(target, "/x")
            elif number == 1:
                layout = h5py.VirtualLayout((4,), "u2")
                layout[:] = h5py.VirtualSource(target, "x", (4,))
                file.create_virtual_dataset("x", layout)
            else:
                file.create_dataset("x", (4,), "u2", external=[(str(root.parent / "pipe"), 0, 8)])

        verdict = judge(path, root)

        assert verdict.problem.startswith("is not as it should be: ")
        assert verdict.hopeless


def test_a_link_in_the_place_of_a_file_is_not_followed(root: Path) -> None:
    write(root.parent / "secret.h5")
    (root / "a.h5").symlink_to(root.parent / "secret.h5")
    assert judge(root / "a.h5", root).hopeless


# --- the child process ----------------------------------------------------------------------------------


async def test_the_child_answers_as_the_function_does(reader: Reader, root: Path) -> None:
    master, first, _ = write_dataset(root, "Å π\n")
    for path in (master, first):
        assert await reader.look(str(path), str(root)) == judge(path, root)
    assert (await reader.look(str(root / "nowhere.h5"), str(root))).problem == "is gone"


async def test_a_file_that_is_too_much_for_the_child(root: Path) -> None:
    path = write(root / "a.h5")
    small = Reader(memory=64 << 20)
    assert await small.look(str(path), str(root)) == Verdict(problem=CRASHED, hopeless=True)
    await small.close()
    slow = Reader(seconds=1e-6)
    verdict = await slow.look(str(path), str(root))
    assert verdict.problem.startswith("takes more than")
    assert verdict.hopeless
    await slow.close()


async def test_a_child_that_was_killed_is_replaced(reader: Reader, root: Path) -> None:
    path = write(root / "a.h5")
    await reader.look(str(path), str(root))
    child = reader._child
    assert child is not None
    child.kill()
    await child.wait()

    assert await reader.look(str(path), str(root)) == Verdict()


# --- who is held back, and for how long -----------------------------------------------------------------


class Bench:
    """Holds files of one directory, at times that are given."""

    def __init__(self, root: Path, *, once: bool = False) -> None:
        self.watch = Watch.model_validate(
            {"path": str(root), "wait_for_files": 60, "wait_for_writer": 3600}, context=root
        )
        self.settling: set[str] = set()
        self.holding = Holding(lambda path: path in self.settling, Disk(2), once=once)

    async def holds(self, path: Path, now: float) -> bool:
        return await self.holding.holds(self.watch, str(path), stamp_of(path), now)


@pytest.fixture
async def bench(root: Path) -> AsyncIterator[Bench]:
    bench = Bench(root)
    yield bench
    await bench.holding.close()


async def test_a_master_waits_for_its_files_but_not_for_ever(bench: Bench, root: Path) -> None:
    master, first, second = write_dataset(root, "lyso")
    second.rename(root / "later")
    assert not await bench.holds(first, 0.0)
    assert await bench.holds(master, 0.0)
    assert await bench.holds(master, 59.0)
    (root / "later").rename(second)
    bench.settling.add(str(second))
    assert await bench.holds(master, 59.5)
    assert not await bench.holds(master, 60.0), "the acquisition was stopped: the rest would not be seen"

    assert await bench.holds(master, 1000.0)
    bench.settling.clear()
    assert not await bench.holds(master, 1001.0)
    assert not bench.holding.doubts


async def test_each_state_of_a_file_is_looked_into_once(bench: Bench, root: Path) -> None:
    path = root / "a.h5"
    path.write_text("no HDF5")
    assert await bench.holds(path, 0.0)
    await bench.holding.close()
    assert await bench.holds(path, 1.0)
    assert bench.holding._reader._child is None, "it was looked into again"

    write(path)
    assert not await bench.holds(path, 2.0)


async def test_a_file_that_stays_open_is_sent_in_the_end_and_told(bench: Bench, root: Path) -> None:
    path = root / "a.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        file.flush()
        assert await bench.holds(path, 0.0)
        assert list(bench.holding.held()) == [str(path)]
        assert not list(bench.holding.told(TOLD - 1)), "that is nothing yet"
        waits = "is held back for 60 more min: it has not been closed by its writer"
        assert list(bench.holding.told(TOLD + 1)) == [(str(path), waits)]
        assert await bench.holds(path, 3599.0)
        assert not await bench.holds(path, 3600.0)
    assert not list(bench.holding.held())
    reason = "was sent as it is: it has not been closed by its writer"
    assert bench.holding.doubts == {str(path): reason}

    assert not await bench.holds(path, 3700.0)
    assert not bench.holding.doubts, "it is closed now"


async def test_what_waiting_does_not_change_does_not_wait(bench: Bench, root: Path) -> None:
    path = root / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("../x.h5", "/x")

    assert not await bench.holds(path, 0.0)

    assert "links out of its folder" in bench.holding.doubts[str(path)]


async def test_a_link_to_a_folder_is_not_followed(bench: Bench, root: Path) -> None:
    (root / "folder").symlink_to(root.parent)
    path = root / "a.h5"
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("folder/x.h5", "/x")

    assert not await bench.holds(path, 0.0), "it looked for a file outside"


async def test_masters_that_point_to_each_other(bench: Bench, root: Path) -> None:
    for here, there in (("a.h5", "b.h5"), ("b.h5", "a.h5")):
        with h5py.File(root / here, "w") as file:
            file["x"] = h5py.ExternalLink(there, "/x")
    bench.settling |= {str(root / "a.h5"), str(root / "b.h5")}

    assert await bench.holds(root / "a.h5", 0.0)
    assert await bench.holds(root / "b.h5", 0.0)
    assert not await bench.holds(root / "a.h5", 60.0)


async def test_once_waits_for_what_settles_and_for_nothing_else(root: Path) -> None:
    bench = Bench(root, once=True)
    master, first, second = write_dataset(root, "lyso")
    bench.settling.add(str(second))
    assert await bench.holds(master, 0.0)
    bench.settling.clear()
    second.unlink()
    assert not await bench.holds(master, 0.0)
    first.write_text("damaged")
    assert not await bench.holds(first, 0.0)
    assert list(bench.holding.doubts) == [str(first)]
    await bench.holding.close()
