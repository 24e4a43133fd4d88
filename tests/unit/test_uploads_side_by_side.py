"""Several processes take uploads side by side: nothing but the store and the disk is common to them."""

from __future__ import annotations

import asyncio
import fcntl
import os

import pytest
from beamhub.errors import Conflict, Gone
from beamhub.incoming import BLOCK
from beamhub.leftovers import EXPIRES
from beamhub.schemas import UploadState
from beamhub.uploads import Uploads

from tests.unit.uploading import ADA, AGENT, Halting, Site, parts


async def test_any_process_takes_the_next_part(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(1000)
    upload = await site.announce("a.bin", content)
    for start, uploads in zip(range(0, 1000, 250), [elsewhere, site.uploads] * 2, strict=True):
        done = await uploads.append(AGENT, upload.id, start, parts(content[start : start + 250]))
    assert done.state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == content
    assert await elsewhere.get(ADA, upload.id) == await site.uploads.get(ADA, upload.id)


async def test_what_one_process_has_in_hand_no_other_touches(site: Site, elsewhere: Uploads) -> None:
    upload = await site.announce("a.bin", b"12345678")
    body = Halting(b"1234", b"5678")
    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, body))
    await body.halts.wait()
    with pytest.raises(Conflict):
        await elsewhere.append(AGENT, upload.id, 0, parts(b"12345678"))
    await elsewhere.leftovers.recover()
    for seconds in (0.0, 2 * EXPIRES.total_seconds()):
        await elsewhere.leftovers.expire(seconds)
    body.go_on.set()
    assert (await first).state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == b"12345678"


async def test_giving_up_in_one_process_stops_another(site: Site, elsewhere: Uploads) -> None:
    upload = await site.announce("a.bin", b"x" * 4 * BLOCK)
    body = Halting(b"x" * BLOCK, b"x" * 3 * BLOCK)
    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, body))
    await body.halts.wait()
    await elsewhere.terminate(AGENT, upload.id)
    body.go_on.set()
    with pytest.raises(Gone):
        await first
    assert site.published() == set()
    assert site.incoming() == []


async def test_two_processes_publish_the_same_file_once(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(5000)
    announced = [await site.announce("a.bin", content) for _ in range(6)]
    done = await asyncio.gather(
        *(
            uploads.append(AGENT, upload.id, 0, parts(content))
            for upload, uploads in zip(announced, [site.uploads, elsewhere] * 3, strict=True)
        )
    )
    assert site.published() == {"raw/a.bin"}
    assert {upload.path for upload in done} == {"raw/a.bin"}
    assert len(site.events("file.complete")) == 1
    assert site.incoming() == []


async def test_a_look_at_a_file_keeps_its_sender_waiting_and_not_out(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    with (site.folder / site.experiment / ".incoming" / upload.id).open("rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        sending = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, parts(b"12345")))
        await asyncio.wait({sending}, timeout=0.2)
        assert not sending.done()
    assert (await sending).state is UploadState.COMPLETE
