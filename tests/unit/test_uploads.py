"""Uploads by the rules of tus: whatever arrives, in whatever order, damaged, twice, or not at all."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash
from beamhub.access import Principal
from beamhub.body import Chunks
from beamhub.datasets import Datasets
from beamhub.errors import (
    BeamhubError,
    ChecksumMismatch,
    Conflict,
    DigestRequired,
    DiskFull,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooLarge,
    Unavailable,
)
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.incoming import BLOCK, Incoming, Source, running_digest
from beamhub.orders import Orders
from beamhub.schemas import (
    DigestAlgorithm,
    Event,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    InstrumentChange,
    InstrumentCreate,
    Upload,
    UploadState,
)
from beamhub.store import Store
from beamhub.uploads import BATCH_FILE, CHECKSUMS, EXPIRES, MAX_SIZE, REWRITE, Findings, Uploads, Whole
from hypothesis import given, settings
from hypothesis import strategies as st

OPERATOR = Principal("root", "user", operator=True)
SAM, ADA, BEN, EVE = (Principal(name, "user") for name in ("sam", "ada", "ben", "eve"))
AGENT = Principal("instrument:mx", "instrument", instrument="mx")
OTHER_AGENT = Principal("instrument:other", "instrument", instrument="other")


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def xxh128(content: bytes) -> str:
    return f"xxh128:{xxhash.xxh3_128_hexdigest(content)}"


def parts(content: bytes, size: int = 1000) -> Chunks:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return Chunks(chunks())


async def broken(content: bytes) -> AsyncIterator[bytes]:
    """A connection that breaks after these bytes."""
    yield content
    raise ConnectionResetError("the peer has gone")


@dataclass
class Site:
    store: Store
    live: Live
    folder: Path
    experiments: Experiments
    uploads: Uploads
    experiment: str

    async def announce(self, name: str, content: bytes, who: Principal = AGENT) -> Upload:
        experiment = None if who.instrument else self.experiment
        return await self.uploads.create(who, name, len(content), sha256(content), experiment)

    async def send(self, name: str, content: bytes, who: Principal = AGENT) -> Upload:
        upload = await self.announce(name, content, who)
        if upload.state is not UploadState.RECEIVING:
            return upload
        return await self.uploads.append(who, upload.id, 0, parts(content))

    def content(self, path: str) -> bytes:
        return (self.folder / self.experiment / path).read_bytes()

    def published(self) -> set[str]:
        root = self.folder / self.experiment
        found = (path for area in ("raw", "shared") for path in (root / area).rglob("*") if path.is_file())
        return {str(path.relative_to(root)) for path in found}

    def incoming(self) -> list[str]:
        return os.listdir(self.folder / self.experiment / ".incoming")  # noqa: PTH208

    def events(self, *kinds: str) -> list[Event]:
        events = self.store.read_sync(lambda tx: tx.events.after(0, limit=1000))
        return [event for event in events if event.kind in kinds]


@pytest.fixture
async def site(tmp_path: Path, database_url: str) -> AsyncIterator[Site]:
    """One instrument `mx` with its active experiment of Ada's."""
    store, live, folder = Store(database_url), Live(), tmp_path / "data"
    store.migrate()
    folder.mkdir()
    experiments = Experiments(store, folder)
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="mx", title="MX", staff=["sam"]))
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="other", title="Other"))
    experiment = await experiments.create(SAM, ExperimentCreate(instrument="mx", title="L", pi="ada"))
    await experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment.id))
    inspector = Inspector()
    datasets = Datasets(store, folder, inspector)
    uploads = Uploads(store, live, folder, datasets.examine)
    yield Site(store, live, folder, experiments, uploads, experiment.id)
    await uploads.close()
    await inspector.close()
    store.close()


async def test_a_file_arrives(site: Site) -> None:
    content = os.urandom(3 * BLOCK + 17)
    upload = await site.announce("run/lyso.bin", content)
    assert (upload.state, upload.offset, upload.path) == (UploadState.RECEIVING, 0, "raw/run/lyso.bin")
    assert site.published() == set()
    done = await site.uploads.append(AGENT, upload.id, 0, parts(content, 70_000))
    assert (done.state, done.offset, done.version) == (UploadState.COMPLETE, len(content), 1)
    assert done.ended
    assert site.content("raw/run/lyso.bin") == content
    assert site.incoming() == []
    (event,) = site.events("file.complete")
    assert (event.subject, event.data) == (upload.id, {"path": "raw/run/lyso.bin", "size": len(content)})
    assert (event.experiment, event.instrument, event.actor) == (site.experiment, "mx", AGENT.name)
    assert await site.uploads.get(ADA, upload.id) == done
    mode = stat.S_IMODE((site.folder / site.experiment / "raw/run/lyso.bin").stat().st_mode)
    assert mode == 0o440  # what has been measured is never changed


async def test_a_user_sends_into_shared(site: Site) -> None:
    done = await site.send("notes/a.txt", b"hello", ADA)
    assert (done.path, done.instrument) == ("shared/notes/a.txt", None)
    assert site.content("shared/notes/a.txt") == b"hello"


async def test_an_empty_file_is_complete_at_once(site: Site) -> None:
    upload = await site.announce("empty.txt", b"")
    assert upload.state is UploadState.COMPLETE
    assert site.content("raw/empty.txt") == b""


async def test_a_broken_connection_keeps_what_has_come(site: Site) -> None:
    content = os.urandom(10_000)
    upload = await site.announce("a.bin", content)
    with pytest.raises(ConnectionResetError):
        await site.uploads.append(AGENT, upload.id, 0, Chunks(broken(content[:4000])))
    assert (await site.uploads.get(AGENT, upload.id)).offset == 4000
    done = await site.uploads.append(AGENT, upload.id, 4000, parts(content[4000:]))
    assert done.state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == content


@pytest.mark.parametrize("offset", [0, 1, 499, 501, 1000, 10**12, -1])
async def test_a_wrong_offset_changes_nothing(site: Site, offset: int) -> None:
    content = os.urandom(1000)
    upload = await site.announce("a.bin", content)
    await site.uploads.append(AGENT, upload.id, 0, parts(content[:500]))
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, offset, parts(content[500:]))
    assert (await site.uploads.get(AGENT, upload.id)).offset == 500
    assert (
        await site.uploads.append(AGENT, upload.id, 500, parts(content[500:]))
    ).state is UploadState.COMPLETE


