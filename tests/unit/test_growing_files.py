"""Files whose length or digest follows, and those that change while they grow."""

from __future__ import annotations

import hashlib
import os

import pytest
from beamhub.announcements import MAX_SIZE
from beamhub.body import Chunks
from beamhub.errors import (
    ChecksumMismatch,
    Conflict,
    DigestRequired,
    Invalid,
    NotFound,
    QuotaExceeded,
    TooLarge,
)
from beamhub.schemas import DigestAlgorithm, ExperimentChange, UploadState
from beamhub.uploads import REWRITE, Uploads

from tests.unit.uploading import ADA, AGENT, EVE, OTHER_AGENT, SAM, Site, broken, parts, sha256, xxh128


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
    await site.uploads.leftovers.recover()
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
    await site.uploads.leftovers.recover()
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
    with pytest.raises(TooLarge):
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


def sha256_of(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


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
    with pytest.raises(ChecksumMismatch):
        await site.uploads.rewrite(AGENT, upload.id, 0, 2, parts(b"xy"), ("sha256", sha256_of(b"xx")))
    with pytest.raises(Invalid, match="crc7"):
        await site.uploads.rewrite(AGENT, upload.id, 0, 2, parts(b"xy"), ("crc7", b"x"))
    await site.uploads.rewrite(AGENT, upload.id, 0, 2, parts(b"ab"), ("sha256", sha256_of(b"ab")))
    without = await site.announce("b.bin", b"abcd")
    await site.uploads.append(AGENT, without.id, 0, parts(b"abc"))
    with pytest.raises(Conflict):
        await site.uploads.rewrite(AGENT, without.id, 0, 1, parts(b"a"))
    done = await site.uploads.append(AGENT, upload.id, 3, parts(b"d"), digest=sha256(b"abcd"))
    assert done.state is UploadState.COMPLETE
