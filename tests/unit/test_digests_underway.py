"""Digests in the making: nothing is read twice that need not be, nor believed where it may have changed."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from beamhub.body import Followed
from beamhub.digests import READ
from beamhub.errors import ChecksumMismatch, Invalid
from beamhub.publications import Findings
from beamhub.schemas import Upload, UploadState
from beamhub.uploads import Uploads

from tests.unit.uploading import AGENT, Site, parts, sha256, xxh128


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


@pytest.mark.parametrize("way", ["sent", "copied"])
async def test_what_was_verified_is_not_read_again_when_it_could_not_be_published(
    site: Site, way: str
) -> None:
    content, attempts = os.urandom(5000), 0

    async def examine(_: Sequence[Upload]) -> Findings:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise OSError(errno.EIO, "the disk stumbles")
        return Findings({}, lambda tx: None)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as storage:
        uploads = Uploads(site.store, site.live, site.folder, examine, {"mx": [Path(storage)]})
        if way == "sent":
            announced = await site.announce("a.bin", content)
            arriving = uploads.append(AGENT, announced.id, 0, parts(content))
        else:  # from another file system
            source = Path(storage, "a.bin")
            await asyncio.to_thread(source.write_bytes, content)
            arriving = uploads.register(AGENT, str(source), "a.bin", len(content), sha256(content))
        with pytest.raises(OSError, match="stumbles"):
            await arriving
    (upload,) = await site.store.read(lambda tx: tx.uploads.receiving())
    temporary = site.folder / site.experiment / ".incoming" / upload.id
    before = temporary.stat()
    temporary.chmod(0o600)
    with temporary.open("r+b") as file:  # who reads it again sees this
        file.write(bytes([content[0] ^ 1]))
    os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
    await uploads.leftovers.recover()
    await uploads.close()
    done = await site.uploads.get(AGENT, upload.id)
    assert (done.state, done.digest, attempts) == (UploadState.COMPLETE, sha256(content), 2)


def followed(content: bytes, digest: str) -> Followed:
    algorithm, _, value = digest.partition(":")
    body = content + bytes.fromhex(value)
    return Followed(parts(body), len(body), "sha256" if algorithm == "sha256" else "xxh128")


async def promised(site: Site, content: bytes) -> str:
    return (await site.uploads.create(AGENT, "a.bin", len(content), digest_follows="xxh128")).id


async def test_a_digest_behind_each_part_and_the_last_is_that_of_the_file(site: Site) -> None:
    content = os.urandom(5000)
    id_ = await promised(site, content)
    for begin, end in ((0, 1999), (1999, 1999), (1999, 4000)):
        kept = await site.uploads.append(
            AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end]))
        )
        assert (kept.state, kept.offset, kept.digest) == (UploadState.RECEIVING, end, None)
    done = await site.uploads.append(AGENT, id_, 4000, followed(content[4000:], xxh128(content)))
    assert (done.state, done.digest) == (UploadState.COMPLETE, xxh128(content))
    assert site.content("raw/a.bin") == content


@pytest.mark.parametrize("place", [0, 1999, 2000, 3500, 3999])
async def test_a_damaged_part_is_forgotten_with_all_since_a_digest_last_agreed(
    site: Site, place: int
) -> None:
    """The second part comes in two requests, of which the first breaks off before its digest."""
    content = os.urandom(6000)
    damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    id_ = await promised(site, content)
    for begin, end in ((0, 2000), (2000, 3000), (3000, 4000)):
        body = followed(damaged[begin:end], xxh128(content[:end]))
        if end == 3000:
            await site.uploads.append(AGENT, id_, begin, Followed(parts(damaged[begin:end]), 1016, "xxh128"))
            assert body.digest is None
        elif begin <= place < end or (end == 4000 and place >= 2000):
            with pytest.raises(ChecksumMismatch, match=r"A part of raw/a\.bin was damaged"):
                await site.uploads.append(AGENT, id_, begin, body)
            break
        else:
            await site.uploads.append(AGENT, id_, begin, body)
    kept = (await site.uploads.get(AGENT, id_)).offset
    assert kept == (0 if place < 2000 else 2000)
    for begin, end in ((kept, 4500), (4500, 6000)):
        done = await site.uploads.append(
            AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end]))
        )
    assert done.state is UploadState.COMPLETE
    assert site.content("raw/a.bin") == content


async def test_the_last_part_is_damaged(site: Site) -> None:
    content = os.urandom(3000)
    id_ = await promised(site, content)
    await site.uploads.append(AGENT, id_, 0, followed(content[:2000], xxh128(content[:2000])))
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, id_, 2000, followed(bytes(1000), xxh128(content)))
    now = await site.uploads.get(AGENT, id_)
    assert (now.state, now.offset, now.digest) == (UploadState.RECEIVING, 2000, None)
    done = await site.uploads.append(AGENT, id_, 2000, followed(content[2000:], xxh128(content)))
    assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)


def temporary(site: Site, id_: str) -> Path:
    return site.folder / site.experiment / ".incoming" / id_


def mark(site: Site, id_: str) -> Path:
    return site.folder / site.experiment / ".incoming" / f"{id_}.agreed"


def alter(file: Path, place: int) -> None:
    """Flips a bit, so that only who reads it sees it."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def begin_and_die(site: Site, content: bytes) -> str:
    """Of 6000 bytes, what a process has left that had 3000 of them, of which 2000 agreed with a digest."""
    id_ = await promised(site, content)
    await site.uploads.append(AGENT, id_, 0, followed(content[:2000], xxh128(content[:2000])))
    await site.uploads.append(AGENT, id_, 2000, Followed(parts(content[2000:3000]), 1016, "xxh128"))
    return id_


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("place", [2000, 2999, 3000, 4499])
async def test_after_a_kill_a_damaged_part_is_found_and_only_that_is_sent_again(
    site: Site, elsewhere: Uploads, place: int
) -> None:
    """It has come before the kill, or after it; another process goes on."""
    content = os.urandom(6000)
    damaged = flipped(content, place)
    id_ = await begin_and_die(site, damaged)
    with pytest.raises(ChecksumMismatch, match=r"A part of raw/a\.bin was damaged"):
        await elsewhere.append(AGENT, id_, 3000, followed(damaged[3000:4500], xxh128(content[:4500])))
    assert (await elsewhere.get(AGENT, id_)).offset == 2000
    for begin, end in ((2000, 4500), (4500, 6000)):
        done = await elsewhere.append(AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end])))
    assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)
    assert site.incoming() == []


