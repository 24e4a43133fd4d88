"""Files that are ready, in the order in which they are sent.

What a detector writes now is what people wait for, however much is left of a time when nothing could be
sent. So the acquisition whose file became ready last comes first, and its files in the order in which they
were written: live data does not wait behind a backlog, and no acquisition is seen from its end.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from beamhub.schemas import BATCH_FILES

from .config import Watch
from .file import Digesting, Stamp

MASTERS = ("_master.h5", ".nxs")
SMALL = 1 << 18  # bytes of a file that is sent together with others
_OWN = re.compile(
    r"(_master|(_data)?_?\d+)?(\.[^./]+)?$"
)  # in a name what one file of an acquisition has for itself


@dataclass(order=True, slots=True)
class Item:
    """A ready file on its way."""

    order: tuple[bool, int, str]  # among those of its acquisition
    watch: Watch = field(compare=False)
    name: str = field(compare=False)  # below the watched directory
    stamp: Stamp = field(compare=False)
    sent: int = field(default=0, compare=False)
    restarts: int = field(default=0, compare=False)
    faults: int = field(default=0, compare=False)  # of the service, over this file
    digesting: Digesting | None = field(default=None, compare=False)  # while it is sent
    finished: Stamp | None = field(default=None, compare=False)  # a later state that is ready at once
    sending: asyncio.Task[bool] | None = field(default=None, compare=False)
    announcing: asyncio.Event | None = field(default=None, compare=False)  # set when the answer is there
    skipped: bool = field(default=False, compare=False)  # while it was on its way
    alone: bool = field(default=False, compare=False)  # it is not to be sent together with others

    @property
    def path(self) -> str:
        return f"{self.watch.path}/{self.name}"

    @property
    def is_small(self) -> bool:
        """Whether it is sent together with others."""
        return self.stamp.size <= SMALL and not self.alone and not self.watch.in_place


class Queue:
    """Ready files: those of the newest acquisition first; of one its master, so that data files find theirs,
    then the others from the oldest on. Small ones, which are sent together, don't wait for large ones."""

    def __init__(self) -> None:
        self._small, self._large = _Line(), _Line()
        self._items: dict[str, Item] = {}
        self.size = 0  # bytes of all

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def find(self, path: str) -> Item | None:
        return self._items.get(path)

    def add(self, watch: Watch, name: str, stamp: Stamp) -> None:
        self._put(Item((not name.endswith(MASTERS), stamp.mtime_ns, name), watch, name, stamp), newest=True)

    def put(self, item: Item, after: float = 0.0) -> None:
        """Puts an item back into its place; it is not sent again before `after` seconds have passed."""
        if not after:
            self._put(item, newest=False)
            return
        self._keep(item)
        asyncio.get_running_loop().call_later(after, self._line(item).put, item)

    def _put(self, item: Item, *, newest: bool) -> None:
        self._keep(item)
        self._line(item).put(item, newest=newest)

    def _keep(self, item: Item) -> None:
        self.drop(item.path)
        self._items[item.path] = item
        self.size += item.stamp.size

    def _line(self, item: Item) -> _Line:
        return self._small if item.is_small else self._large

    def drop(self, path: str) -> None:
        if item := self._items.pop(path, None):
            self.size -= item.stamp.size

    async def get(self) -> Item:
        """The next one that is sent by itself."""
        return await self._next(self._large)

    async def take(self, size: int) -> list[Item]:
        """Small ones to be sent together: all that are ready, but at least one, and no more than have `size`
        bytes."""
        items = [await self._next(self._small)]
        size -= items[0].stamp.size
        while len(items) < BATCH_FILES and (item := self._pop(self._small)):
            size -= item.stamp.size
            if size < 0:
                self.put(item)
                break
            items.append(item)
        return items

    async def _next(self, line: _Line) -> Item:
        while (item := self._pop(line)) is None:
            line.filled.clear()
            await line.filled.wait()
        return item

    def _pop(self, line: _Line) -> Item | None:
        while (item := line.pop()) is not None:
            if self._items.get(item.path) is item:  # else dropped meanwhile
                self.drop(item.path)
                return item
        return None


class _Line:
    """Items by their acquisitions, the newest of these last."""

    def __init__(self) -> None:
        self._acquisitions: dict[str, list[Item]] = {}
        self.filled = asyncio.Event()

    def put(self, item: Item, *, newest: bool = False) -> None:
        """`newest`: its acquisition is the newest now."""
        acquisition = _OWN.sub("", item.name, 1)
        items = self._acquisitions.setdefault(acquisition, [])
        heapq.heappush(items, item)
        if newest:
            self._acquisitions[acquisition] = self._acquisitions.pop(acquisition)
        self.filled.set()

    def pop(self) -> Item | None:
        if not self._acquisitions:
            return None
        acquisition, items = self._acquisitions.popitem()
        item = heapq.heappop(items)
        if items:
            self._acquisitions[acquisition] = items
        return item