@pytest.mark.parametrize("algorithm", CHECKSUMS)
async def test_a_damaged_part_is_discarded(site: Site, algorithm: str) -> None:
    content = os.urandom(2 * BLOCK)
    upload = await site.announce("a.bin", content)
    half = len(content) // 2

    def checksum(part: bytes) -> bytes:
        hasher = CHECKSUMS[algorithm]()
        hasher.update(part)
        return hasher.digest()

    good = checksum(content[:half])
    await site.uploads.append(AGENT, upload.id, 0, parts(content[:half]), (algorithm, good))
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, upload.id, half, parts(content[half:]), (algorithm, good))
    assert (await site.uploads.get(AGENT, upload.id)).offset == half
    with pytest.raises(ConnectionResetError):  # half a part has nothing that vouches for it
        await site.uploads.append(AGENT, upload.id, half, Chunks(broken(content[half:-5])), (algorithm, good))
    assert (await site.uploads.get(AGENT, upload.id)).offset == half
    with pytest.raises(Invalid):
        await site.uploads.append(AGENT, upload.id, half, parts(content[half:]), ("crc7", good))
    right = checksum(content[half:])
    done = await site.uploads.append(AGENT, upload.id, half, parts(content[half:]), (algorithm, right))
    assert done.state is UploadState.COMPLETE


async def test_another_content_than_announced_is_never_published(site: Site) -> None:
    upload = await site.uploads.create(AGENT, "a.bin", 5, sha256(b"right"))
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"wrong"))
    failed = await site.uploads.get(AGENT, upload.id)
    assert failed.state is UploadState.FAILED
    assert failed.error
    assert site.published() == set()
    assert site.incoming() == []
    assert [event.subject for event in site.events("upload.failed", "file.complete")] == [upload.id]
    with pytest.raises(Gone):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"right"))
    assert (await site.send("a.bin", b"right")).state is UploadState.COMPLETE


async def test_more_than_announced_is_too_large(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    with pytest.raises(TooLarge):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"123456", 4))
    assert (await site.uploads.get(AGENT, upload.id)).offset <= 5
    assert site.published() == set()


async def test_the_same_again_is_no_work_and_another_content_a_version(site: Site) -> None:
    first = await site.send("run/a.bin", b"one")
    assert (await site.announce("run/a.bin", b"one")).id == first.id
    second = await site.send("run/a.bin", b"two")
    assert (second.path, second.version) == ("raw/run/version-2/a.bin", 2)
    third = await site.send("run/a.bin", b"three")
    assert (third.path, third.version) == ("raw/run/version-3/a.bin", 3)
    assert site.content("raw/run/a.bin") == b"one"
    assert site.content("raw/run/version-2/a.bin") == b"two"
    states = {u.id: u.state for u in (await site.uploads.list(ADA, site.experiment)).items}
    assert states == {
        first.id: UploadState.SUPERSEDED,
        second.id: UploadState.SUPERSEDED,
        third.id: UploadState.COMPLETE,
    }
    again = await site.announce("run/a.bin", b"two")
    assert (again.id, again.offset, again.state) == (second.id, 3, UploadState.SUPERSEDED)
    assert len(site.events("file.complete")) == 3


@pytest.mark.parametrize("who", [AGENT, ADA])
async def test_the_same_content_is_the_same_by_any_digest(site: Site, who: Principal) -> None:
    experiment = None if who.instrument else site.experiment

    async def announce(content: bytes, digest: str | None) -> Upload:
        return await site.uploads.create(who, "a", len(content), digest, experiment)

    async def send(content: bytes, digest: str | None) -> Upload:
        upload = await announce(content, digest)
        return await site.uploads.append(who, upload.id, 0, parts(content))

    content, other = os.urandom(1000), os.urandom(1000)
    first = await send(content, xxh128(content))
    assert (first.digest, first.digest_by) == (xxh128(content), "sender")
    for digest in (sha256(content), xxh128(content)):
        assert (await announce(content, digest)).id == first.id
    assert (await announce(other, sha256(other))).state is UploadState.RECEIVING
    assert (await announce(other, sha256(content))).id == first.id  # nothing else vouches for the content
    merged = await send(content, None)  # recognised only when all has come
    assert (merged.state, merged.path) == (UploadState.SUPERSEDED, first.path)
    second = await send(other, None)
    assert (second.version, second.digest, second.digest_by) == (2, sha256(other), "service")
    for digest in (sha256(other), xxh128(other)):
        assert (await announce(other, digest)).id == second.id
    assert len(site.events("file.complete")) == 2


async def test_a_digest_of_either_algorithm_is_held_against_the_bytes(site: Site) -> None:
    for digest in (sha256, xxh128):
        upload = await site.uploads.create(AGENT, "a.bin", 5, digest(b"right"))
        with pytest.raises(ChecksumMismatch):
            await site.uploads.append(AGENT, upload.id, 0, parts(b"wrong"))
        assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    assert site.published() == set()


async def test_an_announcement_repeated_with_its_key_begins_nothing_new(site: Site) -> None:
    async def announce(content: bytes, key: str = "k", who: Principal = AGENT) -> Upload:
        experiment = None if who.instrument else site.experiment
        return await site.uploads.create(who, "a", len(content), sha256(content), experiment, key=key)

    first, second = await asyncio.gather(announce(b"content"), announce(b"content"))
    assert first.id == second.id
    await site.uploads.append(AGENT, first.id, 0, parts(b"con"))
    assert (await announce(b"content")).offset == 3
    assert (await announce(b"content", key="another")).id != first.id
    assert (await announce(b"content", who=ADA)).id != first.id
    with pytest.raises(Invalid):
        await announce(b"another")

    await site.uploads.append(AGENT, first.id, 3, parts(b"tent"))
    assert (await announce(b"content")).state is UploadState.COMPLETE


async def test_the_same_file_sent_by_many_at_once_is_published_once(site: Site) -> None:
    content = os.urandom(5000)
    announced = [await site.announce("a.bin", content) for _ in range(6)]
    done = await asyncio.gather(
        *(site.uploads.append(AGENT, upload.id, 0, parts(content)) for upload in announced)
    )
    assert site.published() == {"raw/a.bin"}
    assert {upload.path for upload in done} == {"raw/a.bin"}
    assert all(upload.offset == len(content) for upload in done)
    assert len(site.events("file.complete")) == 1
    assert site.incoming() == []


async def test_different_files_of_one_name_sent_at_once_all_stay(site: Site) -> None:
    contents = [os.urandom(100) for _ in range(6)]
    done = await asyncio.gather(*(site.send("a.bin", content) for content in contents))
    assert sorted(upload.version for upload in done) == [1, 2, 3, 4, 5, 6]
    assert {site.content(upload.path) for upload in done} == set(contents)
    states = [u.state for u in (await site.uploads.list(ADA, site.experiment)).items]
    assert states.count(UploadState.COMPLETE) == 1


