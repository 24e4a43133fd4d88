"""Files that are sent while they grow.

A file grows by design when it is an HDF5 file that is open for SWMR writing, when a master names it, or when
the configuration says so (`grow`). Its whole blocks are sent as they come, into an upload whose length and
digest are left open: a temporary file, of which nobody reads more than the frames that the service has been
told of (see beamhub.agent.preview). Once the file is ready, what its writer has changed since it was sent is
sent again; then it ends like any other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from beamhub.frames import formats
from beamhub.schemas import FileProgress, Upload

from .common import Common
from .complete import Holding
from .config import Watch
from .disk import Disk
from .file import ChangedError, Digesting, GoneError, Stamp, open_below, printable
from .journal import State
from .preview import LOOK, Preview
from .queue import Item
from .reader import Reader
from .sent import BLOCK, Sent
from .service import OffsetError, RefusedError, RestartError, UnavailableError

log = logging.getLogger("beamhub.agent")

STREAMS = 4  # files at a time
EXPECTED = 10_000  # files of masters in memory
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR = 4  # the flag of a superblock


@dataclass(slots=True)
class _Growing:
    name: str
    stamp: Stamp
    over: asyncio.Event = field(default_factory=asyncio.Event)  # what could be sent has been


class Growth:
    """Sends files of one watched directory while they grow, some of them side by side.

    Args:
        is_gone: asked whether a file is missing because the directory itself is not there.
    """

    def __init__(
        self, watch: Watch, common: Common, disk: Disk, is_gone: Callable[[], Awaitable[bool]]
    ) -> None:
        self._watch, self._common, self._disk = watch, common, disk
        self._is_gone = is_gone
        self._service, self._journal, self._pause = common.service, common.journal, common.pause
        self._expected: dict[str, None] = {}  # what masters name, oldest first
        self._unwanted: set[str] = set()  # by the service
        self._unseen: set[str] = set()  # whose frames can't be told
        self._sent: dict[str, Sent] = {}  # what it has of each
        self._previews: dict[str, Preview] = {}
        self._looks: dict[str, asyncio.TimerHandle] = {}  # when they go on, whatever is heard of the file
        self._reader = Reader()
        self._ordered = watch.ordered
        self._pending: dict[str, _Growing] = {}
        self._current: dict[str, _Growing] = {}
        self._more = asyncio.Event()

    def works(self) -> list[Coroutine[None, None, None]]:
        """What goes on side by side until it is cancelled."""
        return [*(self._stream() for _ in range(STREAMS)), self._reader.rest()]

    async def close(self) -> None:
        """When nothing goes on any more."""
        for look in self._looks.values():
            look.cancel()
        await self._reader.close()

    def expect(self, paths: Iterable[str]) -> None:
        """A master that has been seen names these files."""
        self._expected |= dict.fromkeys(paths)
        while len(self._expected) > EXPECTED:
            del self._expected[next(iter(self._expected))]

    def seen(self, name: str, stamp: Stamp) -> None:
        """A file that is not ready has this stamp now."""
        path = f"{self._watch.path}/{name}"
        by_design = self._watch.grows(name) or path in self._expected or Holding.concerns(name)
        if self._watch.in_place or not by_design or path in self._unwanted:
            return
        sent = self._sent.get(path)
        least = BLOCK if sent or not self._shows(name) else 1
        if path not in self._looks and stamp.size - (sent.offset if sent else 0) >= least:
            self._wait(path, name, stamp)

    def _shows(self, name: str) -> bool:
        """May frames of this file be seen before it is ready?"""
        part = formats.part(PurePosixPath(self._watch.destination(name)))
        unseen = f"{self._watch.path}/{name}" in self._unseen
        return self._ordered and self._common.shows and not unseen and part is not None and not part.is_member

    def _wait(self, path: str, name: str, stamp: Stamp) -> None:
        """For whoever has nothing else to send."""
        self._pending[path] = _Growing(name, stamp)
        self._more.set()

    async def leave(self, path: str) -> None:
        """From now on, nothing of this file is sent here."""
        self._pending.pop(path, None)
        if growing := self._current.get(path):
            await growing.over.wait()
        self._pending.pop(path, None)
        self._forget(path)
        self._expected.pop(path, None)
        self._unseen.discard(path)

    def _forget(self, path: str) -> None:
        """What the service has of it is asked anew."""
        self._sent.pop(path, None)
        self._previews.pop(path, None)
        if look := self._looks.pop(path, None):
            look.cancel()

    @property
    def progress(self) -> list[FileProgress]:
        """The files that are being sent."""
        progress = []
        for path, growing in self._current.items():
            entry, sent = self._journal.find(path), self._sent.get(path)
            progress.append(
                FileProgress(
                    name=printable(self._watch.destination(growing.name)),
                    size=growing.stamp.size,
                    sent=min(sent.offset if sent else 0, growing.stamp.size),
                    experiment=entry.experiment if entry else None,
                )
            )
        return progress

    async def _stream(self) -> None:
        while True:
            await self._pause.wait()
            path, growing = await self._next()
            self._current[path] = growing
            try:
                if (due := await self._attempt(path, growing)) is not None and path not in self._looks:
                    look = asyncio.get_running_loop().call_at(due, self._look, path, growing)
                    self._looks[path] = look
            finally:
                del self._current[path]
                growing.over.set()
                self._more.set()

    async def _next(self) -> tuple[str, _Growing]:
        """The file that has waited longest of those that nobody is at."""
        while True:
            for path in self._pending:
                if path not in self._current:
                    return path, self._pending.pop(path)
            self._more.clear()
            await self._more.wait()

    def _look(self, path: str, growing: _Growing) -> None:
        del self._looks[path]
        self._wait(path, growing.name, growing.stamp)

    async def _attempt(self, path: str, growing: _Growing) -> float | None:
        """When to go on, on the event loop's clock, though nothing is heard of it until then."""
        soon: float | None = asyncio.get_running_loop().time() + LOOK
        try:
            return await self._send(path, growing)
        except UnavailableError as error:
            self._pause.begin(error)
        except OffsetError as error:
            log.info("%s: %s", printable(path), error)
        except RestartError as error:
            log.info("%s is sent again from its beginning: %s", printable(path), error)
            self._journal.forget_growing(path)
        except RefusedError as error:
            log.warning("%s is not sent while it grows: %s", printable(path), error)
            self._unwanted.add(path)
            self._journal.forget_growing(path)
            soon = None
        except (GoneError, ChangedError) as problem:
            if not (isinstance(problem, GoneError) and await self._is_gone()):
                await self._give_up(path)
            soon = None
        except OSError as error:
            log.warning("%s can't be read while it grows (%s)", printable(path), error.strerror)
            soon = None
        self._forget(path)
        return soon

    async def _give_up(self, path: str) -> None:
        """It has another name now, or has become shorter: what the service has of it is of no use."""
        entry = self._journal.find(path)
        if entry is None or entry.state is not State.GROWING:
            return
        self._journal.forget(path)
        if entry.upload:
            try:
                await self._service.terminate(entry.upload)
            except UnavailableError as error:
                log.info("%s: the upload that was given up is left to expire: %s", printable(path), error)

    async def _send(self, path: str, growing: _Growing) -> float | None:
        """As `_attempt`."""
        entry = self._journal.find(path)
        if entry and entry.state not in (State.GROWING, State.ARRIVED):  # it is ready, or not wanted
            return None
        if (entry is None or not entry.upload) and self._pause.held:
            return None
        file = await self._disk.ask(open_below, self._watch.path, growing.name)
        try:
            stamp = Stamp.of(await self._disk.ask(os.fstat, file))
            if stamp.inode != growing.stamp.inode:
                raise GoneError(growing.name)
            swmr = await self._disk.ask(open_for_swmr, file)
            shown = swmr or path in self._previews  # its writer may have closed it since
            if not (shown or self._watch.grows(growing.name) or path in self._expected):
                return None
            if entry and (entry.state is not State.GROWING or entry.stamp.inode != stamp.inode):
                await self._give_up(path)
                entry = None
            begun = entry is not None and entry.upload is not None
            if stamp.size < BLOCK and not begun and not (swmr and await self._has_frames(path)):
                return None  # it need not be sent before it is ready
            sent = await self._begun(path, growing, stamp, entry.upload if entry else None)
            if shown and self._shows(growing.name):
                return await self._show(path, file, sent)
            await sent.append(file, stamp.size // BLOCK * BLOCK)
            return None
        finally:
            self._disk.begin(os.close, file)

    async def _has_frames(self, path: str) -> bool:
        listing = await self._reader.frames(path, str(self._watch.path), 0)
        if listing.hopeless:
            self._unseen.add(path)
        return listing.growing is not None

    async def _show(self, path: str, file: int, sent: Sent) -> float | None:
        """Sends what there is, and tells of the frames in it."""
        preview = self._previews.get(path)
        if preview is None or preview.sent is not sent:
            preview = Preview(self._watch.path, sent, self._common, self._disk, self._reader)
            self._previews[path] = preview
        await preview.go_on(file)
        if not preview.over:
            return preview.due
        self._unseen.add(path)
        return None

    async def _begun(self, path: str, growing: _Growing, stamp: Stamp, location: str | None) -> Sent:
        """What the service has of the file."""
        if location is None:
            entry = self._journal.find(path)
            if entry is None or entry.state is not State.GROWING or entry.key is None:
                self._journal.grow(path, stamp, secrets.token_hex(16))
                entry = self._journal.find(path)
            assert entry  # noqa: S101 (it has just been written)
            assert entry.key  # noqa: S101
            location, upload = await self._service.create(
                self._watch.destination(growing.name),
                None,
                self._common.config.upload.digest,
                experiment=entry.experiment,
                key=entry.key,
            )
            self._journal.begun(path, location, upload.experiment)
            log.info("%s is sent while it grows", printable(path))
        elif sent := self._sent.get(path):
            return sent
        else:
            upload = await self._service.upload(location)
            if upload.ended or not upload.deferred:  # its length has been told: it can't grow any more
                await self._service.terminate(location)
                raise RestartError(upload.error or "it has grown since all of it was announced")
        sent = self._sent[path] = Sent(path, location, upload, self._common, self._disk)
        return sent

    async def mend(self, file: int, item: Item, location: str, upload: Upload) -> Upload:
        """Sends again what has changed since it was sent, of a file that is ready now, and then the whole
        blocks that have not been sent: as long as its length is not told, it may still go on growing.

        Raises:
            RestartError: it has become shorter than what was sent.
            ChangedError, UnavailableError, RefusedError
        """
        if item.stamp.size < upload.offset:
            await self._service.terminate(location)
            raise RestartError("it has become shorter")
        assert upload.digest_follows  # noqa: S101 (so it was announced)
        item.digesting = item.digesting or Digesting(upload.digest_follows)
        sent = Sent(item.path, location, upload, self._common, self._disk)
        again = 0
        try:
            for number in range(-(-upload.offset // BLOCK)):
                again += await sent.renew(file, number, item)
            if upload.deferred:
                await sent.append(file, item.stamp.size // BLOCK * BLOCK, item)
                upload = upload.model_copy(update={"offset": sent.offset})
        except OffsetError as error:  # a request that broke off has not ended there
            raise UnavailableError(str(error)) from error
        log.info(
            "%s was sent while it grew: %.2f MB, of which %.2f MB again",
            printable(item.path),
            upload.offset / 1e6,
            again / 1e6,
        )
        return upload


def open_for_swmr(file: int) -> bool:
    """Does an HDF5 file say that somebody writes it for readers beside them? Its superblock lies at its
    beginning then."""
    head = os.pread(file, 12, 0)
    return len(head) == 12 and head.startswith(_SIGNATURE) and head[8] >= 3 and bool(head[11] & _SWMR)
