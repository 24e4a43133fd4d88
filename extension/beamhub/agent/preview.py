"""Frames of a file that is sent while it grows, for members to see before it is ready.

The service reads a frame where it lies in what has been sent. So these bytes have to be the frame's, though
the file is not finished: a SWMR writer adds a frame to the lists in the file after it has written it, and
does not touch it again. What is read after a frame was found in the lists is the frame; what had been sent
before is read again, and sent again if it has changed. Only then the service is told of the frame.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from beamhub.frames.growing import MAX_TOLD, Growing

from .common import Common
from .disk import Disk
from .file import Stamp, printable
from .reader import Reader
from .sent import BLOCK, Sent
from .service import OffsetError, RefusedError

log = logging.getLogger("beamhub.agent")

LOOK = 1.0  # seconds between looks at a file
SHARE = 0.1  # of a core, at most, is spent on listing the frames of a file again and again
AGAIN = 256  # blocks that are read again at a time; the frames behind them are told later


class Preview:
    """The frames of one growing file that is open for SWMR writing.

    Args:
        root: the watched directory.
        sent: what the service has of the file.
        reader: lists frames.
    """

    def __init__(self, root: Path, sent: Sent, common: Common, disk: Disk, reader: Reader) -> None:
        self.due = 0.0  # when to go on, on the event loop's clock
        self.over = False  # nothing more can be told
        self.sent = sent
        self._root = str(root)
        self._common, self._disk, self._reader = common, disk, reader
        self._seen: Stamp | None = None  # its state at the last look
        self._finished: Stamp | None = None  # the state in which there was nothing left to tell
        self._not_before = 0.0  # the frames are to be listed again
        self._problem = ""
        self._logged = False

    async def go_on(self, file: int) -> None:
        """Sends what the open file has now, and tells of the frames that the service has then.

        Raises:
            ChangedError, DamagedError, OffsetError, RestartError, RefusedError, UnavailableError
        """
        begun = asyncio.get_running_loop().time()
        self.due = begun + LOOK
        stamp = Stamp.of(await self._disk.ask(os.fstat, file))
        if stamp == self._finished:
            return
        sent, before = self.sent, self.sent.offset
        listed = begun >= self._not_before
        growing = await self._list(stamp, begun) if listed else None
        size = (await self._disk.ask(os.fstat, file)).st_size
        end = size // BLOCK * BLOCK
        if growing and end <= before:  # nothing is coming that would make the last block whole
            end = max(end, reach(growing.chunks, size))
        await sent.append(file, end)
        if growing:
            await self._tell(file, growing, before)
        more = growing and (growing.frames > sent.frames or len(growing.chunks) == MAX_TOLD)
        # once more in the same state: something may have come in the same tick of the file system's clock
        self._finished = stamp if listed and not more and stamp == self._seen else None
        self._seen = stamp

    async def _list(self, stamp: Stamp, now: float) -> Growing | None:
        """The frames that the service does not know of; None where there are none."""
        listing = await self._reader.frames(self.sent.path, self._root, self.sent.frames)
        self._not_before = now + listing.seconds / SHARE
        self.over = listing.hopeless
        lasts = listing.hopeless or listing.problem == self._problem  # it is not so at this moment only
        if listing.problem and lasts:
            self._log(listing.problem)
        self._problem = listing.problem
        return listing.growing if listing.inode == stamp.inode else None

    async def _tell(self, file: int, growing: Growing, before: int) -> None:
        """Of the frames that the service has as they are now; what it had `before` they were listed may not
        be as it is now."""
        sent = self.sent
        count, blocks = next_told(growing.chunks, sent.offset, before)
        for number in blocks:
            await sent.renew(file, number)
        if not count:
            return
        told = growing.model_copy(update={"chunks": growing.chunks[:count]})
        try:
            upload = await self._common.service.announce(sent.location, told)
        except OffsetError as error:  # it does not know all that it has been told
            log.info("%s: %s", printable(sent.path), error)
            sent.frames = (await self._common.service.upload(sent.location)).frames or 0
            return
        except RefusedError as error:
            self.over = True
            self._log(f"is refused: {error}")
            return
        if upload is None:
            if self._common.shows:
                log.info("no file shows frames before it is ready: the service is of an older beamhub")
            self._common.shows, self.over = False, True
        elif upload.frames is None:  # a file of this name is published, and is what members see
            self.over = True
        else:
            sent.frames = upload.frames

    def _log(self, problem: str) -> None:
        if not self._logged:
            log.warning("%s shows no frames before it is ready: it %s", printable(self.sent.path), problem)
        self._logged = True


def reach(chunks: Sequence[tuple[int, int]], size: int) -> int:
    """The end of those of these frames, from the first on, that lie in the first `size` bytes of the file."""
    end = 0
    for offset, length in chunks:
        if offset + length > size:
            break
        end = max(end, offset + length)
    return end


def next_told(
    chunks: Sequence[tuple[int, int]], offset: int, before: int, most: int = AGAIN
) -> tuple[int, list[int]]:
    """Which frames may be told.

    Args:
        chunks: where they lie (first byte, bytes), found in the file's lists when `before` bytes had been
            sent.
        offset: how many bytes have been sent now.
        most: blocks that are read again at a time, but that one frame may need more.

    Returns:
        how many of these frames, from the first on, and the numbers of the blocks with bytes of theirs that
        were sent before: these are to be read again first.
    """
    count, blocks = 0, set[int]()
    for begin, size in chunks:
        end = begin + size
        old = range(begin // BLOCK, -(-min(end, before) // BLOCK)) if begin < before else range(0)
        more = len(blocks) + sum(number not in blocks for number in old)
        if end > offset or (count and more > most):
            break
        blocks.update(old)
        count += 1
    return count, sorted(blocks)
