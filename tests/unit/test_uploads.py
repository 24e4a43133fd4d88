"""Uploads by the rules of tus: whatever arrives, in whatever order, damaged, twice, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
from beamhub import announcements
from beamhub.access import Principal
from beamhub.announcements import MAX_SIZE
from beamhub.batches import Whole
from beamhub.body import Chunks
from beamhub.errors import (
    BeamhubError,
    ChecksumMismatch,
    Conflict,
    DiskFull,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooLarge,
    TooMany,
    Unavailable,
)
from beamhub.incoming import BLOCK, Held
from beamhub.leftovers import EXPIRES
from beamhub.orders import Orders
from beamhub.reception import CHECKSUMS
from beamhub.schemas import (
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    InstrumentChange,
    Upload,
    UploadState,
)
from beamhub.uploads import Uploads
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.uploading import (
    ADA,
    AGENT,
    EVE,
    OTHER_AGENT,
    SAM,
    Halting,
    Site,
    begin_part,
    broken,
    deliver,
    parts,
    sha256,
    xxh128,
)


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
    body = Halting(b"1234", b"5678")
    first = asyncio.create_task(site.uploads.append(AGENT, upload.id, 0, body))
    await body.halts.wait()
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"12345678"))
    body.go_on.set()
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
    with pytest.raises(Gone):
        await site.uploads.terminate(AGENT, upload.id)
    done = await site.send("a.bin", b"12345")
    with pytest.raises(Conflict):
        await site.uploads.terminate(AGENT, done.id)
    assert site.content("raw/a.bin") == b"12345"


async def test_what_is_given_up_while_it_is_verified_is_gone(
    site: Site, elsewhere: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender of the last bytes is not told that they have arrived."""
    upload = await site.announce("a.bin", b"12345")
    claim = site.uploads.workers.claim

    async def given_up_before(upload: Upload) -> contextlib.ExitStack:
        await elsewhere.terminate(AGENT, upload.id)
        return await claim(upload)

    monkeypatch.setattr(site.uploads.workers, "claim", given_up_before)
    with pytest.raises(Gone):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"12345"))
    assert site.published() == set()


async def test_how_far_an_upload_is_that_ends_while_one_looks(
    site: Site, elsewhere: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its row and its temporary file, which is gone then."""
    upload = await site.announce("a.bin", b"12345")
    loop, arrived = asyncio.get_running_loop(), site.uploads.workers.incoming.arrived
    sends = [elsewhere.append(AGENT, upload.id, 0, parts(b"12345"))]

    def arrived_later(upload: Upload) -> int | None:
        if sends:
            asyncio.run_coroutine_threadsafe(sends.pop(), loop).result()
        return arrived(upload)

    monkeypatch.setattr(site.uploads.workers.incoming, "arrived", arrived_later)
    now = await site.uploads.get(AGENT, upload.id)
    assert (now.state, now.offset) == (UploadState.COMPLETE, 5)


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


@pytest.mark.parametrize(
    "digest",
    ["", "abc", "0" * 64, "md5:" + "0" * 32, "xxh128:" + "0" * 64]
    + ["sha256:" + value for value in ("", "A" * 64, "0" * 63, "0" * 65, "g" * 64, "../" + "0" * 61)],
)
async def test_a_digest_is_a_digest(site: Site, digest: str) -> None:
    with pytest.raises(Invalid):
        await site.uploads.create(AGENT, "a", 1, digest)


@pytest.mark.parametrize(("size", "error"), [(-1, Invalid), (MAX_SIZE + 1, TooLarge)])
async def test_a_size_is_a_size(site: Site, size: int, error: type[Exception]) -> None:
    with pytest.raises(error):
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


# --- what is gone ---


async def test_an_upload_whose_bytes_are_gone_from_the_disk_says_so(site: Site) -> None:
    upload = await site.announce("a.bin", b"12345")
    (site.folder / site.experiment / ".incoming" / upload.id).unlink()
    with pytest.raises(Gone):
        await site.uploads.append(AGENT, upload.id, 0, parts(b"12345"))


async def test_nothing_is_closed_on_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """To close a file that has lost its last name frees its place on the disk."""
    close, closed = Held.close, list[str]()

    def named(self: Held) -> None:
        closed.append(threading.current_thread().name)
        close(self)

    monkeypatch.setattr(Held, "close", named)
    await site.send("whole.bin", b"12345678")
    upload = await site.announce("broken.bin", b"12345678")
    with pytest.raises(ConnectionResetError):
        await site.uploads.append(AGENT, upload.id, 0, Chunks(broken(b"1234")))
    with pytest.raises(Conflict):
        await site.uploads.append(AGENT, upload.id, 1, parts(b"1234"))
    growing = await site.uploads.create(AGENT, "growing.bin", None, None, digest_follows="xxh128")
    await site.uploads.append(AGENT, growing.id, 0, parts(b"1234"))
    await site.uploads.rewrite(AGENT, growing.id, 0, 2, parts(b"21"))
    begun = [await begin_part(site, content) for content in (b"123", b"45")]
    await site.uploads.concatenate(AGENT, "parts.bin", [part.id for part in begun], "final;…")
    await deliver(site.uploads, AGENT, [Whole(f"{n}.cbf", memoryview(b"x")) for n in range(3)])
    for seconds in (0.0, 2 * EXPIRES.total_seconds()):
        await site.uploads.leftovers.expire(seconds)
    await site.uploads.close()
    assert site.incoming() == []
    assert len(closed) >= 12
    assert [name for name in closed if not name.startswith("beamhub-")] == []


async def test_a_sender_has_so_many_uploads_on_their_way_and_no_more(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "OPEN", 3)
    begun = [await begin_part(site, bytes([n]), ADA) for n in range(3)]
    for attempt in (site.announce("a.bin", b"1", ADA), begin_part(site, b"3", ADA)):
        with pytest.raises(TooMany, match="ada has 3 uploads on their way already"):
            await attempt
    (refused,) = await deliver(site.uploads, ADA, [Whole("a.cbf", memoryview(b"x"))], site.experiment)
    assert isinstance(refused, TooMany)
    assert len(site.incoming()) == 3
    assert (await site.send("a.bin", b"1")).state is UploadState.COMPLETE  # the instrument's
    ids = [part.id for part in begun]
    whole = await site.uploads.concatenate(ADA, "b.bin", ids, "final;…", experiment=site.experiment)
    assert whole.state is UploadState.COMPLETE
    assert (await site.send("a.bin", b"1", ADA)).state is UploadState.COMPLETE


async def test_the_same_file_that_comes_while_the_first_is_moved_goes_along(site: Site) -> None:
    right = await site.experiments.create(SAM, ExperimentCreate(instrument="mx", title="R", pi="ben"))
    again, first = await site.announce("a.bin", b"1"), await site.send("a.bin", b"1")
    # it has been found that both are equal; now their dataset is moved
    await site.store.write(
        lambda tx: tx.uploads.move(site.experiment, right.id, "raw/a.bin", "raw/a.bin", version=1)
    )
    merged = await site.uploads.publications._merge(again, first)
    assert (merged.state, merged.experiment) == (UploadState.SUPERSEDED, right.id)
    assert await site.store.read(lambda tx: tx.uploads.of(site.experiment)) == []
    assert site.incoming() == []
