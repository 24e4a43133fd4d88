"""What kills and senders that went away leave: it is brought to its end, or expires."""

from __future__ import annotations

import asyncio
import os

import pytest
from beamhub.errors import NotFound
from beamhub.leftovers import EXPIRES
from beamhub.schemas import UploadState
from beamhub.uploads import Uploads

from tests.unit.uploading import AGENT, Site, begin_part, parts


async def test_what_is_not_continued_expires(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    for seconds in (0.0, EXPIRES.total_seconds() - 60):
        await site.uploads.leftovers.expire(seconds)
        assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.RECEIVING
    await site.uploads.leftovers.expire(EXPIRES.total_seconds() + 60)
    assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    assert site.incoming() == []


async def test_one_process_ends_what_another_has_left(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(1000)
    upload = await site.announce("a.bin", content)
    incoming = site.folder / site.experiment / ".incoming"
    (incoming / upload.id).write_bytes(content)  # all has come, then a kill
    gone = await site.announce("gone.bin", content)
    (incoming / gone.id).unlink()
    (incoming / "orphan").touch()
    await asyncio.gather(elsewhere.leftovers.recover(), site.uploads.leftovers.recover())
    await asyncio.gather(*elsewhere.publications.tasks, *site.uploads.publications.tasks)
    assert site.content("raw/a.bin") == content
    assert [event.subject for event in site.events("file.complete")] == [upload.id]
    assert [event.subject for event in site.events("upload.failed")] == [gone.id]
    assert site.incoming() == []


async def test_an_announcement_beside_a_recovery_keeps_its_file(site: Site, elsewhere: Uploads) -> None:
    """Between the temporary file and the row that tells whose it is."""

    async def announce() -> None:
        for number in range(30):
            content = os.urandom(10)
            upload = await site.announce(f"{number}.bin", content)
            await site.uploads.append(AGENT, upload.id, 0, parts(content))

    announcing = asyncio.create_task(announce())
    while not announcing.done():
        await elsewhere.leftovers.recover()
    await announcing
    assert len(site.published()) == 30
    assert site.events("upload.failed") == []


async def test_parts_given_up_or_not_continued_leave_nothing(site: Site) -> None:
    given_up, forgotten = await begin_part(site, b"1"), await begin_part(site, b"22", sent=1)
    await site.uploads.terminate(AGENT, given_up.id)
    for seconds in (0.0, EXPIRES.total_seconds() + 60):
        await site.uploads.leftovers.expire(seconds)
    for part in (given_up, forgotten):
        with pytest.raises(NotFound):
            await site.uploads.get(AGENT, part.id)
    assert site.incoming() == []


async def test_a_file_that_can_not_be_looked_after_keeps_no_other_from_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    incoming = site.folder / site.experiment / ".incoming"
    size = incoming.stat().st_size
    odd = await site.announce("odd.bin", bytes(size))
    whole = await site.announce("a.bin", b"12345")
    (incoming / odd.id).unlink()
    for name in ("lost+found", odd.id):
        (incoming / name).mkdir()
    assert (incoming / odd.id).stat().st_size == size, "it looks complete"
    (incoming / whole.id).write_bytes(b"12345")
    await site.uploads.leftovers.recover()
    await asyncio.gather(*site.uploads.publications.tasks)
    assert site.published() == {"raw/a.bin"}
    for seconds in (0.0, 2 * EXPIRES.total_seconds()):
        await site.uploads.leftovers.expire(seconds)
    for name in ("lost+found", "odd.bin"):
        assert f"{name} can't be looked after" in caplog.text.replace(")", "")


@pytest.mark.parametrize("end", ["terminated", "expired", "damaged", "gone"])
async def test_what_is_given_up_after_a_kill_keeps_no_name(site: Site, end: str) -> None:
    """The kill came between a file's publication and its commit."""
    upload = await site.announce("a.bin", b"12345")
    temporary = site.folder / site.experiment / ".incoming" / upload.id
    temporary.write_bytes(b"12345" if end != "damaged" else b"54321")
    published = site.folder / site.experiment / "raw" / "a.bin"
    if end != "gone":
        os.link(temporary, published)
    match end:
        case "terminated":
            await site.uploads.terminate(AGENT, upload.id)
        case "expired":
            for seconds in (0.0, EXPIRES.total_seconds() + 60):
                await site.uploads.leftovers.expire(seconds)
        case "damaged":
            await site.uploads.leftovers.recover()
            await asyncio.gather(*site.uploads.publications.tasks, return_exceptions=True)
        case "gone":
            temporary.unlink()
            published.write_bytes(b"not its own")
            await site.uploads.leftovers.recover()
    assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    assert site.incoming() == []
    assert site.published() == ({"raw/a.bin"} if end == "gone" else set())


async def test_what_has_come_otherwise_since_a_kill_is_there_once(site: Site) -> None:
    killed = await site.announce("a.bin", b"12345")
    temporary = site.folder / site.experiment / ".incoming" / killed.id
    temporary.write_bytes(b"12345")
    second = site.folder / site.experiment / "raw" / "version-2" / "a.bin"
    second.parent.mkdir()
    os.link(temporary, second)
    other = await site.uploads.create(AGENT, "a.bin", 5)
    await site.uploads.append(AGENT, other.id, 0, parts(b"12345"))
    await site.uploads.leftovers.recover()
    await asyncio.gather(*site.uploads.publications.tasks)
    assert (await site.uploads.get(AGENT, killed.id)).state is UploadState.SUPERSEDED
    assert site.published() == {"raw/a.bin"}