async def test_a_shared_file_that_was_changed_is_sent_again(site: Site) -> None:
    await site.send("a.txt", b"one", ADA)
    path = site.folder / site.experiment / "shared" / "a.txt"
    path.chmod(0o600)
    path.write_bytes(b"new")
    assert (await site.send("a.txt", b"one", ADA)).path == "shared/version-2/a.txt"
    path.unlink()
    assert (await site.send("a.txt", b"three", ADA)).path == "shared/a.txt"


async def test_only_one_request_at_a_time_adds_to_an_upload(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345678")
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"1234"
        started.set()
        await go.wait()
        yield b"5678"

    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, Chunks(slow())))
    await started.wait()
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"12345678"))
    go.set()
    assert (await first).state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == b"12345678"


async def test_a_sender_who_leaves_after_the_last_byte_stops_nothing(site: Site) -> None:
    content = os.urandom(4 * BLOCK)
    upload = await site.announce("a.bin", content)
    with site.live.subscribe() as queue:
        task = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, parts(content)))
        while (await queue.get()).data["offset"] < len(content):
            pass
        task.cancel()
        await asyncio.wait({task})
    assert task.cancelled()
    await site.uploads.close()  # waits for what is being published
    assert site.content("raw/a.bin") == content
    assert [event.subject for event in site.events("file.complete")] == [upload.id]


@pytest.mark.parametrize("checked", [False, True])
async def test_a_sender_who_leaves_at_any_moment_leaves_no_holes(site: Site, checked: bool) -> None:
    """Cancelled while the bytes come in: what counts as arrived is what was sent, from the beginning."""
    content = os.urandom(20 * BLOCK)
    digest = hashlib.sha256(content).digest()
    for steps in range(0, 60, 3):
        upload = await site.announce(f"{checked}-{steps}.bin", content)
        checksum = ("sha256", digest) if checked else None
        task = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, parts(content, BLOCK), checksum))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        offset = (await site.uploads.get(AGENT, upload.id)).offset
        assert offset < len(content)
        assert offset % BLOCK == 0
        assert not (checked and offset)
        arrived = (site.folder / site.experiment / ".incoming" / upload.id).read_bytes()
        assert arrived == content[:offset]


async def test_the_answer_to_the_last_byte_may_be_asked_again(site: Site) -> None:
    upload = await site.announce("a.bin", b"123")
    first = await site.uploads.append(AGENT, upload.id, 0, parts(b"123"))
    assert await site.uploads.append(AGENT, upload.id, 3, parts(b"")) == first
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"123"))


async def test_progress_is_shown_live(site: Site) -> None:
    content = os.urandom(BLOCK)
    upload = await site.announce("a.bin", content)
    with site.live.subscribe() as queue:
        await site.uploads.append(AGENT, upload.id, 0, parts(content))
        message = await asyncio.wait_for(queue.get(), 30)
    assert message.kind == "upload.progress"
    assert (message.subject, message.data["size"]) == (upload.id, BLOCK)
    assert (message.experiment, message.instrument) == (site.experiment, "mx")


async def test_terminating_forgets_the_bytes_but_never_a_published_file(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    await site.uploads.append(AGENT, upload.id, 0, parts(b"123"))
    await site.uploads.terminate(AGENT, upload.id)
    assert site.incoming() == []
    assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    with pytest.raises(Gone):
        await site.uploads.append(AGENT, upload.id, 3, parts(b"45"))
    with pytest.raises(Conflict):
        await site.uploads.terminate(AGENT, upload.id)
    done = await site.send("a.bin", b"12345")
    with pytest.raises(Conflict):
        await site.uploads.terminate(AGENT, done.id)
    assert site.content("raw/a.bin") == b"12345"


async def test_what_is_not_continued_expires(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    for seconds in (0.0, EXPIRES.total_seconds() - 60):
        await site.uploads.expire(seconds)
        assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.RECEIVING
    await site.uploads.expire(EXPIRES.total_seconds() + 60)
    assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    assert site.incoming() == []


async def test_while_paused_nothing_begins_and_what_is_on_its_way_is_finished(site: Site) -> None:
    orders = Orders(site.store, site.live)

    async def announce() -> Upload:
        return await site.uploads.create(AGENT, "a.bin", 5, sha256(b"12345"), key="k")

    upload = await announce()
    await site.uploads.append(AGENT, upload.id, 0, parts(b"123"))
    await orders.pause(SAM, "mx", "detector service")
    with pytest.raises(Unavailable, match="sam: detector service"):
        await site.send("b.bin", b"12345")
    assert (await announce()).offset == 3
    assert (await site.uploads.append(AGENT, upload.id, 3, parts(b"45"))).state is UploadState.COMPLETE
    assert (await site.send("notes.txt", b"x", ADA)).state is UploadState.COMPLETE
    await orders.resume(SAM, "mx")
    assert (await site.send("b.bin", b"12345")).state is UploadState.COMPLETE


# --- several processes side by side: nothing but the store and the disk is common to them ---


@pytest.fixture
async def elsewhere(site: Site, database_url: str) -> AsyncIterator[Uploads]:
    """What another process has."""
    store, inspector = Store(database_url), Inspector()
    uploads = Uploads(store, Live(), site.folder, Datasets(store, site.folder, inspector).examine)
    yield uploads
    await uploads.close()
    await inspector.close()
    store.close()


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
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"1234"
        started.set()
        await go.wait()
        yield b"5678"

    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, Chunks(slow())))
    await started.wait()
    with pytest.raises(Conflict):
        await elsewhere.append(AGENT, upload.id, 0, parts(b"12345678"))
    await elsewhere.recover()
    for seconds in (0.0, 2 * EXPIRES.total_seconds()):
        await elsewhere.expire(seconds)
    go.set()
    assert (await first).state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == b"12345678"


async def test_giving_up_in_one_process_stops_another(site: Site, elsewhere: Uploads) -> None:
    upload = await site.announce("a.bin", b"x" * 4 * BLOCK)
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * BLOCK
        started.set()
        await go.wait()
        yield b"x" * 3 * BLOCK

    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, Chunks(slow())))
    await started.wait()
    await elsewhere.terminate(AGENT, upload.id)
    go.set()
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


