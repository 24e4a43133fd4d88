"""Many small files at once: each comes to what it would come to by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Sequence

import pytest
from beamhub.batches import BATCH_FILE, Whole
from beamhub.errors import (
    BadName,
    ChecksumMismatch,
    Conflict,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooLarge,
    TooMany,
    Unavailable,
)
from beamhub.orders import Orders
from beamhub.publications import Findings
from beamhub.schemas import ExperimentChange, Upload, UploadState
from beamhub.uploads import Uploads

from tests.unit.uploading import ADA, AGENT, EVE, SAM, Site, deliver, parts, sha256


def whole(name: str, content: bytes, *, key: str | None = None, digest: str | None = None) -> Whole:
    return Whole(name, memoryview(content), digest or sha256(content), key)


async def test_many_files_arrive_at_once(site: Site) -> None:
    contents = {f"run/{number:03}.txt": os.urandom(number) for number in range(100)}
    done = await deliver(site.uploads, AGENT, [whole(name, one) for name, one in contents.items()])
    for upload, (name, content) in zip(done, contents.items(), strict=True):
        assert isinstance(upload, Upload)
        assert (upload.state, upload.path, upload.version) == (UploadState.COMPLETE, f"raw/{name}", 1)
        assert (upload.size, upload.offset, upload.digest) == (len(content),) * 2 + (sha256(content),)
        assert site.content(upload.path) == content
        assert await site.uploads.get(ADA, upload.id) == upload
        path = site.folder / site.experiment / upload.path
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_nlink) == (0o440, 1)
    assert site.incoming() == []
    events = site.events("file.complete")
    assert [(event.subject, event.data["path"]) for event in events] == [
        (upload.id, upload.path) for upload in done if isinstance(upload, Upload)
    ]
    assert {(event.experiment, event.instrument, event.actor) for event in events} == {
        (site.experiment, "mx", AGENT.name)
    }


KEPT_OUT = """
import asyncio, sys
from pathlib import Path
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.frames.inspect import Inspector
from beamhub.store import Store
from beamhub.uploads import Uploads
from tests.unit.test_batches import whole
from tests.unit.uploading import AGENT, deliver, parts

async def main(url, folder, closed):
    store, inspector = Store(url), Inspector()
    uploads = Uploads(store, Live(), folder, Datasets(store, folder, inspector).examine)
    closed.chmod(0)
    names = ("closed/a.txt", "open.txt", "closed/below/b.txt")
    files = [whole(name, name.encode(), key=name) for name in names]
    for answer in await deliver(uploads, AGENT, files):
        print(getattr(answer, "state", None) or f"{type(answer).__name__}: {answer}")
    one = await uploads.create(AGENT, "closed/c.txt", 1)
    try:
        await uploads.append(AGENT, one.id, 0, parts(b"c"))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    closed.chmod(0o750)
    for answer in await deliver(uploads, AGENT, files):
        print(getattr(answer, "state", answer))
    await uploads.close()
    await inspector.close()
    store.close()

