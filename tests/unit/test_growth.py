"""Files that are still written: what datasets and members make of the frames that have come of them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import h5py
import pytest
import xxhash
from beamhub.body import Chunks
from beamhub.errors import Conflict, Gone, Invalid, NotFound
from beamhub.frames import nxmx
from beamhub.frames.format import DatasetInfo
from beamhub.frames.growing import Come, Growing
from beamhub.growth import Growth
from beamhub.moves import Moves
from beamhub.schemas import ExperimentCreate, Upload, UploadState
from pydantic import ValidationError

from tests.unit.test_datasets import (
    ADA,
    AGENT,
    DETECTOR,
    EVE,
    FRAMES,
    PER_FILE,
    SAM,
    Site,
    frame,
    on_both,
    record,
    site,
)

__all__ = ["site"]

DTYPE = "uint16"


class Sender:
    """Sends a file as if it were still written: first its bytes, then which frames of it can be read."""

    def __init__(self, site: Site, file: Path) -> None:
        self.site = site
        self.file = file
        self.growth = Growth(site.store, site.uploads.workers)
        self.content = file.read_bytes()
        with h5py.File(file) as opened:
            self.places = [place[:2] for place in nxmx.chunk_table(opened[nxmx.DATA].id)]

    async def begin(self) -> Upload:
        self.upload = await self.site.uploads.create(AGENT, self.file.name, None, digest_follows="xxh128")
        return await self.send(self.content)

    async def send(self, content: bytes, size: int | None = None, digest: str | None = None) -> Upload:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        offset = (await self.site.uploads.get(AGENT, self.upload.id)).offset
        self.upload = await self.site.uploads.append(
            AGENT, self.upload.id, offset, Chunks(chunks()), size=size, digest=digest
        )
        return self.upload

    def told(self, begin: int, end: int, **more: object) -> Growing:
        values = {"link": nxmx.DATA, "shape": DETECTOR.shape, "dtype": DTYPE, "codec": "bslz4"}
        return Growing.model_validate({**values, "begin": begin, "chunks": self.places[begin:end], **more})

    async def show(self, begin: int, end: int, **more: object) -> Upload:
        return await self.growth.show(AGENT, self.upload.id, self.told(begin, end, **more))

    async def finish(self) -> Upload:
        digest = f"xxh128:{xxhash.xxh3_128(self.content).hexdigest()}"
        return await self.send(b"", size=len(self.content), digest=digest)

    @property
    def info(self) -> DatasetInfo:
        return nxmx.inspect_master(self.file, self.file.parent)


def record_single(folder: Path, name: str = "single") -> Path:
    """All in one file, as a SWMR writer leaves it."""
    master, *parts = record(folder, name)
    with h5py.File(master, "a") as file:
        del file[nxmx.DATA]
        frames = []
        for part in parts:
            with h5py.File(part) as data:
                frames.append(data[nxmx.DATA][()])
        with h5py.File(parts[0]) as data:
            data.copy(nxmx.DATA, file["entry/data"])
        stack = file[nxmx.DATA]
        stack.resize(FRAMES, 0)
        for number, image in enumerate(image for one in frames for image in one):
            stack[number] = image
        for link in [key for key in file["entry/data"] if key.startswith("data_")]:
            del file[f"entry/data/{link}"]
    return master


def events(site: Site) -> list[tuple[str, int]]:
    found = site.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    return [
        (event.kind, event.data["frames_readable"]) for event in found if event.kind.startswith("dataset.")
    ]


def growing_files(site: Site) -> list[str]:
    return sorted(file.name for file in (site.folder / site.experiment / ".growing").iterdir())


@on_both
async def test_frames_of_a_data_file_count_while_it_is_written(site: Site, tmp_path: Path) -> None:
    master, first, second, third = record(tmp_path / "out")
    await site.send(master, first)
    sender = Sender(site, second)
    await sender.begin()
    assert (await sender.show(0, 1)).frames == 1
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (PER_FILE + 1, "receiving")
    assert (await sender.show(1, 2)).frames == 2
    assert (await site.only()).frames_readable == 2 * PER_FILE
    assert len(growing_files(site)) == 3
    come = Come.find(site.folder / site.experiment / "raw" / second.name)
    assert come is not None
    assert (come.frames, come.place(1), come.place(2)) == (2, sender.places[1], None)

    await site.send(third)
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (2 * PER_FILE, "receiving"), "not before all is there"
    assert (await sender.finish()).state is UploadState.COMPLETE
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (FRAMES, "complete")
    assert growing_files(site) == []
    assert events(site) == [
        ("dataset.started", 0),
        ("dataset.frames", 2),
        ("dataset.growing", 3),
        ("dataset.growing", 4),
        ("dataset.frames", 4),  # the third, which waits for the second
        ("dataset.frames", 6),
        ("dataset.complete", 6),
    ]


@on_both
async def test_a_dataset_begins_with_a_master_that_is_still_written(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    await sender.show(0, 2, info=sender.info, mask="")
    begun = await site.only()
    assert (begun.name, begun.frames_readable, begun.frames_announced) == ("single", 2, FRAMES)
    assert begun.metadata == sender.info.metadata
    await sender.show(2, FRAMES, info=sender.info)
    dataset = await site.only()
    assert (dataset.id, dataset.frames_readable, dataset.state) == (begun.id, FRAMES, "receiving")
    await sender.finish()
    dataset = await site.only()
    assert (dataset.id, dataset.frames_readable, dataset.state) == (begun.id, FRAMES, "complete")
    assert [kind for kind, _ in events(site)] == [
        *("dataset.started", "dataset.growing", "dataset.growing", "dataset.frames", "dataset.complete")
    ]
    for number in (1, FRAMES):
        assert (await site.datasets.frame(ADA, dataset.id, number) == frame(number)).mean() > 0.9


@on_both
async def test_a_master_may_tell_of_more_frames_later(site: Site, tmp_path: Path) -> None:
    """Where its writer can't know how many will come."""
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    for come in (2, 4):
        info = dataclasses.replace(sender.info, frames_announced=come)
        await sender.show(come - 2, come, info=info)
        dataset = await site.only()
        assert (dataset.frames_readable, dataset.frames_announced, dataset.state) == (come, come, "receiving")
    await sender.finish()
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.frames_announced, dataset.state) == (FRAMES, FRAMES, "complete")


