"""Files that are built to mislead their readers: out of reach at once, and the staff decide."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path, PurePosixPath

import h5py
import pytest
from beamhub.batches import Whole
from beamhub.errors import Conflict, Forbidden, NotFound
from beamhub.incoming import Incoming
from beamhub.quarantine import Quarantine
from beamhub.schemas import Upload, UploadState

from tests.unit.uploading import ADA, AGENT, EVE, SAM, Site, deliver, parts, sha256


def hostile(target: str, block: int = 0) -> bytes:
    """A data file whose frames are said to lie in another file, behind a block of so many bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=block) as file:
        file["entry/data/data"] = h5py.ExternalLink(target, "/entry/data/data")
    return buffer.getvalue()


EVIL = hostile("/data/other/raw/secret_data_000001.h5")


@pytest.fixture
def quarantine(site: Site) -> Quarantine:
    return Quarantine(site.store, site.folder)


def everywhere(site: Site) -> set[str]:
    """All files of the experiment, also hidden ones, and those in quarantine."""
    found = (path for path in site.folder.rglob("*") if path.is_file() and path.stat().st_size)
    return {str(path.relative_to(site.folder)).replace(site.experiment, "E") for path in found}


def told(site: Site, upload: Upload) -> list[tuple[str, str, str]]:
    """What has been told of it."""
    events = site.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
    return [(e.kind, e.actor, e.data.get("reason", "")) for e in events if e.subject == upload.id]


async def test_a_hostile_file_is_out_of_reach_at_once(site: Site, quarantine: Quarantine) -> None:
    upload = await site.send("run/evil_data_000001.h5", EVIL)
    assert (upload.state, upload.path) == (UploadState.QUARANTINED, "raw/run/evil_data_000001.h5")
    assert upload.offset == len(EVIL)
    assert "/data/other" in upload.error
    assert everywhere(site) == {f".quarantine/E/{upload.id}"}
    kept = site.folder / ".quarantine" / site.experiment / upload.id
    assert kept.read_bytes() == EVIL
    assert kept.stat().st_mode & 0o777 == 0o600
    assert told(site, upload) == [("file.quarantined", AGENT.name, upload.error)]
    assert (await quarantine.list(SAM, "mx")).items == [upload]
    with pytest.raises(Conflict):
        await site.uploads.terminate(AGENT, upload.id)


@pytest.mark.parametrize("name", ["evil.nxs", "evil.hdf5", "EVIL.H5", "run/evil.log", "evil"])
@pytest.mark.parametrize("block", [0, 2048])
async def test_a_hostile_file_is_known_by_any_name(site: Site, name: str, block: int) -> None:
    """What anybody would open as HDF5 is looked at, whether it is a detector's or not."""
    evil, harmless = hostile("/data/other/raw/secret.h5", block), hostile("neighbour.h5", block)
    upload = await site.send(name, evil)
    assert upload.state is UploadState.QUARANTINED
    assert "/data/other" in upload.error
    for plain in (await site.send(name, harmless), await site.send("cut.nxs", harmless[:-100])):
        assert plain.state is UploadState.COMPLETE
        # a .nxs says by its name that it is a detector's
        assert bool(plain.error) == plain.path.endswith(".nxs")
    together = [Whole(f"again/{name}", memoryview(evil)), Whole("note.txt", memoryview(b"a note"))]
    states = [one.state for one in await deliver(site.uploads, AGENT, together) if isinstance(one, Upload)]
    assert states == [UploadState.QUARANTINED, UploadState.COMPLETE]
    assert site.published() == {f"raw/{name}", "raw/cut.nxs", "raw/note.txt"}


async def test_a_hostile_file_among_many_is_kept_alone(site: Site) -> None:
    files = [
        Whole("before.txt", memoryview(b"before")),
        Whole("evil_data_000001.h5", memoryview(EVIL)),
        Whole("after_data_000001.h5", memoryview(b"not HDF5 at all")),
    ]
    before, evil, after = await deliver(site.uploads, AGENT, files)
    assert isinstance(before, Upload)
    assert isinstance(evil, Upload)
    assert isinstance(after, Upload)
    assert (before.state, evil.state, after.state) == (
        UploadState.COMPLETE,
        UploadState.QUARANTINED,
        UploadState.COMPLETE,
    )
    assert "/data/other" in evil.error
    assert "not usable" in after.error
    names = {f".quarantine/E/{evil.id}", "E/raw/before.txt", "E/raw/after_data_000001.h5"}
    assert everywhere(site) == names
    assert list(await deliver(site.uploads, AGENT, files[1:2])) == [evil]


async def test_the_same_again_is_no_work_and_a_harmless_one_takes_the_name(
    site: Site, quarantine: Quarantine
) -> None:
    upload = await site.send("a_data_000001.h5", EVIL)
    assert (await site.send("a_data_000001.h5", EVIL)).id == upload.id
    other = await site.send("a_data_000001.h5", hostile("../../x.h5"))
    assert (other.state, other.id == upload.id) == (UploadState.QUARANTINED, False)
    harmless = await site.send("a_data_000001.h5", b"not HDF5 at all")
    assert (harmless.state, harmless.path) == (UploadState.COMPLETE, "raw/a_data_000001.h5")
    assert {one.id for one in (await quarantine.list(SAM, "mx")).items} == {upload.id, other.id}


