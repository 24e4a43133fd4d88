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


async def test_a_process_that_has_not_seen_the_beginning_compares_at_the_end(site: Site) -> None:
    content = os.urandom(3000)
    id_ = await promised(site, content)
    await site.uploads.append(AGENT, id_, 0, followed(content[:1000], xxh128(content[:1000])))
    other = Uploads(site.store, site.live, site.folder, site.uploads.publications._examine)
    await other.append(AGENT, id_, 1000, followed(bytes(1000), xxh128(content[:2000])))
    with pytest.raises(ChecksumMismatch, match="another content than announced"):
        await other.append(AGENT, id_, 2000, followed(content[2000:], xxh128(content)))
    assert (await other.get(AGENT, id_)).state is UploadState.FAILED
    assert site.published() == set()
    await other.close()


def test_a_body_that_is_too_short_for_the_digest_behind_it() -> None:
    with pytest.raises(Invalid, match="don't end with"):
        Followed(parts(b"x" * 15), 15, "xxh128")