@on_both
async def test_nobody_knows_how_many_frames_come_before_the_file_is_complete(
    site: Site, tmp_path: Path
) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    (file,) = sender.info.files
    info = dataclasses.replace(
        sender.info, frames_announced=None, files=(dataclasses.replace(file, frames=None),)
    )
    for come in (2, 4):
        await sender.show(come - 2, come, info=info)
        dataset = await site.only()
        assert (dataset.open_ended, dataset.state) == (True, "receiving")
        assert (dataset.frames_readable, dataset.frames_announced) == (come, come)
    assert (await site.datasets.frame(ADA, dataset.id, 4) == frame(4)).mean() > 0.9
    await sender.finish()
    dataset = await site.only()
    assert (dataset.open_ended, dataset.state) == (False, "complete")
    assert (dataset.frames_readable, dataset.frames_announced) == (FRAMES, FRAMES)
    assert (await site.datasets.frame(ADA, dataset.id, FRAMES) == frame(FRAMES)).mean() > 0.9
    assert events(site)[:3] == [("dataset.started", 0), ("dataset.growing", 2), ("dataset.growing", 4)]


@on_both
async def test_one_that_was_given_up_has_ended_with_nothing(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    info = dataclasses.replace(sender.info, frames_announced=None)
    await sender.show(0, 3, info=info)
    await site.uploads.terminate(AGENT, sender.upload.id)
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.frames_announced) == (0, 0)
    assert (await site.datasets.end(SAM, dataset.id)).state == "incomplete"


@on_both
async def test_what_grew_before_its_master_came_counts_when_it_comes(site: Site, tmp_path: Path) -> None:
    master, first, *_ = record(tmp_path / "out")
    sender = Sender(site, first)
    await sender.begin()
    await sender.show(0, 1)
    assert await site.all() == []
    await site.send(master)
    assert (await site.only()).frames_readable == 1
    assert events(site) == [("dataset.started", 0), ("dataset.growing", 1)]