async def test_one_process_ends_what_another_has_left(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(1000)
    upload = await site.announce("a.bin", content)
    incoming = site.folder / site.experiment / ".incoming"
    (incoming / upload.id).write_bytes(content)  # all has come, then a kill
    gone = await site.announce("gone.bin", content)
    (incoming / gone.id).unlink()
    (incoming / "orphan").touch()
    await asyncio.gather(elsewhere.recover(), site.uploads.recover())
    await asyncio.gather(*elsewhere._finishing, *site.uploads._finishing)
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
        await elsewhere.recover()
    await announcing
    assert len(site.published()) == 30
    assert site.events("upload.failed") == []


async def test_a_look_at_a_file_keeps_its_sender_waiting_and_not_out(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    with (site.folder / site.experiment / ".incoming" / upload.id).open("rb") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        sending = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, parts(b"12345")))
        await asyncio.wait({sending}, timeout=0.2)
        assert not sending.done()
    assert (await sending).state is UploadState.COMPLETE


# --- many small files at once ---


def whole(name: str, content: bytes, *, key: str | None = None, digest: str | None = None) -> Whole:
    return Whole(name, memoryview(content), digest or sha256(content), key)


async def test_many_files_arrive_at_once(site: Site) -> None:
    contents = {f"run/{number:03}.txt": os.urandom(number) for number in range(100)}
    done = await site.uploads.deliver(AGENT, [whole(name, one) for name, one in contents.items()])
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
    answers = await site.uploads.deliver(AGENT, files)
    expected = [
        None,
        Invalid,
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
    first = await site.uploads.deliver(AGENT, files[:3])
    begun = await site.uploads.create(AGENT, "3.txt", 7, sha256(b"content"), key="key-3")
    await site.uploads.append(AGENT, begun.id, 0, parts(b"con"))
    again = await site.uploads.deliver(AGENT, files)
    assert list(again[:3]) == list(first)
    assert isinstance(again[3], Upload)
    assert (again[3].id, again[3].state) == (begun.id, UploadState.COMPLETE)
    (other,) = await site.uploads.deliver(AGENT, [whole("0.txt", b"another", key="key-0")])
    assert isinstance(other, Invalid)
    assert site.published() == {f"raw/{number}.txt" for number in range(5)}
    assert len(site.events("file.complete")) == 5


async def test_the_same_batch_sent_at_once_by_two_processes_is_published_once(
    site: Site, elsewhere: Uploads
) -> None:
    files = [whole(f"{number}.txt", os.urandom(100), key=f"key-{number}") for number in range(20)]
    recovering = asyncio.create_task(elsewhere.recover())
    told = await asyncio.gather(*(uploads.deliver(AGENT, files) for uploads in [site.uploads, elsewhere] * 2))
    await recovering
    for answers in told:
        refused = [answer for answer in answers if not isinstance(answer, Upload)]
        assert {type(problem) for problem in refused} <= {Conflict}  # somebody else just sends it
    done = await site.uploads.deliver(AGENT, files)
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
    told = await asyncio.gather(site.uploads.deliver(AGENT, batches[0]), elsewhere.deliver(AGENT, batches[1]))
    paths = [upload.path for answers in told for upload in answers if isinstance(upload, Upload)]
    assert len(set(paths)) == 18
    assert site.published() == set(paths)


async def test_nothing_of_a_batch_begins_where_nothing_may(site: Site) -> None:
    files = [whole("a.txt", b"a", key="a"), whole("b.txt", b"b", key="b")]
    (done,) = await site.uploads.deliver(AGENT, files[:1])
    await Orders(site.store, site.live).pause(SAM, "mx", "detector service")
    begun, refused = await site.uploads.deliver(AGENT, files)
    assert begun == done  # what has begun is told of all the same
    assert isinstance(refused, Unavailable)
    (refused,) = await site.uploads.deliver(EVE, files[1:], site.experiment)
    assert isinstance(refused, NotFound)
    (refused,) = await site.uploads.deliver(ADA, files[1:])
    assert isinstance(refused, Invalid)
    (shared,) = await site.uploads.deliver(ADA, files[1:], site.experiment)
    assert isinstance(shared, Upload)
    assert shared.path == "shared/b.txt"


async def test_a_quota_cuts_a_batch(site: Site) -> None:
    await site.experiments.change(SAM, site.experiment, ExperimentChange(quota=1000))
    files = [whole(f"{number}.bin", bytes(300) + bytes([number])) for number in range(4)]
    files.append(whole("small.bin", bytes(97)))
    told = await site.uploads.deliver(AGENT, files)
    assert [isinstance(one, QuotaExceeded) for one in told] == [False, False, False, True, False]
    assert site.incoming() == []
    assert len(site.published()) == 4


async def test_a_sender_who_leaves_does_not_stop_its_batch(site: Site) -> None:
    files = [whole(f"{number}.bin", os.urandom(1000)) for number in range(10)]
    sending = asyncio.create_task(site.uploads.deliver(AGENT, files))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait({sending})
    await site.uploads.close()
    assert len(site.published()) == 10
    assert site.incoming() == []


# --- parts ---


async def begin_part(
    site: Site, content: bytes, who: Principal = AGENT, *, sent: int | None = None
) -> Upload:
    experiment = None if who.instrument else site.experiment
    part = await site.uploads.create(who, "part", len(content), None, experiment, partial=True)
    return await site.uploads.append(who, part.id, 0, parts(content[:sent]))


async def concatenate(
    site: Site,
    pieces: list[Upload],
    digest: str | None = None,
    *,
    key: str | None = None,
    name: str = "a.bin",
) -> Upload:
    ids = [piece.id for piece in pieces]
    concat = f"final;{' '.join(ids)}"
    return await site.uploads.concatenate(AGENT, name, ids, concat, digest, key=key)


async def test_parts_become_one_verified_file_and_are_gone(site: Site) -> None:
    contents = [os.urandom(BLOCK + 1), b"", os.urandom(7)]
    whole = b"".join(contents)
    pieces = [await begin_part(site, content) for content in contents]
    assert {piece.state for piece in pieces} == {UploadState.RECEIVING}
    assert (await site.uploads.list(ADA, site.experiment)).items == []  # they are nobody else's affair
    await site.uploads.recover()  # nothing is published for all its bytes being there
    done = await concatenate(site, pieces, xxh128(whole), key="k")
    assert (done.state, done.size, done.offset) == (UploadState.COMPLETE, len(whole), len(whole))
    assert site.content("raw/a.bin") == whole
    assert site.published() == {"raw/a.bin"}
    assert site.incoming() == []
    assert (await concatenate(site, pieces, xxh128(whole), key="k")).id == done.id
    for piece in pieces:
        with pytest.raises(NotFound):
            await site.uploads.get(AGENT, piece.id)
    assert [event.subject for event in site.events("file.complete", "upload.failed")] == [done.id]
    with pytest.raises(Forbidden):
        await site.uploads.append(AGENT, done.id, done.size, parts(b""))


async def test_parts_that_do_not_make_the_file_change_nothing(site: Site) -> None:
    whole = await site.announce("whole.bin", b"12345")
    bens = await begin_part(site, b"123", ADA)
    begun, first = await begin_part(site, b"12345", sent=3), await begin_part(site, b"0")
    for pieces, error in (
        ([first, begun], Conflict),  # not complete
        ([first, first], Invalid),
        ([first, whole], Invalid),
        ([first, bens], NotFound),
    ):
        with pytest.raises(error):
            await concatenate(site, pieces)
    assert set(site.incoming()) == {whole.id, bens.id, begun.id, first.id}
    await site.uploads.append(AGENT, begun.id, 3, parts(b"45"))
    with pytest.raises(ChecksumMismatch):
        await concatenate(site, [first, begun], sha256(b"other"))
    assert site.published() == set()
    assert set(site.incoming()) == {whole.id, bens.id}


async def test_parts_given_up_or_not_continued_leave_nothing(site: Site) -> None:
    given_up, forgotten = await begin_part(site, b"1"), await begin_part(site, b"22", sent=1)
    await site.uploads.terminate(AGENT, given_up.id)
    for seconds in (0.0, EXPIRES.total_seconds() + 60):
        await site.uploads.expire(seconds)
    for part in (given_up, forgotten):
        with pytest.raises(NotFound):
            await site.uploads.get(AGENT, part.id)
    assert site.incoming() == []


# --- quota ---


async def test_a_quota_holds_back_what_does_not_fit_until_it_is_raised(site: Site) -> None:
    async def set_quota(quota: int | None, who: Principal = SAM) -> None:
        await site.experiments.change(who, site.experiment, ExperimentChange(quota=quota))

    with pytest.raises(Forbidden):
        await set_quota(10**9, ADA)
    await set_quota(1000)
    await site.send("a.bin", bytes(600))
    await site.send("a.bin", bytes(600))  # the same again costs nothing
    with pytest.raises(QuotaExceeded, match="its quota is 1000"):
        await site.announce("b.bin", bytes(401))
    assert site.incoming() == []
    going = await site.announce("b.txt", bytes(400), ADA)
    await site.uploads.append(ADA, going.id, 0, parts(bytes(100)))
    with pytest.raises(QuotaExceeded):  # what is on its way counts in full
        await site.announce("c.bin", b"1")
    await set_quota(700)
    with pytest.raises(QuotaExceeded):
        await site.uploads.append(ADA, going.id, 100, parts(bytes(300)))
    assert (await site.uploads.get(ADA, going.id)).offset == 100
    await set_quota(None)
    assert (await site.uploads.append(ADA, going.id, 100, parts(bytes(300)))).state is UploadState.COMPLETE
    changes = [event.data for event in site.events("experiment.changed")]
    assert changes[-3:] == [{"quota": 1000}, {"quota": 700}, {"quota": None}]


async def test_announcements_at_once_do_not_overrun_a_quota(site: Site) -> None:
    await site.experiments.change(SAM, site.experiment, ExperimentChange(quota=1000))
    told = await asyncio.gather(
        *(site.announce(f"{n}.bin", bytes(300)) for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(one, Upload) for one in told) == 3
    assert sum(isinstance(one, QuotaExceeded) for one in told) == 5
    assert len(site.incoming()) == 3


# --- lengths and digests that follow ---


async def test_a_digest_that_comes_with_the_last_bytes(site: Site) -> None:
    content = os.urandom(3000)
    upload = await site.uploads.create(AGENT, "a.bin", 3000, digest_follows="xxh128")
    assert (upload.digest, upload.digest_by, upload.digest_follows) == (None, "sender", "xxh128")
    begun = await site.uploads.append(AGENT, upload.id, 0, parts(content[:2000]))
    assert begun.state is UploadState.RECEIVING
    done = await site.uploads.append(AGENT, upload.id, 2000, parts(content[2000:]), digest=xxh128(content))
    assert (done.state, done.digest, done.digest_by) == (UploadState.COMPLETE, xxh128(content), "sender")
    assert site.content("raw/a.bin") == content


@pytest.mark.parametrize("size", [0, 3000])
async def test_nothing_is_published_before_its_digest_has_come(site: Site, size: int) -> None:
    content = os.urandom(size)
    upload = await site.uploads.create(AGENT, "a.bin", size, digest_follows="xxh128", key="k")
    all_there = await site.uploads.append(AGENT, upload.id, 0, parts(content))
    assert (all_there.state, all_there.offset) == (UploadState.RECEIVING, size)
    await site.uploads.recover()
    again = await site.uploads.create(AGENT, "a.bin", size, digest_follows="xxh128", key="k")
    assert (again.id, again.state) == (upload.id, UploadState.RECEIVING)
    assert site.published() == set()
    for wrong in (sha256(content), "xxh128:0"):
        with pytest.raises(Invalid):
            await site.uploads.append(AGENT, upload.id, size, parts(b""), digest=wrong)
    done = await site.uploads.append(AGENT, upload.id, size, parts(b""), digest=xxh128(content))
    assert done.state is UploadState.COMPLETE
    assert await site.uploads.append(AGENT, upload.id, size, parts(b""), digest=xxh128(content)) == done


async def test_a_digest_that_follows_and_does_not_fit(site: Site) -> None:
    upload = await site.uploads.create(AGENT, "a.bin", 4, digest_follows="sha256")
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"abcd"), digest=sha256(b"abce"))
    assert (await site.uploads.get(AGENT, upload.id)).state is UploadState.FAILED
    assert site.published() == set()
    assert site.incoming() == []


