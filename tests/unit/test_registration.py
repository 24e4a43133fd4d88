"""Registration in place: files that lie where the service sees them, of which no byte is sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from beamhub.access import Principal
from beamhub.digests import Running
from beamhub.errors import BadName, ChecksumMismatch, Conflict, Forbidden, NotFound
from beamhub.incoming import BLOCK, Held, Incoming, running_digest
from beamhub.schemas import ExperimentCreate, InstrumentChange, Upload, UploadState
from beamhub.workers import THREADS

from tests.unit.uploading import ADA, AGENT, OTHER_AGENT, SAM, Site, parts, xxh128


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


async def test_who_registers_a_file_while_another_ends_it_gets_it_too(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second has read that it is not over, and the first ends it before the second holds it."""
    content = os.urandom(1000)
    source = storage / "run" / "a.bin"
    source.write_bytes(content)
    verify, hold = Incoming.verify, Incoming.hold
    verifies, may_end, over = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def verify_later(self: Incoming, upload: Upload, file: Held, running: Running) -> str:
        loop.call_soon_threadsafe(verifies.set)
        assert may_end.wait(60)
        return verify(self, upload, file, running)

    def hold_later(self: Incoming, upload: Upload) -> Held:
        may_end.set()
        assert over.wait(60)
        return hold(self, upload)

    monkeypatch.setattr(Incoming, "verify", verify_later)
    first = asyncio.create_task(register(site, source, content))
    first.add_done_callback(lambda _: over.set())
    await verifies.wait()
    monkeypatch.setattr(Incoming, "hold", hold_later)
    second = await register(site, source, content)
    assert second == await first
    assert second.state is UploadState.COMPLETE


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


class Slow:
    """Reads that wait until they may go on, as those of a file server that hangs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.begun, self._go_on = asyncio.Semaphore(0), threading.Event()
        loop, read = asyncio.get_running_loop(), getattr(Incoming, name)

        def later(*arguments: object) -> object:
            loop.call_soon_threadsafe(self.begun.release)
            assert self._go_on.wait(60)
            return read(*arguments)

        monkeypatch.setattr(Incoming, name, later)

    def end(self) -> None:
        self._go_on.set()


async def test_storage_that_hangs_keeps_nobody_else_waiting(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(monkeypatch, "source")
    sources = [storage / f"{number}" for number in range(2 * THREADS)]
    for source in sources:
        source.write_bytes(source.name.encode())
    digests = [xxh128(source.name.encode()) for source in sources]
    waiting = [
        asyncio.create_task(site.uploads.register(AGENT, str(source), source.name, 1, digest))
        for source, digest in zip(sources, digests, strict=True)
    ]
    for _ in range(THREADS):
        await slow.begun.acquire()
    async with asyncio.timeout(60):
        assert (await site.send("sent.bin", b"x" * BLOCK)).state is UploadState.COMPLETE
    slow.end()
    done = await asyncio.gather(*waiting)
    assert {upload.state for upload in done} == {UploadState.COMPLETE}


@contextlib.asynccontextmanager
async def registering(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> AsyncIterator[asyncio.Task[Upload]]:
    """A registration that is in this step of `Incoming` until the context is left."""
    (storage / "a").write_bytes(b"12345")
    slow = Slow(monkeypatch, step)
    task = asyncio.create_task(register(site, storage / "a", b"12345"))
    await slow.begun.acquire()
    yield task
    slow.end()


async def test_a_file_that_was_found_late_goes_where_it_may_go_then(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = await site.experiments.create(SAM, ExperimentCreate(instrument="mx", title="R", pi="ben"))
    async with registering(site, storage, monkeypatch, "source") as task:
        await site.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=right.id))
    assert (await task).experiment == right.id
    assert site.published() == set()


async def test_a_file_that_was_found_late_does_not_come_when_nothing_may(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with registering(site, storage, monkeypatch, "source") as task:
        await site.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=None))
    with pytest.raises(Conflict, match="No experiment is active"):
        await task
    assert site.published() == set()
    assert site.incoming() == []


async def test_a_file_that_is_copied_for_long_goes_where_it_was_to_go_at_the_beginning(
    site: Site, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await site.experiments.create(SAM, ExperimentCreate(instrument="mx", title="R", pi="ben"))
    async with registering(site, storage, monkeypatch, "bring") as task:
        (going,) = (await site.uploads.list(AGENT)).items
        assert (going.experiment, going.state) == (site.experiment, UploadState.RECEIVING)
        await site.experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=other.id))
    done = await task
    assert (done.id, done.experiment, done.state) == (going.id, site.experiment, UploadState.COMPLETE)
    assert site.incoming() == []


async def test_a_source_that_becomes_shorter_while_it_is_copied_is_refused(site: Site) -> None:
    content = os.urandom(3 * BLOCK)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        source = Path(name) / "a"
        source.write_bytes(content)
        site.uploads._in_place = {"mx": [Path(name)]}
        upload = await site.announce("a.bin", content)
        incoming = site.uploads.workers.incoming
        with incoming.hold(upload) as empty:
            found = incoming.source(upload.model_copy(update={"source": str(source)}), Path(name), empty)
            os.truncate(source, BLOCK)
            with found, pytest.raises(ChecksumMismatch, match="became shorter"):
                incoming.bring(found)


async def test_nothing_else_can_be_registered(site: Site, storage: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345")
    (storage / "link").symlink_to(secret)
    (storage / "folder").symlink_to(tmp_path)
    os.mkfifo(storage / "fifo")
    for source, error in (
        (secret, Forbidden),
        (f"{storage}/../../secret", BadName),
        (f"{storage}-2/secret", Forbidden),
        (f"{storage}/a\0", BadName),
        ("run/a.bin", BadName),
        ("", BadName),
        (storage / "link", NotFound),
        (storage / "folder" / "secret", NotFound),
        (storage / "fifo", NotFound),
        (storage / "run", NotFound),
        (storage / "nothing", NotFound),
    ):
        with pytest.raises(error):
            await register(site, source, b"12345")
    (storage / "a").write_bytes(b"12345")
    for name in ("../a", "/a", ".a", "a\0", "a" * 1000):
        with pytest.raises(BadName):
            await site.uploads.register(AGENT, f"{storage}/a", name, 5, xxh128(b"12345"))
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
    with incoming.hold(going) as empty, incoming.source(upload, storage, empty) as taken:
        assert incoming.bring(taken) is taken
        with source.open("ab" if change == "grown" else "r+b") as file:
            if change == "shrunk":
                file.truncate(999)
            else:
                file.write(content[:1])  # overwritten with what was there: the digest alone does not tell
        with pytest.raises(ChecksumMismatch, match="changed" if change == "overwritten" else "another"):
            incoming.verify(upload, taken, running_digest(upload))
