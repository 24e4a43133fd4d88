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