async def test_a_digest_can_be_told_once_and_only_where_one_was_promised(site: Site) -> None:
    for upload in (await site.announce("a.bin", b"abcd"), await site.uploads.create(AGENT, "b.bin", 4)):
        with pytest.raises(Invalid):
            await site.uploads.append(AGENT, upload.id, 0, parts(b"abcd"), digest=sha256(b"other"))
        assert (await site.uploads.get(AGENT, upload.id)).offset == 0
    promised = await site.uploads.create(AGENT, "c.bin", 4, digest_follows="sha256")
    await site.uploads.append(AGENT, promised.id, 0, parts(b"ab"), digest=sha256(b"abcd"))
    with pytest.raises(Invalid):
        await site.uploads.append(AGENT, promised.id, 2, parts(b"cd"), digest=sha256(b"abce"))
    done = await site.uploads.append(AGENT, promised.id, 2, parts(b"cd"))
    assert done.state is UploadState.COMPLETE
    with pytest.raises(Invalid):
        await site.uploads.create(AGENT, "d.bin", 4, sha256(b"abcd"), digest_follows="sha256")


async def test_a_file_that_may_be_there_needs_its_digest_first(site: Site) -> None:
    await site.send("a.bin", b"abcd")
    with pytest.raises(DigestRequired):
        await site.uploads.create(AGENT, "a.bin", 4, digest_follows="sha256", key="k")
    assert site.incoming() == []
    there = await site.uploads.create(AGENT, "a.bin", 4, sha256(b"abcd"), key="k")
    assert there.state is UploadState.COMPLETE
    other = await site.uploads.create(AGENT, "a.bin", 5, digest_follows="sha256")
    done = await site.uploads.append(AGENT, other.id, 0, parts(b"abcde"), digest=sha256(b"abcde"))
    assert done.version == 2


