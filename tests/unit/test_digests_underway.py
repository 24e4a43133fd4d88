"""Digests in the making: nothing is read twice that need not be, nor believed where it may have changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest
from beamhub.errors import ChecksumMismatch
from beamhub.publications import Findings
from beamhub.schemas import Upload, UploadState
from beamhub.uploads import Uploads

from tests.unit.uploading import AGENT, Site, parts, sha256


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
    await uploads.leftovers.recover()
    await uploads.close()
    done = await site.uploads.get(AGENT, upload.id)
    assert (done.state, done.digest, attempts) == (UploadState.COMPLETE, sha256(content), 2)
