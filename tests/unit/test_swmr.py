"""Which frames of a file that is still written are there: a real writer, and files that mean no good."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from beamhub.agent.reader import CRASHED, Listing, Reader
from beamhub.frames import swmr
from beamhub.frames.growing import Growing
from beamhub.frames.outside import HostileFile, UnreadableFile
from dectris.compression import decompress
from h5py import h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from tests.detector import CODECS, LINK, SHAPE, Detector, counts
from tests.unit.reading import LIBVER, reader, root, waiting_python

__all__ = ["reader", "root"]

pytestmark = pytest.mark.timeout(120)

SMALL = (4, 6)


def listed(path: Path, begin: int = 0) -> Growing:
    found = swmr.frames_from(begin, path, path.parent)
    assert found.inode == path.stat().st_ino
    assert found.growing is not None
    return found.growing


def count(path: Path, begin: int = 0) -> int:
    found = swmr.frames_from(begin, path, path.parent).growing
    return found.frames if found else begin


def images(path: Path, told: Growing) -> list[NDArray[Any]]:
    """The frames, read where they are said to lie."""
    file = os.open(path, os.O_RDONLY)
    found = []
    for offset, size in told.chunks:
        content = os.pread(file, size, offset)
        if told.codec:
            content = decompress(content, told.codec, elem_size=np.dtype(told.dtype).itemsize)
        found.append(np.frombuffer(content, told.dtype).reshape(told.shape))
    os.close(file)
    return found


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "gzip"])
def test_frames_lie_where_they_are_said_to(root: Path, codec: str) -> None:
    path = root / "scan_data_000001.h5"
    with Detector(path, codec, dtype="uint16") as detector:
        assert count(path) == 0
        detector.write(5)
        told = listed(path)
        assert (told.link, told.shape, told.dtype, told.codec) == (LINK, SHAPE, "uint16", codec)
        assert (told.begin, told.frames, told.info, told.mask) == (0, 5, None, "")
        for number, image in enumerate(images(path, told)):
            assert np.array_equal(image, counts(number, dtype="uint16"))
        detector.write(2)
        more = listed(path, 5)
        assert (more.begin, more.frames) == (5, 7)
        assert np.array_equal(images(path, more)[1], counts(6, dtype="uint16"))
        assert count(path, 7) == 7
        assert count(path, 100) == 100
    assert listed(path).chunks == told.chunks + more.chunks


@pytest.mark.parametrize("codec", ["", "bslz4"])
def test_a_writer_at_full_speed(root: Path, codec: str) -> None:
    path, frames, looks = root / "scan.h5", 0, set[int]()
    with Detector(path, codec) as detector:
        detector.begin("run", 60)
        while frames < 60:
            if told := swmr.frames_from(frames, path, root).growing:
                for number, image in enumerate(images(path, told), frames):
                    assert np.array_equal(image, counts(number)), f"frame {number} was listed too early"
                frames = told.frames
                looks.add(frames)
    assert len(looks) > 1


@pytest.mark.parametrize("order", ["skip", "unpacked"])
def test_frames_behind_one_that_is_missing_or_stored_otherwise(root: Path, order: str) -> None:
    path = root / "scan.h5"
    with Detector(path, "bslz4") as detector:
        detector.write(3)
        detector.tell(order)
        detector.write(2)
        assert count(path) == 3
        assert count(path, 3) == 3
        assert count(path, 4) == 6


def test_no_more_frames_than_can_be_told_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beamhub.frames.swmr.MAX_TOLD", 4)
    path = root / "scan.h5"
    with Detector(path, shape=SMALL) as detector:
        detector.write(10)
        assert (count(path), count(path, 4), count(path, 8)) == (4, 8, 10)


@pytest.mark.parametrize("named", [12, 0])
def test_what_a_master_announces_with_its_own_frames(root: Path, named: int) -> None:
    path = root / "scan_master.h5"
    with Detector(path, "bslz4", images=named, mask=True) as detector:
        if named:
            assert count(path) == 0
        else:
            with pytest.raises(UnreadableFile, match="tells no number or size"):
                count(path)
        detector.write(3)
        told = listed(path)
        assert told.info
        assert told.info.frames_announced == (named or None)
        assert [(file.name, file.link) for file in told.info.files] == [(path.name, LINK)]
        assert told.bad().sum() == told.bad()[0, 0] == 1
        detector.write(1)
        more = listed(path, 3)
        assert more.info
        assert more.info.frames_announced == (named or None)
        assert more.mask == "", "it is told once"


def test_a_data_file_may_tell_its_first_frame(root: Path) -> None:
    path = root / "scan_data_000002.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        shape = {"shape": (1, *SMALL), "maxshape": (None, *SMALL), "chunks": (1, *SMALL)}
        frames = file.create_dataset(LINK, dtype="u2", **shape)
        frames.attrs["image_nr_low"] = 101
        frames[0] = 1
    assert listed(path).first == 100


def raw(file: h5py.File, *, early: bool = False, kind: h5t.TypeID = h5t.STD_U16LE) -> None:
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_chunk((1, *SMALL))
    if early:
        layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    file.create_group("entry/data")
    h5d.create(file.id, LINK.encode(), kind, h5s.create_simple((5, *SMALL)), layout)


def other(file: h5py.File) -> None:
    file[LINK] = h5py.ExternalLink("other.h5", LINK)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, *SMALL), "u2")
    layout[:] = h5py.VirtualSource("other.h5", LINK, (4, *SMALL))
    file.create_virtual_dataset(LINK, layout)


def large(file: h5py.File) -> None:
    shape = (10**9, 60_000, 60_000)
    file.create_dataset(LINK, shape, "u2", maxshape=shape, chunks=(1, 1, 1))


def gzip(file: h5py.File) -> None:
    file.create_dataset(LINK, (5, *SMALL), "u2", chunks=(1, *SMALL), compression="gzip")


PROBLEMS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "nothing": (lambda file: None, "there are no frames"),
    "another file's": (other, "only a link to 'other.h5'"),
    "virtual": (virtual, "they lie in other files"),
    "absurd": (large, "it claims 1000000000 frames"),
    "gzip": (gzip, "only HDF5 can unpack"),
    "big-endian": (lambda file: raw(file, kind=h5t.STD_U16BE), "only HDF5 can unpack"),
    "in advance": (lambda file: raw(file, early=True), "room for frames that are not written"),
    "a circle": (lambda file: file.__setitem__("entry", h5py.SoftLink("/entry")), "round in a circle"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_can_not_be_told(root: Path, case: str) -> None:
    make, problem = PROBLEMS[case]
    path = root / "scan.h5"
    with h5py.File(root / "other.h5", "w", libver=LIBVER) as neighbour:
        neighbour[LINK] = np.ones((4, *SMALL), "u2")
    with h5py.File(path, "w", libver=LIBVER) as file:
        make(file)
    with pytest.raises((UnreadableFile, HostileFile), match=problem):
        swmr.frames_from(0, path, root)


@pytest.mark.parametrize("target", ["/etc/passwd", "../pipe"])
def test_a_file_that_points_out_of_its_folder(root: Path, target: str) -> None:
    os.mkfifo(root.parent / "pipe")
    path = root / "scan.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        raw(file)
        file["elsewhere"] = h5py.ExternalLink(target, "/x")
    with pytest.raises(HostileFile, match="link"):
        swmr.frames_from(0, path, root)


def test_a_frame_that_is_larger_than_it_can_be(root: Path) -> None:
    path = root / "scan.h5"
    with h5py.File(path, "w", libver=LIBVER) as file:
        shape = {"shape": (3, 100, 100), "maxshape": (None, 100, 100), "chunks": (1, 100, 100)}
        frames = file.create_dataset(LINK, dtype="u2", **shape, **CODECS["bslz4"])
        for number, size in enumerate((10, 200_000, 10)):
            frames.id.write_direct_chunk((number, 0, 0), bytes(size))
    assert count(path) == 1


def test_a_file_that_others_may_not_read_beside_its_writer(root: Path) -> None:
    path = root / "scan.h5"
    with Detector(path, swmr=False) as detector:
        detector.write(3)
        with pytest.raises(UnreadableFile, match="not already open for SWMR"):
            count(path)
    assert count(path) == 3


# --- the child process ----------------------------------------------------------------------------------


async def test_the_child_lists_what_the_function_lists(reader: Reader, root: Path) -> None:
    path = root / "scan_master.h5"
    with Detector(path, "bslz4", images=12, mask=True) as detector:
        detector.write(3)
        told = await reader.frames(str(path), str(root), 0)
        assert (told.problem, told.hopeless, told.inode) == ("", False, path.stat().st_ino)
        assert told.growing == listed(path)
        assert told.seconds > 0
        assert (await reader.frames(str(path), str(root), 3)).growing is None
        verdict = await reader.look(str(path), str(root))
        assert verdict.problem == "has not been closed by its writer"
    assert (await reader.frames(str(root / "no.h5"), str(root), 0)).problem == "is gone"


async def test_what_the_child_can_not_tell(reader: Reader, root: Path) -> None:
    with Detector(root / "a.h5", "gzip") as detector:
        detector.write(1)
        told = await reader.frames(str(root / "a.h5"), str(root), 0)
        assert told.problem == "has none to show: only HDF5 can unpack its frames"
        assert not told.hopeless
    with h5py.File(root / "b.h5", "w", libver=LIBVER) as file:
        file["x"] = h5py.ExternalLink("/etc/passwd", "/x")
    told = await reader.frames(str(root / "b.h5"), str(root), 0)
    assert told.problem.startswith("is not as it should be: it links to '/etc/passwd'")
    assert told.hopeless


async def test_a_large_detector_is_not_too_much_for_the_child(reader: Reader, root: Path) -> None:
    shape = (4362, 4148)  # 18 million pixels
    with Detector(root / "scan_master.h5", "bslz4", shape=shape, mask=True, images=3600) as detector:
        detector.write(1)
        told = await reader.frames(str(root / "scan_master.h5"), str(root), 0)
    assert told.problem == ""
    assert told.growing
    assert told.growing.bad().sum() == 1


async def test_a_file_that_is_too_much_for_the_child_is_not_asked_again(root: Path) -> None:
    with Detector(root / "scan.h5") as detector:
        detector.write(1)
        for reader, problem in ((Reader(memory=64 << 20), CRASHED), (Reader(seconds=1e-6), "takes more")):
            told = await reader.frames(str(root / "scan.h5"), str(root), 0)
            assert (told.hopeless, told.growing) == (True, None)
            assert told.problem.startswith(problem)
            await reader.close()


async def test_the_start_of_the_child_is_not_a_files_time(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes long on a busy machine."""
    gate, reader = tmp_path / "gate", Reader(seconds=3)
    with Detector(root / "scan.h5") as detector:
        detector.write(1)
        monkeypatch.setattr(sys, "executable", str(waiting_python(tmp_path / "python", gate)))
        listing = asyncio.create_task(reader.frames(str(root / "scan.h5"), str(root), 0))
        await asyncio.wait({listing}, timeout=3.5)
        assert not listing.done()
        gate.write_text("begin\n")
        told = await listing
    assert (told.problem, told.growing and told.growing.frames) == ("", 1)
    await reader.close()


async def test_a_child_that_is_not_asked_ends(root: Path) -> None:
    reader = Reader()
    resting = asyncio.create_task(reader.rest(after=0.01))
    for _ in range(2):
        assert isinstance(await reader.frames(str(root / "no.h5"), str(root), 0), Listing)
        while reader._child is not None:  # noqa: ASYNC110 (nothing tells when it has ended)
            await asyncio.sleep(0.01)
    resting.cancel()
    await asyncio.wait({resting})
    await reader.close()