async def test_the_same_file_that_comes_twice_with_its_digest_at_the_end(site: Site) -> None:
    first, second = [await site.uploads.create(AGENT, "a.bin", 4, digest_follows="sha256") for _ in range(2)]
    for upload in (first, second):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"abcd"), digest=sha256(b"abcd"))
    assert (await site.uploads.get(AGENT, second.id)).state is UploadState.SUPERSEDED
    assert site.published() == {"raw/a.bin"}


@pytest.mark.parametrize("promised", [True, False])
async def test_a_length_that_comes_later(site: Site, promised: bool) -> None:
    content = os.urandom(3000)
    follows: DigestAlgorithm | None = "sha256" if promised else None
    upload = await site.uploads.create(AGENT, "a.log", None, digest_follows=follows, key="k")
    assert (upload.deferred, upload.size) == (True, 0)
    grown = await site.uploads.append(AGENT, upload.id, 0, parts(content[:2000]))
    assert (grown.state, grown.offset, grown.size) == (UploadState.RECEIVING, 2000, 2000)
    await site.uploads.recover()
    (listed,) = (await site.uploads.list(ADA, site.experiment)).items
    assert (listed.state, listed.size, listed.deferred) == (UploadState.RECEIVING, 2000, True)
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, 2000, parts(b""), size=1999)
    known = await site.uploads.create(AGENT, "a.log", 3000, digest_follows=follows, key="k")
    assert (known.id, known.deferred) == (upload.id, True)
    await site.uploads.append(AGENT, upload.id, 2000, parts(content[2000:2500]), size=3000)
    again = await site.uploads.create(AGENT, "a.log", None, digest_follows=follows, key="k")
    assert (again.id, again.offset, again.size, again.deferred) == (upload.id, 2500, 3000, False)
    with pytest.raises(Invalid):
        await site.uploads.append(AGENT, upload.id, 2500, parts(b""), size=3001)
    with pytest.raises(Invalid):
        await site.uploads.create(AGENT, "a.log", 2999, digest_follows=follows, key="k")
    digest = sha256(content) if promised else None
    done = await site.uploads.append(AGENT, upload.id, 2500, parts(content[2500:]), digest=digest)
    assert (done.state, done.size, done.digest) == (UploadState.COMPLETE, 3000, sha256(content))
    assert site.content("raw/a.log") == content


async def test_a_length_that_turns_out_to_be_too_long(site: Site) -> None:
    upload = await site.uploads.create(AGENT, "a.log", None)
    with pytest.raises(Invalid):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"a"), size=MAX_SIZE + 1)
    assert (await site.uploads.get(AGENT, upload.id)).deferred


async def test_a_growing_file_has_to_fit_into_the_quota_too(site: Site) -> None:
    await site.experiments.change(SAM, site.experiment, ExperimentChange(quota=1000))
    upload = await site.uploads.create(AGENT, "a.log", None)
    with pytest.raises(QuotaExceeded):
        await site.uploads.append(AGENT, upload.id, 0, parts(bytes(2000), 400))
    arrived = await site.uploads.get(AGENT, upload.id)
    assert arrived.offset == 800
    await site.uploads.append(AGENT, upload.id, 800, parts(bytes(200)))
    await site.uploads.append(AGENT, upload.id, 1000, parts(b""))
    with pytest.raises(QuotaExceeded):  # what has come counts
        await site.announce("b.bin", b"1")
    with pytest.raises(QuotaExceeded):
        await site.uploads.append(AGENT, upload.id, 1000, parts(b""), size=1001)
    assert (await site.uploads.append(AGENT, upload.id, 1000, parts(b""), size=1000)).ended


async def test_a_part_whose_length_comes_later(site: Site) -> None:
    part = await site.uploads.create(AGENT, "part", None, partial=True)
    await site.uploads.append(AGENT, part.id, 0, parts(b"abcd"))
    with pytest.raises(Conflict):
        await site.uploads.concatenate(AGENT, "a.bin", [part.id], "final;1")
    await site.uploads.append(AGENT, part.id, 4, parts(b""), size=4)
    done = await site.uploads.concatenate(AGENT, "a.bin", [part.id], "final;1", sha256(b"abcd"))
    assert done.state is UploadState.COMPLETE


async def test_what_has_come_of_a_growing_file_is_replaced(site: Site) -> None:
    content = os.urandom(5000)
    upload = await site.uploads.create(AGENT, "a.bin", None, digest_follows="sha256")
    await site.uploads.append(AGENT, upload.id, 0, parts(bytes(3000)))
    for begin, end in ((0, 1500), (1500, 3000)):
        grown = await site.uploads.rewrite(AGENT, upload.id, begin, end, parts(content[begin:end]))
        assert (grown.offset, grown.state) == (3000, UploadState.RECEIVING)
    done = await site.uploads.append(
        AGENT, upload.id, 3000, parts(content[3000:]), size=5000, digest=sha256(content)
    )
    assert done.state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == content
    with pytest.raises(Conflict):  # never one that is published
        await site.uploads.rewrite(AGENT, upload.id, 0, 1, parts(b"x"))
    assert site.content("raw/a.bin") == content