@pytest.mark.parametrize("place", [2500, 3500])
@pytest.mark.parametrize("left", [None, b"", b"x", f"{2000:020} xxh128:{'0' * 32}\n".encode(), "beyond"])
async def test_a_mark_that_is_lost_or_wrong_costs_what_has_come(
    site: Site, elsewhere: Uploads, left: bytes | str | None, place: int
) -> None:
    content = os.urandom(6000)
    damaged = flipped(content, place)
    id_ = await begin_and_die(site, damaged)
    match left:
        case None:
            mark(site, id_).unlink()
        case bytes():
            mark(site, id_).write_bytes(left)
        case _:
            mark(site, id_).write_text(f"{9000:020} {xxh128(content)}\n")
    with pytest.raises(ChecksumMismatch):
        await elsewhere.append(AGENT, id_, 3000, followed(damaged[3000:4500], xxh128(content[:4500])))
    assert (await elsewhere.get(AGENT, id_)).offset == 0
    for begin, end in ((0, 4500), (4500, 6000)):
        done = await elsewhere.append(AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end])))
    assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)
    assert site.incoming() == []


async def test_what_an_earlier_process_has_received_is_read_back_once(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(6000)
    id_ = await begin_and_die(site, content)
    await elsewhere.append(AGENT, id_, 3000, followed(content[3000:4000], xxh128(content[:4000])))
    for place in (0, 2500, 3500):
        alter(temporary(site, id_), place)  # who reads it again fails
    await elsewhere.append(AGENT, id_, 4000, followed(content[4000:5000], xxh128(content[:5000])))
    done = await elsewhere.append(AGENT, id_, 5000, followed(content[5000:], xxh128(content)))
    assert (done.state, done.digest) == (UploadState.COMPLETE, xxh128(content))


async def test_of_processes_that_take_turns_each_reads_what_it_has_not_seen(
    site: Site, elsewhere: Uploads
) -> None:
    content = os.urandom(6000)
    id_ = await promised(site, content)
    for number, begin in enumerate(range(0, 6000, 1000)):
        uploads, end = (site.uploads, elsewhere)[number % 2], begin + 1000
        done = await uploads.append(AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end])))
        if number == 1:  # both have come by there
            alter(temporary(site, id_), 500)
    assert (done.state, done.digest) == (UploadState.COMPLETE, xxh128(content))


async def test_what_was_known_before_others_have_replaced_it_is_read_again(
    site: Site, elsewhere: Uploads
) -> None:
    content = os.urandom(6000)
    id_ = await begin_and_die(site, content)
    content = content[:100] + b"changed" + content[107:]
    await elsewhere.rewrite(AGENT, id_, 100, 107, parts(b"changed"))
    await elsewhere.append(AGENT, id_, 3000, Followed(parts(content[3000:3500]), 516, "xxh128"))
    await site.uploads.append(AGENT, id_, 3500, followed(content[3500:4000], xxh128(content[:4000])))
    done = await elsewhere.append(AGENT, id_, 4000, followed(content[4000:], xxh128(content)))
    assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)


async def test_a_file_that_a_disk_has_cut_is_read_again(site: Site) -> None:
    content = os.urandom(6000)
    id_ = await begin_and_die(site, content)
    os.truncate(temporary(site, id_), 1000)
    for begin, end in ((1000, 1500), (1500, 6000)):
        done = await site.uploads.append(
            AGENT, id_, begin, followed(content[begin:end], xxh128(content[:end]))
        )
    assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)