@on_both
async def test_what_is_given_up_is_not_shown_any_more(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    await sender.show(0, 3, info=sender.info)
    await site.uploads.terminate(AGENT, sender.upload.id)
    assert growing_files(site) == []
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (0, "receiving")
    with pytest.raises(NotFound):
        await site.datasets.frame(ADA, dataset.id, 1)
    with pytest.raises(Gone):
        await sender.show(3, 4)

    again = Sender(site, sender.file)
    await again.begin()
    await again.show(0, 1, info=again.info)
    assert ((await site.only()).id, (await site.only()).frames_readable) == (dataset.id, 1)
    await again.finish()
    assert [(d.id, d.state, d.frames_readable) for d in await site.all()] == [
        (dataset.id, "complete", FRAMES)
    ]


async def test_what_turns_out_to_be_hostile_is_not_shown_any_more(site: Site, tmp_path: Path) -> None:
    """Frames are read where the sender says that they lie; all of the file is looked into at its end."""
    file = record_single(tmp_path / "out")
    with h5py.File(file, "a") as opened:
        opened["entry/elsewhere"] = h5py.ExternalLink("/data/other/raw/secret.h5", "/")
    sender = Sender(site, file)
    await sender.begin()
    info = nxmx.inspect_master(record_single(tmp_path / "harmless"), tmp_path)
    await sender.show(0, 3, info=info)
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (3, "receiving")
    upload = await sender.finish()
    assert upload.state is UploadState.QUARANTINED
    assert "/data/other" in upload.error
    assert growing_files(site) == []
    dataset = await site.only()
    assert (dataset.frames_readable, dataset.state) == (0, "receiving")
    with pytest.raises(NotFound):
        await site.datasets.frame(ADA, dataset.id, 1)


async def test_the_same_file_by_two_senders_is_counted_and_published_once(site: Site, tmp_path: Path) -> None:
    file = record_single(tmp_path / "out")
    one, other = Sender(site, file), Sender(site, file)
    for sender, come in ((one, 2), (other, 3)):
        await sender.begin()
        await sender.show(0, come, info=sender.info)
    assert (await site.only()).frames_readable == 3
    await one.finish()
    assert (await site.only()).state == "complete"
    assert (await other.show(3, 4, info=other.info)).state is UploadState.RECEIVING
    assert (await site.only()).frames_readable == FRAMES, "what is published counts"
    assert (await other.finish()).state is UploadState.SUPERSEDED
    assert ((await site.only()).state, growing_files(site)) == ("complete", [])


async def test_another_file_of_this_name_is_another_dataset(site: Site, tmp_path: Path) -> None:
    """The one that is published first has the name; the one that was written meanwhile is a later version."""
    growing = Sender(site, record_single(tmp_path / "out"))
    await growing.begin()
    await growing.show(0, 5, info=growing.info)
    other = record_single(tmp_path / "other", "single")
    with h5py.File(other, "a") as file:
        file[nxmx.DATA][0] = 3
    await site.send(other)
    dataset = await site.only()
    assert (dataset.name, dataset.frames_readable, dataset.state) == ("single", FRAMES, "complete")
    await growing.finish()
    second, first = await site.all()
    assert (first.name, first.state, second.name, second.state) == (
        *("single", "complete"),
        *("single.v2", "complete"),
    )
    assert growing_files(site) == []


async def test_who_may_show_what(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    with pytest.raises(NotFound):
        await sender.growth.show(EVE, sender.upload.id, sender.told(0, 1))
    with pytest.raises(Conflict, match="this begins with frame 3"):
        await sender.show(2, 3)
    end = len(sender.content)
    with pytest.raises(Conflict, match=f"{end} bytes of .* have come, and a frame ends at byte {end + 1}"):
        await sender.show(0, 0, chunks=[[end - 1, 2]])
    assert await site.all() == []
    assert (await site.uploads.get(AGENT, sender.upload.id)).frames is None

    plain = await site.uploads.create(AGENT, "single_master.log", None, digest_follows="xxh128")
    with pytest.raises(Invalid, match=r"no detector's file"):
        await sender.growth.show(AGENT, plain.id, sender.told(0, 1))
    whole = await site.uploads.create(AGENT, "whole_master.h5", 10)
    with pytest.raises(Conflict, match="is not sent while it grows"):
        await sender.growth.show(AGENT, whole.id, sender.told(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": [[-1, 5]]},
        {"chunks": [[0, 0]]},
        {"chunks": [[2**63, 5]]},
        {"chunks": [[0, 2**40]]},
        {"shape": [0, 5]},
        {"shape": [2**20, 5]},
        {"dtype": "float64"},
        {"codec": "gzip"},
        {"mask": "%%%"},
        {"begin": -1},
        {"link": "x" * 2000},
        {"more": 1},
    ],
)
def test_what_is_told_is_checked(change: dict[str, object]) -> None:
    told = {"link": nxmx.DATA, "shape": [4, 5], "dtype": DTYPE, "codec": "", "chunks": [[0, 40]]}
    Growing.model_validate(told)
    with pytest.raises(ValidationError):
        Growing.model_validate({**told, **change})


@pytest.mark.parametrize("name", ["../x.h5", "/etc/passwd", "a/../../x.h5", "%b.h5", "x//y.h5", ""])
async def test_a_master_names_only_its_neighbours(site: Site, tmp_path: Path, name: str) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    file = dataclasses.replace(sender.info.files[0], name=name)
    info = dataclasses.replace(sender.info, files=(file,))
    with pytest.raises(ValidationError):
        sender.told(0, 1, info=dataclasses.asdict(info))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wavelength", float("nan")),
        ("wavelength", float("inf")),
        ("sample_name", "two\nlines"),
        ("sample_name", "x" * 201),
        ("sample_name", [1.0] * 1000),
        ("no name", 1),
        ("x" * 61, 1),
    ],
)
async def test_a_master_tells_only_what_could_be_read_in_it(
    site: Site, tmp_path: Path, name: str, value: object
) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    info = dataclasses.asdict(sender.info) | {"metadata": {name: {"value": value}}}
    with pytest.raises(ValidationError, match=r"which is not a finite number or one line of text"):
        sender.told(0, 1, info=info)
    sender.told(0, 1, info=info | {"metadata": {"wavelength": {"value": 1.0, "unit": "angstrom"}}})