async def test_what_another_process_replaces_is_in_the_digest(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(5000)
    upload = await site.uploads.create(AGENT, "a.bin", 5000, digest_follows="xxh128")
    await site.uploads.append(AGENT, upload.id, 0, parts(bytes(1000) + content[1000:4000]))
    await elsewhere.rewrite(AGENT, upload.id, 0, 1000, parts(content[:1000]))
    done = await site.uploads.append(
        AGENT, upload.id, 4000, parts(content[4000:]), size=5000, digest=xxh128(content)
    )
    assert done.state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == content


async def test_bytes_that_come_in_order_are_not_read_again(site: Site) -> None:
    """What is changed behind the back of the process, with the times of the file put back, stays unseen: the
    digest is of what has come. (Nobody but the service may write there.)"""
    content = os.urandom(5000)
    upload = await site.announce("a.bin", content)
    await site.uploads.append(AGENT, upload.id, 0, parts(content[:4000]))
    temporary = site.folder / site.experiment / ".incoming" / upload.id
    before = temporary.stat()
    with temporary.open("r+b") as file:
        file.write(b"x")
    os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = await site.uploads.append(AGENT, upload.id, 4000, parts(content[4000:]))
    assert (done.state, done.digest) == (UploadState.COMPLETE, sha256(content))


async def test_bytes_that_somebody_else_has_written_are_read_again(site: Site) -> None:
    content = os.urandom(5000)
    upload = await site.announce("a.bin", content)
    await site.uploads.append(AGENT, upload.id, 0, parts(content[:4000]))
    temporary = site.folder / site.experiment / ".incoming" / upload.id
    with temporary.open("r+b") as file:
        file.write(bytes([content[0] ^ 1]))
    os.utime(temporary, ns=(0, 0))
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, upload.id, 4000, parts(content[4000:]))
    assert site.published() == set()


async def test_what_was_verified_is_not_read_again_when_it_could_not_be_published(site: Site) -> None:
    content, attempts = os.urandom(5000), 0

    async def examine(_: Sequence[Upload]) -> Findings:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError(errno.EIO, "the disk stumbles")
        return Findings({}, lambda tx: None)

    uploads = Uploads(site.store, site.live, site.folder, examine)
    upload = await site.announce("a.bin", content)
    with pytest.raises(OSError, match="stumbles"):
        await uploads.append(AGENT, upload.id, 0, parts(content))
    temporary = site.folder / site.experiment / ".incoming" / upload.id
    before = temporary.stat()
    temporary.chmod(0o600)
    with temporary.open("r+b") as file:  # who reads it again sees this
        file.write(bytes([content[0] ^ 1]))
    os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
    await uploads.recover()
    await uploads.close()
    done = await site.uploads.get(AGENT, upload.id)
    assert (done.state, done.digest, attempts) == (UploadState.COMPLETE, sha256(content), 2)


async def test_what_can_not_be_replaced(site: Site) -> None:
    upload = await site.uploads.create(AGENT, "a.bin", 4, digest_follows="sha256")
    await site.uploads.append(AGENT, upload.id, 0, parts(b"abc"))
    for begin, end, content in (
        (0, 2, b"x"),
        (0, 2, b"xxx"),
        (1, 1, b""),
        (-1, 1, b"xx"),
        (2, 1, b"x"),
        (0, REWRITE + 1, b""),
    ):
        with pytest.raises(Invalid):
            await site.uploads.rewrite(AGENT, upload.id, begin, end, parts(content))
    with pytest.raises(Conflict):
        await site.uploads.rewrite(AGENT, upload.id, 2, 4, parts(b"xx"))
    for who in (OTHER_AGENT, ADA, EVE):
        with pytest.raises(NotFound):
            await site.uploads.rewrite(who, upload.id, 0, 1, parts(b"x"))
    with pytest.raises(ConnectionResetError):
        await site.uploads.rewrite(AGENT, upload.id, 0, 2, Chunks(broken(b"x")))
    without = await site.announce("b.bin", b"abcd")
    await site.uploads.append(AGENT, without.id, 0, parts(b"abc"))
    with pytest.raises(Conflict):
        await site.uploads.rewrite(AGENT, without.id, 0, 1, parts(b"a"))
    done = await site.uploads.append(AGENT, upload.id, 3, parts(b"d"), digest=sha256(b"abcd"))
    assert done.state is UploadState.COMPLETE


# --- registration in place ---


@pytest.fixture
def storage(site: Site, tmp_path: Path) -> Path:
    """What the detector of `mx` writes to, on the same file system."""
    folder = tmp_path / "storage" / "mx"
    (folder / "run").mkdir(parents=True)
    site.uploads._in_place = {"mx": [folder]}
    return folder


async def register(site: Site, source: Path | str, content: bytes, who: Principal = AGENT) -> Upload:
    digest = xxh128(content)
    return await site.uploads.register(who, str(source), "run/a.bin", len(content), digest, key=digest)


async def test_a_registered_file_is_published_where_it_lies(site: Site, storage: Path) -> None:
    content = os.urandom(100_000)
    source = storage / "run" / "a.bin"
    source.write_bytes(content)
    done, again = await asyncio.gather(register(site, source, content), register(site, source, content))
    assert again.id == done.id
    assert (done.state, done.path, done.source) == (UploadState.COMPLETE, "raw/run/a.bin", str(source))
    published = site.folder / site.experiment / "raw/run/a.bin"
    assert published.samefile(source)
    assert site.content("raw/run/a.bin") == content
    assert site.incoming() == []
    assert [event.subject for event in site.events("file.complete")] == [done.id]
    source.unlink()  # the detector's storage is cleaned up
    assert site.content("raw/run/a.bin") == content
    with pytest.raises(Forbidden):
        await site.uploads.append(AGENT, done.id, 0, parts(b"other"))


