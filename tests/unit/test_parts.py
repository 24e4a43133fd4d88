"""Parts of files, and files that are put together from them."""

from __future__ import annotations

import os

import pytest
from beamhub.errors import ChecksumMismatch, Conflict, Forbidden, Invalid, NotFound
from beamhub.incoming import BLOCK
from beamhub.schemas import Upload, UploadState
from beamhub.uploads import MAX_PARTS

from tests.unit.uploading import ADA, AGENT, Site, begin_part, parts, sha256, xxh128


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
    await site.uploads.leftovers.recover()  # nothing is published for all its bytes being there
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


async def test_a_file_has_not_so_many_parts_that_no_other_file_can_be_opened(site: Site) -> None:
    part = await begin_part(site, b"1")
    with pytest.raises(Invalid, match="at most"):
        await concatenate(site, [part] * (MAX_PARTS + 1))