async def test_what_a_kill_leaves_of_it_goes(site: Site, tmp_path: Path) -> None:
    """Killed between the end of an upload and the removal of what was shown of it."""
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    await sender.show(0, 3, info=sender.info)
    folder = site.folder / site.experiment / ".growing"
    left = {file.name: file.read_bytes() for file in folder.iterdir()}
    await site.uploads.leftovers.recover()
    assert growing_files(site) == sorted(left), "it is on its way"
    await sender.finish()
    for name, content in left.items():
        (folder / name).write_bytes(content)
    await site.uploads.leftovers.recover()
    assert growing_files(site) == []


async def test_staff_end_a_dataset_whose_file_is_still_written(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    await sender.show(0, FRAMES, info=sender.info)
    dataset = await site.datasets.end(SAM, (await site.only()).id)
    assert (dataset.state, dataset.frames_readable) == ("incomplete", FRAMES), "nothing of it is published"
    await sender.finish()
    assert (await site.only()).state == "complete"


async def test_rules_wait_for_published_frames(site: Site, tmp_path: Path) -> None:
    """Whoever counts frames may read them by HDF5, which can't read a file that is still written."""
    master, first, second, _ = record(tmp_path / "out")
    await site.send(master)
    sender = Sender(site, second)
    await sender.begin()
    await sender.show(0, 2)
    await site.send(first)
    found = site.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    (event,) = [event for event in found if event.kind == "dataset.frames"]
    assert (event.data["frames_readable"], event.data["frames_published"]) == (2 * PER_FILE, PER_FILE)


async def test_a_dataset_stays_until_its_files_have_arrived(site: Site, tmp_path: Path) -> None:
    sender = Sender(site, record_single(tmp_path / "out"))
    await sender.begin()
    await sender.show(0, 3, info=sender.info)
    dataset = await site.datasets.end(SAM, (await site.only()).id)
    request = ExperimentCreate(instrument="mx", title="Other", pi="ada")
    target = await site.experiments.create(SAM, request)
    moves = Moves(site.store, site.folder)
    with pytest.raises(Conflict, match=r"raw/single_master.h5 of single is on its way"):
        await moves.move(SAM, dataset.id, target.id, "wrong sample")
    await sender.finish()
    assert (await moves.move(SAM, dataset.id, target.id, "wrong sample")).experiment == target.id


async def test_nothing_is_left_of_what_is_shown_in_the_moment_at_which_it_ends(
    site: Site, tmp_path: Path
) -> None:
    for number in range(6):
        sender = Sender(site, record_single(tmp_path / f"out{number}", f"single{number}"))
        await sender.begin()
        await sender.show(0, 1, info=sender.info)
        ends = sender.finish() if number % 2 else site.uploads.terminate(AGENT, sender.upload.id)
        shows = (sender.show(1, come, info=sender.info) for come in range(2, FRAMES))
        _, *shown = await asyncio.gather(ends, *shows, return_exceptions=True)
        assert all(isinstance(one, Upload | Gone) for one in shown), shown
        assert growing_files(site) == []
    states = {dataset.name: (dataset.state, dataset.frames_readable) for dataset in await site.all()}
    for number in range(6):
        assert states[f"single{number}"] == (("complete", FRAMES) if number % 2 else ("receiving", 0))