async def test_a_registered_file_of_another_file_system_is_copied(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = os.urandom(3 * BLOCK + 5)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        source = Path(name) / "a.bin"
        source.write_bytes(content)
        assert source.stat().st_dev != site.folder.stat().st_dev
        site.uploads._in_place = {"mx": [Path(name)]}
        done = await register(site, source, content)
    assert done.state is UploadState.COMPLETE
    assert site.content(done.path) == content
    assert stat.S_IMODE((site.folder / site.experiment / done.path).stat().st_mode) == 0o440


async def test_nothing_else_can_be_registered(site: Site, storage: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345")
    (storage / "link").symlink_to(secret)
    (storage / "folder").symlink_to(tmp_path)
    os.mkfifo(storage / "fifo")
    for source, error in (
        (secret, Forbidden),
        (f"{storage}/../../secret", Forbidden),
        (f"{storage}-2/secret", Forbidden),
        (f"{storage}/a\0", Forbidden),
        ("run/a.bin", Forbidden),
        ("", Forbidden),
        (storage / "link", NotFound),
        (storage / "folder" / "secret", NotFound),
        (storage / "fifo", NotFound),
        (storage / "run", NotFound),
        (storage / "nothing", NotFound),
    ):
        with pytest.raises(error):
            await register(site, source, b"12345")
    (storage / "a").write_bytes(b"12345")
    for who in (OTHER_AGENT, ADA, SAM):
        with pytest.raises(Forbidden):
            await register(site, storage / "a", b"12345", who)
    assert site.published() == set()
    assert site.incoming() == []
    assert site.events("file.complete", "upload.failed") == []


async def test_a_registered_file_has_to_be_as_announced(site: Site, storage: Path) -> None:
    source = storage / "a"
    source.write_bytes(b"12345")
    for content in (b"1234", b"123456", b"54321"):
        with pytest.raises(ChecksumMismatch):
            await register(site, source, content)
    assert site.published() == set()
    assert site.incoming() == []
    assert source.stat().st_mode & 0o200  # it is left to its owner


@pytest.mark.parametrize("change", ["overwritten", "grown", "shrunk"])
async def test_a_source_that_changes_while_it_is_verified_is_refused(
    site: Site, storage: Path, change: str
) -> None:
    content = os.urandom(1000)
    source = storage / "a"
    source.write_bytes(content)
    os.utime(source, (0, 0))
    going = await site.announce("a.bin", content)
    upload = going.model_copy(update={"source": str(source)})
    incoming = Incoming(site.folder)
    with incoming.hold(going) as empty, incoming.take(upload, storage, empty) as taken:
        assert isinstance(taken, Source)
        with source.open("ab" if change == "grown" else "r+b") as file:
            if change == "shrunk":
                file.truncate(999)
            else:
                file.write(content[:1])  # overwritten with what was there: the digest alone does not tell
        with pytest.raises(ChecksumMismatch, match="changed" if change == "overwritten" else "another"):
            incoming.verify(upload, taken, running_digest(upload))


# --- who may ---


async def test_strangers_neither_send_nor_see(site: Site) -> None:
    done = await site.send("a.bin", b"12345")
    going = await site.announce("b.bin", b"12345")
    for stranger in (EVE, OTHER_AGENT):
        for upload in (done, going):
            with pytest.raises(NotFound):
                await site.uploads.get(stranger, upload.id)
            with pytest.raises(NotFound):
                await site.uploads.append(stranger, upload.id, 0, parts(b"12345"))
            with pytest.raises(NotFound):
                await site.uploads.terminate(stranger, upload.id)
    with pytest.raises(NotFound):
        await site.uploads.create(EVE, "a.bin", 5, sha256(b"12345"), site.experiment)
    with pytest.raises(NotFound):
        await site.uploads.list(EVE, site.experiment)
    assert (await site.uploads.list(OTHER_AGENT)).items == []
    assert len((await site.uploads.list(AGENT)).items) == 2


async def test_a_member_sees_an_upload_but_does_not_touch_anothers(site: Site) -> None:
    going = await site.announce("b.bin", b"12345")
    assert (await site.uploads.get(ADA, going.id)).offset == 0
    for member in (ADA, SAM):
        with pytest.raises(NotFound):
            await site.uploads.append(member, going.id, 0, parts(b"12345"))


async def test_without_an_active_experiment_an_instrument_waits(site: Site) -> None:
    going = await site.announce("a.bin", b"12345")
    await site.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=None))
    with pytest.raises(Conflict):
        await site.announce("b.bin", b"12345")
    # what was begun belongs to the experiment it was begun for
    assert (await site.uploads.append(AGENT, going.id, 0, parts(b"12345"))).experiment == site.experiment


async def test_an_instrument_can_not_choose_the_experiment(site: Site) -> None:
    elsewhere = await site.experiments.create(SAM, ExperimentCreate(instrument="mx", title="L", pi="ben"))
    with pytest.raises(Conflict):
        await site.uploads.create(AGENT, "a.bin", 5, sha256(b"12345"), elsewhere.id)


async def test_a_closed_experiment_takes_nothing(site: Site) -> None:
    going = await site.announce("a.txt", b"12345", ADA)
    closed = ExperimentChange(state=ExperimentState.CLOSED)
    await site.experiments.change(ADA, site.experiment, closed)
    for attempt in (
        site.announce("b.txt", b"12345", ADA),
        site.announce("b.bin", b"12345"),
        site.uploads.append(ADA, going.id, 0, parts(b"12345")),
    ):
        with pytest.raises(BeamhubError):
            await attempt
    assert site.published() == set()


# --- hostile input ---


@pytest.mark.parametrize(
    "digest",
    ["", "abc", "0" * 64, "md5:" + "0" * 32, "xxh128:" + "0" * 64]
    + ["sha256:" + value for value in ("", "A" * 64, "0" * 63, "0" * 65, "g" * 64, "../" + "0" * 61)],
)
async def test_a_digest_is_a_digest(site: Site, digest: str) -> None:
    with pytest.raises(Invalid):
        await site.uploads.create(AGENT, "a", 1, digest)


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1])
async def test_a_size_is_a_size(site: Site, size: int) -> None:
    with pytest.raises(Invalid):
        await site.uploads.create(AGENT, "a", size, "sha256:" + "0" * 64)


async def test_what_can_not_fit_on_the_disk_is_refused_at_once(site: Site) -> None:
    with pytest.raises(DiskFull):
        await site.uploads.create(AGENT, "a", MAX_SIZE, "sha256:" + "0" * 64)
    assert site.incoming() == []
    assert (await site.uploads.list(AGENT)).items == []


async def test_no_name_leaves_its_folder(site: Site) -> None:
    names = (
        st.text(max_size=40)
        | st.text(alphabet="./ab", max_size=12)
        | st.sampled_from(
            ["../../x", "/etc/passwd", "raw/../../x", ".incoming/x", "a/\0", "x" * 256, "version-2/x"]
        )
    )
    await site.send("first", b"", ADA)
    before = {path for path in site.folder.rglob("*") if "shared" not in path.parts}
    loop = asyncio.get_running_loop()

    @settings(deadline=None, max_examples=100)
    @given(names)
    def attempt(name: str) -> None:
        try:
            done = asyncio.run_coroutine_threadsafe(
                site.send(name, name.encode(errors="replace"), ADA), loop
            ).result()
        except (Invalid, Conflict):  # Conflict: the name needs a folder where a file is
            return
        assert done.state is UploadState.COMPLETE
        assert done.path.startswith("shared/")
        assert site.content(done.path) == name.encode()

    await asyncio.to_thread(attempt)
    assert {path for path in site.folder.rglob("*") if "shared" not in path.parts} == before


async def test_links_in_shared_are_not_followed(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shared = site.folder / site.experiment / "shared"
    (shared / "folder").symlink_to(outside)
    (shared / "dangling").symlink_to(outside / "new.txt")
    with pytest.raises(Conflict):
        await site.send("folder/a.txt", b"x", ADA)
    assert (await site.send("dangling", b"x", ADA)).path == "shared/version-2/dangling"
    assert list(outside.iterdir()) == []
    (shared / "version-2").rename(shared / "moved")
    (shared / "version-2").symlink_to(outside)
    with pytest.raises(Conflict):
        await site.send("dangling", b"y", ADA)
    assert list(outside.iterdir()) == []
    assert site.incoming() == []