async def test_nothing_is_read_back_where_no_digest_is_told_before_the_end(
    site: Site, elsewhere: Uploads
) -> None:
    content = os.urandom(6000)
    id_ = await begin_and_die(site, content)
    await elsewhere.append(AGENT, id_, 3000, parts(content[3000:5000]))
    alter(temporary(site, id_), 10)
    with pytest.raises(ChecksumMismatch):  # so it is read only now
        await elsewhere.append(AGENT, id_, 5000, followed(content[5000:], xxh128(content)))


async def test_it_is_read_back_in_slices(
    site: Site, elsewhere: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each, another file may have its turn, and a request that breaks off has read what it has."""
    monkeypatch.setattr("beamhub.underway.TURN", 0.0)
    content = os.urandom(5 * READ + 1)
    id_ = await promised(site, content)
    await site.uploads.append(AGENT, id_, 0, followed(content[: 2 * READ], xxh128(content[: 2 * READ])))
    await site.uploads.append(AGENT, id_, 2 * READ, parts(content[2 * READ :], READ))
    incoming, underway = elsewhere.workers.incoming, elsewhere.reception._underway
    upload, read = await elsewhere.get(AGENT, id_), list[int]()
    with incoming.hold(upload) as file:
        over = False
        while not over:
            over = underway.read_back(upload, file)
            read.append(underway.of(upload, file).position)
    assert read == [READ, 2 * READ, 3 * READ, 4 * READ, 5 * READ, 5 * READ + 1]
    assert underway.agreed(upload) == 2 * READ


@pytest.mark.parametrize(("agreed", "state"), [(2000, UploadState.RECEIVING), (0, UploadState.FAILED)])
async def test_a_part_that_was_damaged_before_a_kill_at_the_end(
    site: Site, elsewhere: Uploads, agreed: int, state: UploadState
) -> None:
    """All bytes have come, of a file whose digest is known; the last part was not compared any more."""
    content = os.urandom(6000)
    damaged = flipped(content, 5000)
    id_ = (await site.uploads.create(AGENT, "a.bin", len(content), xxh128(content))).id
    if agreed:
        await site.uploads.append(AGENT, id_, 0, followed(content[:agreed], xxh128(content[:agreed])))
    with temporary(site, id_).open("ab") as file:
        file.write(damaged[agreed:])
    await elsewhere.leftovers.recover()
    await asyncio.gather(*elsewhere.publications.tasks, return_exceptions=True)
    now = await elsewhere.get(AGENT, id_)
    assert (now.state, now.offset) == (state, agreed)
    if agreed:
        done = await elsewhere.append(AGENT, id_, 2000, followed(content[2000:], xxh128(content)))
        assert (done.state, site.content("raw/a.bin")) == (UploadState.COMPLETE, content)
    assert site.incoming() == []


async def test_a_file_that_is_another_than_announced_fails_however_well_its_parts_fit(site: Site) -> None:
    content = os.urandom(3000)
    id_ = (await site.uploads.create(AGENT, "a.bin", len(content), xxh128(b"other"))).id
    await site.uploads.append(AGENT, id_, 0, followed(content[:2000], xxh128(content[:2000])))
    with pytest.raises(ChecksumMismatch, match="another content than announced"):
        await site.uploads.append(AGENT, id_, 2000, followed(content[2000:], xxh128(content)))
    assert (await site.uploads.get(AGENT, id_)).state is UploadState.FAILED
    assert site.incoming() == []


async def test_marks_go_with_what_they_speak_of(site: Site, elsewhere: Uploads) -> None:
    content = os.urandom(6000)
    id_ = await begin_and_die(site, content)
    mark(site, "orphan").touch()
    await elsewhere.leftovers.recover()
    assert set(site.incoming()) == {id_, f"{id_}.agreed"}
    await site.uploads.terminate(AGENT, id_)
    assert site.incoming() == []


async def test_a_digest_of_another_algorithm_is_refused(site: Site) -> None:
    id_ = await promised(site, b"12345")
    body = followed(b"123", sha256(b"123"))
    with pytest.raises(Invalid, match="are xxh128, not sha256"):
        await site.uploads.append(AGENT, id_, 0, body)
    assert (await site.uploads.get(AGENT, id_)).offset == 0


async def test_a_part_that_others_are_joined_to_has_such_digests_too(site: Site) -> None:
    content = os.urandom(3000)
    part = await site.uploads.create(AGENT, "part", len(content), None, partial=True)
    await site.uploads.append(AGENT, part.id, 0, parts(content[:1000]))
    await site.uploads.append(AGENT, part.id, 1000, followed(content[1000:2000], sha256(content[:2000])))
    with pytest.raises(ChecksumMismatch):
        await site.uploads.append(AGENT, part.id, 2000, followed(bytes(1000), sha256(content)))
    assert (await site.uploads.get(AGENT, part.id)).offset == 2000


def test_a_body_that_is_too_short_for_the_digest_behind_it() -> None:
    with pytest.raises(Invalid, match="don't end with"):
        Followed(parts(b"x" * 15), 15, "xxh128")
