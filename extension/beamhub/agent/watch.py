"""What is in a watched directory, and what appears there."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import inotify
from .config import Watch
from .disk import PARTING, Disk
from .file import Stamp, encodable, look, oddity, printable

log = logging.getLogger("beamhub.agent")

REMEMBERED = 1000  # things that can't be sent
SHARE = 0.005  # of a core, at most, is spent on looking at everything again and again
AT_ONCE = 1000  # files that are seen to in one go: the agent has other things to do
BLIND_PAUSE = 5.0  # seconds between looks at everything when the kernel can't tell what happens


class LostError(Exception):
    """The watched directory itself is gone: unmounted, deleted or renamed."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A file that was seen."""

    watch: Watch
    name: str  # relative to the watched directory, with slashes
    stamp: Stamp
    finished: bool = False  # by its writer: it has just been renamed into place, or its detector says so

    @property
    def path(self) -> str:
        return f"{self.watch.path}/{self.name}"


class Tree:
    """A watched directory.

    On Linux the kernel tells what happens there; a look at the whole directory at the start and now and then
    finds what was there before, and what an overflow of notices lost. On network file systems the kernel
    hears nothing of other machines' writes: there the whole directory is looked at every few seconds, or,
    where that takes too much of a core, fewer times, and between that its folders alone.

    Args:
        known: whether a file in this state needs no more attention; asked from a thread.
        seen: told in the event loop of every other file that is there or appears, perhaps more than once.
        disk: where to look.
    """

    def __init__(
        self,
        watch: Watch,
        known: Callable[[str, Stamp], bool],
        seen: Callable[[Sighting], None],
        disk: Disk,
    ) -> None:
        self.walked = asyncio.Event()  # all that was there at the start has been seen
        self.problem = ""  # of the directory as a whole, in one sentence
        self.device: int | None = None  # that it lies on; None: it has not been looked at
        self.odd: dict[str, str] = {}  # what is there but can't be sent, and why
        self._watch = watch
        self._root = str(watch.path)
        self._known = known
        self._seen = seen
        self._disk = disk
        self._failure: asyncio.Future[None] | None = None  # of who is told what is seen
        self._to_walk: dict[str, None] = {}  # folders, each once, however often something is told of it
        self._errand = asyncio.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()  # _folders and _inotify are used by the walking thread, too
        self._folders: dict[int, str] = {}  # inotify's number -> path
        self._inotify: inotify.Inotify | None = None
        self._changed: dict[str, int] = {}  # folder -> when something last came into it, at the last look
        self._once_more: set[str] = set()  # of these, those that are to be looked at again in any case

    async def follow(self) -> None:
        """Looks and listens until it is cancelled.

        Raises:
            LostError: the directory is gone.
        """
        self._failure = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as group:
                if not self._watch.polls and (notices := self._begin_listening()):
                    group.create_task(self._listen(notices))
                group.create_task(self._walk())
                await self._failure
        except* LostError as lost:
            raise LostError(*lost.exceptions[0].args) from None
        finally:
            self._stop.set()
            # which may have to wait for whoever looks, and hangs
            await asyncio.wait({self._disk.begin(self._stop_listening)}, timeout=PARTING)

    def look_again(self) -> None:
        """At everything, soon."""
        self._look_soon(self._root)

    def _look_soon(self, folder: str) -> None:
        self._to_walk[folder] = None
        self._errand.set()

    def _begin_listening(self) -> inotify.Inotify | None:
        try:
            self._inotify = inotify.Inotify() if inotify.available else None
        except OSError as error:
            self.problem = (
                f"the kernel can't tell what happens in {self._root} ({error.strerror}): raise fs.inotify."
                f"max_user_instances; until then everything is looked at every {BLIND_PAUSE:g} seconds"
            )
        return self._inotify

    def _stop_listening(self) -> None:
        with self._lock:
            if self._inotify:
                self._inotify.close()
                self._inotify = None

    # --- looking -------------------------------------------------------------------------------------------

    async def _walk(self) -> None:
        loop = asyncio.get_running_loop()

        def tell(looking: Iterator[list[Sighting]]) -> float:
            """Tells what is seen; seconds of CPU that looking took."""
            begun = time.thread_time()
            for sightings in looking:
                loop.call_soon_threadsafe(self._tell, sightings)
            return time.thread_time() - begun

        folder = self._root
        while True:
            cost = await self._disk.ask(tell, self.look(folder))
            if folder == self._root:
                pause = BLIND_PAUSE if self.problem else self._watch.pause
                glance = loop.time() + pause
                walk = loop.time() + max(pause, cost / SHARE)
                self.walked.set()
            while True:
                try:
                    async with asyncio.timeout_at(min(glance, walk)):
                        await self._errand.wait()
                    folder = next(iter(self._to_walk))
                    del self._to_walk[folder]
                    if not self._to_walk:
                        self._errand.clear()
                    break
                except TimeoutError:
                    folder = self._root
                if loop.time() >= walk:
                    break
                await self._disk.ask(tell, self.glance())
                glance = loop.time() + pause

    def _tell(self, sightings: list[Sighting]) -> None:
        try:
            for sighting in sightings:
                self._seen(sighting)
        except Exception as error:  # nobody waits for a callback: `follow` tells
            if self._failure and not self._failure.done():
                self._failure.set_exception(error)

    def glance(self) -> Iterator[list[Sighting]]:
        """What needs attention in folders that something has come into since they were looked at.

        What was overwritten in its place is only found by a look at everything.

        Raises:
            LostError: the directory is gone.
        """
        for folder, before in list(self._changed.items()):
            try:
                changed = self._times(folder)
            except OSError as error:
                if folder == self._root:
                    raise LostError(f"{folder} can't be read ({error.strerror})") from error
                del self._changed[folder]
                self._once_more.discard(folder)
                continue
            if changed == before and folder not in self._once_more:
                continue
            # once more the next time: the next file may have come in the same tick of the file system's clock
            (self._once_more.discard if changed == before else self._once_more.add)(folder)
            yield from self.look(folder, deep=False)

    def look(self, top: str = "", *, deep: bool = True) -> Iterator[list[Sighting]]:
        """What needs attention in the folder `top` (the whole directory) and below, folder by folder, and in
        each from the oldest on.

        Args:
            deep: also below folders that have been looked at before.

        After a look at the whole directory `odd` holds what can't be sent.

        Raises:
            LostError: the directory is gone.
        """
        odd: dict[str, str] = {}
        folders = [top or self._root]
        while folders and not self._stop.is_set():
            folder = folders.pop()
            sightings = []
            try:
                self._listen_to(folder)  # before the look: nothing falls in between
                self._changed[folder] = self._times(folder)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            new = deep or entry.path not in self._changed
                            if new and self._watch.wants_folder(self._name(entry.path)):
                                folders.append(entry.path)
                        elif sighting := self._sighting(entry.path, odd):
                            sightings.append(sighting)
            except OSError as error:
                if folder == self._root:
                    raise LostError(f"{folder} can't be read ({error.strerror})") from error
                if not isinstance(error, FileNotFoundError | NotADirectoryError):  # else just gone
                    self._note(odd, folder, f"is a folder that can't be read ({error.strerror})")
            sightings.sort(key=lambda sighting: sighting.stamp.mtime_ns)  # as they came
            for begin in range(0, len(sightings), AT_ONCE):
                yield sightings[begin : begin + AT_ONCE]
        self.odd = odd if deep and top in ("", self._root) else {**self.odd, **odd}

    def _times(self, folder: str) -> int:
        """When something last came into the folder.

        Raises LostError where another disk is in the place of the directory's, or none any more: what lies
        below a mount point looks like an empty directory.
        """
        status = os.lstat(folder)
        if folder == self._root:
            if self.device not in (None, status.st_dev):
                raise LostError(f"{folder} is not on the disk any more that it was on")
            self.device = status.st_dev
        return status.st_mtime_ns

    def _sighting(self, path: str, odd: dict[str, str], *, finished: bool = False) -> Sighting | None:
        """What to tell of a path that is no directory; None where it needs no attention or is odd."""
        name = self._name(path)
        if not self._watch.wants(name):
            return None
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._note(odd, path, f"can't be looked at ({error.strerror})")
            return None
        if kind := oddity(status.st_mode):
            self._note(odd, path, f"is {kind}: it is not followed and not sent")
            return None
        if not encodable(path):
            self._note(odd, path, "has a name that is not UTF-8: rename it to have it sent")
            return None
        stamp = Stamp.of(status)
        return None if self._known(path, stamp) else Sighting(self._watch, name, stamp, finished=finished)

    def finished(self, path: str) -> Sighting | str:
        """What to tell of a path whose file is said to be finished; else the reason why it can't be sent."""
        name = self._name(path)
        folders = name.split("/")[:-1]
        wanted = all(self._watch.wants_folder("/".join(folders[: n + 1])) for n in range(len(folders)))
        if not wanted or not self._watch.wants(name):
            return "is not one of the files that are to be sent (include, exclude, hidden or temporary)"
        stamp = look(path)
        if stamp is None:
            return "is no file"
        return Sighting(self._watch, name, stamp, finished=True)

    def _note(self, odd: dict[str, str], path: str, problem: str) -> None:
        if path not in self.odd:
            log.warning("%s %s", printable(path), problem)
        if len(odd) < REMEMBERED:
            odd[path] = problem

    def _name(self, path: str) -> str:
        return path[len(self._root) + 1 :]

    # --- listening -----------------------------------------------------------------------------------------

    def _listen_to(self, folder: str) -> None:
        with self._lock:
            if self._inotify is None:
                return
            try:
                self._folders[self._inotify.add(folder)] = folder
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self.problem = (
                    f"fs.inotify.max_user_watches is too low for the folders of {self._root}: raise it with "
                    f"sysctl; until then everything is looked at every {BLIND_PAUSE:g} seconds"
                )

    async def _listen(self, notices: inotify.Inotify) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(notices.fileno(), readable.set)
        try:
            while True:
                await readable.wait()
                readable.clear()
                for news in await self._disk.ask(self._hear_all, notices.read(), notices):
                    if isinstance(news, Sighting):
                        self._seen(news)
                    else:
                        self._look_soon(news)
        finally:
            loop.remove_reader(notices.fileno())

    def _hear_all(self, batch: list[inotify.Notice], notices: inotify.Inotify) -> list[Sighting | str]:
        """What has been seen, and which folders are to be looked through."""
        return [news for notice in batch if (news := self._hear(notice, notices))]

    def _hear(self, notice: inotify.Notice, notices: inotify.Inotify) -> Sighting | str | None:
        if notice.mask & inotify.OVERFLOW:
            return self._root
        with self._lock:
            folder = self._folders.get(notice.watch)
        if folder is None:  # of a folder that has been moved away
            return None
        if notice.mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED):
            if folder == self._root:
                raise LostError(f"{folder} is gone")
            if notice.mask & inotify.IGNORED:
                with self._lock:
                    self._folders.pop(notice.watch, None)
            return None
        path = f"{folder}/{notice.name}"
        if notice.mask & inotify.IS_DIRECTORY:
            if notice.mask & inotify.MOVED_FROM:
                self._stop_listening_below(path, notices)
            elif self._watch.wants_folder(self._name(path)):
                return path
            return None
        if notice.mask & inotify.MOVED_FROM:
            return None
        return self._sighting(path, self.odd, finished=bool(notice.mask & inotify.MOVED_TO))

    def _stop_listening_below(self, folder: str, notices: inotify.Inotify) -> None:
        """The numbers of folders that have moved stand for their old paths: forget them."""
        with self._lock:
            if self._inotify is None:  # it is over
                return
            for number, path in list(self._folders.items()):
                if path == folder or path.startswith(folder + "/"):
                    notices.remove(number)
                    del self._folders[number]