async def test_a_hostile_file_that_is_sent_twice_at_once_is_kept_once(
    site: Site, quarantine: Quarantine
) -> None:
    first, second = [await site.announce("a_data_000001.h5", EVIL) for _ in "12"]
    kept = await site.uploads.append(AGENT, first.id, 0, parts(EVIL))
    again = await site.uploads.append(AGENT, second.id, 0, parts(EVIL))
    assert (kept.id, kept.state) == (first.id, UploadState.QUARANTINED)
    assert again == kept
    assert everywhere(site) == {f".quarantine/E/{first.id}"}
    assert (await quarantine.list(SAM, "mx")).items == [kept]
    assert (await site.uploads.list(AGENT)).items == [kept]
    released = await quarantine.release(SAM, first.id, "harmless")
    assert (released.state, released.path) == (UploadState.COMPLETE, "raw/a_data_000001.h5")


async def test_a_hostile_file_that_was_registered_in_place(
    site: Site, quarantine: Quarantine, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    source = storage / "evil_data_000001.h5"
    source.write_bytes(EVIL)
    mode = source.stat().st_mode
    site.uploads._in_place = {"mx": [storage]}
    upload = await site.uploads.register(AGENT, str(source), source.name, len(EVIL), sha256(EVIL))
    assert upload.state is UploadState.QUARANTINED
    assert everywhere(site) == {f".quarantine/E/{upload.id}"}
    released = await quarantine.release(SAM, upload.id, "looked at it with h5dump")
    assert (released.state, everywhere(site)) == (UploadState.COMPLETE, {f"E/{released.path}"})
    assert source.stat().st_mode == mode  # the detector's own name of it is left alone


async def test_the_staff_release_a_file_with_a_reason(site: Site, quarantine: Quarantine) -> None:
    upload = await site.send("evil_data_000001.h5", EVIL)
    await site.send("evil_data_000001.h5", b"another")
    released = await quarantine.release(SAM, upload.id, "looked at it with h5dump")
    assert (released.state, released.path) == (UploadState.COMPLETE, "raw/version-2/evil_data_000001.h5")
    assert "released from quarantine by sam: looked at it with h5dump" in released.error
    assert everywhere(site) == {"E/raw/evil_data_000001.h5", "E/raw/version-2/evil_data_000001.h5"}
    assert told(site, upload)[1:] == [("file.released", "sam", "looked at it with h5dump")]
    for again in (quarantine.release, quarantine.delete):
        with pytest.raises(Conflict):
            await again(SAM, upload.id, "again")


async def test_a_later_version_is_released_as_that_version(site: Site, quarantine: Quarantine) -> None:
    name = "run/evil_data_000001.h5"
    first, upload = await site.send(name, b"harmless"), await site.send(name, EVIL)
    assert (upload.state, upload.version) == (UploadState.QUARANTINED, 2)
    released = await quarantine.release(SAM, upload.id, "looked at it with h5dump")
    assert (released.path, released.version) == (f"raw/run/version-2/{PurePosixPath(name).name}", 2)
    assert (await site.uploads.get(SAM, first.id)).state is UploadState.SUPERSEDED
    assert (await site.send(name, b"the next")).version == 3


async def test_the_staff_delete_a_file_with_a_reason(site: Site, quarantine: Quarantine) -> None:
    upload = await site.send("evil_data_000001.h5", EVIL)
    deleted = await quarantine.delete(SAM, upload.id, "an attack")
    assert deleted.state is UploadState.FAILED
    assert "deleted from quarantine by sam: an attack" in deleted.error
    assert everywhere(site) == set()
    assert told(site, upload)[1:] == [("file.deleted", "sam", "an attack")]


async def test_nobody_else_decides(site: Site, quarantine: Quarantine) -> None:
    upload = await site.send("evil_data_000001.h5", EVIL)
    for somebody in (ADA, EVE, AGENT):
        for attempt in (quarantine.release, quarantine.delete):
            with pytest.raises((Forbidden, NotFound)):
                await attempt(somebody, upload.id, "please")
        with pytest.raises((Forbidden, NotFound)):
            await quarantine.list(somebody, "mx")
    assert everywhere(site) == {f".quarantine/E/{upload.id}"}


async def test_what_a_kill_left_half_done_is_ended(site: Site, quarantine: Quarantine) -> None:
    kept = await site.send("a_data_000001.h5", EVIL)
    freed = await site.send("b_data_000001.h5", EVIL)
    gone = await site.send("c_data_000001.h5", EVIL)
    files = Incoming(site.folder)
    files.release(kept)  # a kill came before the release was on record
    spare = site.folder / "spare"
    spare.hardlink_to(files.quarantined(freed))
    await quarantine.release(SAM, freed.id, "fine")
    files.quarantined(freed).hardlink_to(spare)  # … before the second name was removed
    spare.unlink()
    await quarantine.delete(SAM, gone.id, "bad")
    files.quarantined(gone).write_bytes(EVIL)  # … before the file was removed
    for _ in range(2):
        await asyncio.gather(quarantine.recover(), quarantine.recover())
        assert everywhere(site) == {f".quarantine/E/{kept.id}", "E/raw/b_data_000001.h5"}
    assert files.quarantined(kept).stat().st_mode & 0o777 == 0o600


async def test_what_is_being_released_is_not_deleted_beside_it(site: Site, quarantine: Quarantine) -> None:
    upload = await site.send("evil_data_000001.h5", EVIL)
    releasing = Incoming(site.folder).claim(site.experiment, [upload.path])  # as a release does
    assert releasing is not None
    deleting = asyncio.create_task(quarantine.delete(SAM, upload.id, "hostile"))
    await asyncio.wait({deleting}, timeout=0.5)
    assert not deleting.done()
    os.close(releasing)
    assert (await deleting).state is UploadState.FAILED
    assert everywhere(site) == set()