asyncio.run(main(sys.argv[1], *map(Path, sys.argv[2:])))
"""


def test_a_folder_that_the_service_may_not_enter_is_told(site: Site, database_url: str) -> None:
    closed = site.folder / site.experiment / "raw" / "closed"
    closed.mkdir()
    mere_owner = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    script = [sys.executable, "-c", KEPT_OUT, database_url, str(site.folder), str(closed)]
    done = subprocess.run([*mere_owner, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = (
        f"Unavailable: The service can't put raw/closed/{{}} into the folder of {site.experiment}: "
        "permission denied. Tell the facility's operators; then send on: what has arrived is kept."
    )
    assert done.stdout.splitlines() == [
        refused.format("a.txt"),
        "complete",
        refused.format("below/b.txt"),
        refused.format("c.txt"),
        *["complete"] * 3,
    ]
    assert site.content("raw/closed/a.txt") == b"closed/a.txt"


async def test_a_bad_file_among_many_is_refused_alone(site: Site) -> None:
    first = await site.send("known.txt", b"known")
    await site.send("other.txt", b"one")
    await site.send("folder/file.txt", b"x")
    files = [
        whole("good.txt", b"good"),
        whole("../bad.txt", b"bad"),
        whole("damaged.txt", b"damaged", digest=sha256(b"whole")),
        whole("known.txt", b"known"),
        whole("other.txt", b"two"),
        whole("twice.txt", b"1"),
        whole("twice.txt", b"2"),
        whole("folder/file.txt/below.txt", b"x"),
        whole("large.bin", bytes(BATCH_FILE + 1)),
        whole("strange.bin", b"", digest="md5:0"),
        Whole("trusting.txt", memoryview(b"trusting")),
        whole("last.txt", b"last"),
    ]
    answers = await deliver(site.uploads, AGENT, files)
    expected = [
        None,
        BadName,
        ChecksumMismatch,
        None,
        None,
        Invalid,
        Invalid,
        Conflict,
        TooLarge,
        Invalid,
        None,
        None,
    ]
    assert [None if isinstance(one, Upload) else type(one) for one in answers] == expected
    good, known, version, trusting, last = (one for one in answers if isinstance(one, Upload))
    assert known.id == first.id
    assert (version.path, version.version) == ("raw/version-2/other.txt", 2)
    assert (trusting.digest, trusting.digest_by) == (sha256(b"trusting"), "service")
    assert {good.state, trusting.state, last.state} == {UploadState.COMPLETE}
    assert site.published() == {
        *(f"raw/{name}.txt" for name in ("known", "other", "folder/file", "good", "trusting", "last")),
        "raw/version-2/other.txt",
    }
    assert site.incoming() == []
    states = {u.path: u.state for u in (await site.uploads.list(ADA, site.experiment)).items}
    assert states["raw/other.txt"] is UploadState.SUPERSEDED
    assert states["raw/folder/file.txt/below.txt"] is UploadState.FAILED


async def test_a_batch_repeated_with_its_keys_publishes_nothing_new(site: Site) -> None:
    files = [whole(f"{number}.txt", b"content", key=f"key-{number}") for number in range(5)]
    first = await deliver(site.uploads, AGENT, files[:3])
    begun = await site.uploads.create(AGENT, "3.txt", 7, sha256(b"content"), key="key-3")
    await site.uploads.append(AGENT, begun.id, 0, parts(b"con"))
    again = await deliver(site.uploads, AGENT, files)
    assert list(again[:3]) == list(first)
    assert isinstance(again[3], Upload)
    assert (again[3].id, again[3].state) == (begun.id, UploadState.COMPLETE)
    (other,) = await deliver(site.uploads, AGENT, [whole("0.txt", b"another", key="key-0")])
    assert isinstance(other, Invalid)
    assert site.published() == {f"raw/{number}.txt" for number in range(5)}
    assert len(site.events("file.complete")) == 5


async def test_the_same_batch_sent_at_once_by_two_processes_is_published_once(
    site: Site, elsewhere: Uploads
) -> None:
    files = [whole(f"{number}.txt", os.urandom(100), key=f"key-{number}") for number in range(20)]
    recovering = asyncio.create_task(elsewhere.leftovers.recover())
    told = await asyncio.gather(
        *(deliver(uploads, AGENT, files) for uploads in [site.uploads, elsewhere] * 2)
    )
    await recovering
    for answers in told:
        refused = [answer for answer in answers if not isinstance(answer, Upload)]
        assert {type(problem) for problem in refused} <= {Conflict}  # somebody else just sends it
    done = await deliver(site.uploads, AGENT, files)
    assert all(isinstance(one, Upload) and one.state is UploadState.COMPLETE for one in done)
    assert site.published() == {f"raw/{number}.txt" for number in range(20)}
    assert len(site.events("file.complete")) == 20
    assert site.events("upload.failed") == []
    assert site.incoming() == []


async def test_batches_of_one_name_sent_at_once_all_stay(site: Site, elsewhere: Uploads) -> None:
    batches = [
        [whole(f"{n}.txt", os.urandom(10)) for n in (range(9) if turn else range(8, -1, -1))]
        for turn in range(2)
    ]
    told = await asyncio.gather(
        deliver(site.uploads, AGENT, batches[0]), deliver(elsewhere, AGENT, batches[1])
    )
    paths = [upload.path for answers in told for upload in answers if isinstance(upload, Upload)]
    assert len(set(paths)) == 18
    assert site.published() == set(paths)


async def test_nothing_of_a_batch_begins_where_nothing_may(site: Site) -> None:
    files = [whole("a.txt", b"a", key="a"), whole("b.txt", b"b", key="b")]
    (done,) = await deliver(site.uploads, AGENT, files[:1])
    await Orders(site.store, site.live).pause(SAM, "mx", "detector service")
    begun, refused = await deliver(site.uploads, AGENT, files)
    assert begun == done  # what has begun is told of all the same
    assert isinstance(refused, Unavailable)
    (refused,) = await deliver(site.uploads, EVE, files[1:], site.experiment)
    assert isinstance(refused, NotFound)
    (refused,) = await deliver(site.uploads, ADA, files[1:])
    assert isinstance(refused, Invalid)
    (shared,) = await deliver(site.uploads, ADA, files[1:], site.experiment)
    assert isinstance(shared, Upload)
    assert shared.path == "shared/b.txt"


async def test_a_quota_cuts_a_batch(site: Site) -> None:
    await site.experiments.change(SAM, site.experiment, ExperimentChange(quota=1000))
    files = [whole(f"{number}.bin", bytes(300) + bytes([number])) for number in range(4)]
    files.append(whole("small.bin", bytes(97)))
    told = await deliver(site.uploads, AGENT, files)
    assert [isinstance(one, QuotaExceeded) for one in told] == [False, False, False, True, False]
    assert site.incoming() == []
    assert len(site.published()) == 4


async def test_a_sender_who_leaves_does_not_stop_its_batch(site: Site) -> None:
    files = [whole(f"{number}.bin", os.urandom(1000)) for number in range(10)]
    sending = asyncio.create_task(deliver(site.uploads, AGENT, files))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait({sending})
    await site.uploads.close()
    assert len(site.published()) == 10
    assert site.incoming() == []


async def test_a_batch_that_fails_when_its_sender_has_left_is_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def examine(_: Sequence[Upload]) -> Findings:
        started.set()
        await go.wait()
        raise RuntimeError("no process could be started")

    uploads = Uploads(site.store, site.live, site.folder, examine)
    sending = asyncio.create_task(deliver(uploads, AGENT, [whole("a.txt", b"a")]))
    await started.wait()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    go.set()
    await uploads.close()
    assert "a batch of 1 files could not be published" in caplog.text
    assert "no process could be started" in caplog.text


async def test_a_batch_counts_as_sixteen_requests_of_its_sender(site: Site) -> None:
    reception = site.uploads.reception
    with contextlib.ExitStack() as sending:
        for _ in range(3):
            sending.enter_context(reception.collecting(AGENT))
        for _ in range(16):
            sending.enter_context(reception.one_more(AGENT))
        with pytest.raises(TooMany), reception.one_more(AGENT):
            pass
        with reception.one_more(ADA):
            pass
    with contextlib.ExitStack() as sending:
        for _ in range(4):
            sending.enter_context(reception.collecting(AGENT))
        with pytest.raises(TooMany), reception.collecting(AGENT):
            pass
