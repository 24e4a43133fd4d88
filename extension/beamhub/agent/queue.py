"""Files that are ready, in the order in which they are sent."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from beamhub.schemas import BATCH_FILES

from .config import Watch
from .file import Digesting, Stamp

MASTERS = ("_master.h5", ".nxs")
SMALL = 1 << 18  # bytes of a file that is sent together with others


@dataclass(order=True, slots=True)
class Item:
    """A ready file on its way."""

    order: tuple[bool, int]
    watch: Watch = field(compare=False)
    name: str = field(compare=False)  # below the watched directory
    stamp: Stamp = field(compare=False)
    sent: int = field(default=0, compare=False)
    restarts: int = field(default=0, compare=False)
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
    """Ready files: masters first, so that data files find theirs; else in the order of their arrival. Small
    ones, which are sent together, don't wait for large ones."""

    def __init__(self) -> None:
        self._small, self._large = _Line(), _Line()
        self._items: dict[str, Item] = {}
        self._number = 0
        self.size = 0  # bytes of all

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def find(self, path: str) -> Item | None:
        return self._items.get(path)

    def add(self, watch: Watch, name: str, stamp: Stamp) -> None:
        self._number += 1
        self.put(Item((not name.endswith(MASTERS), self._number), watch, name, stamp))

    def put(self, item: Item) -> None:
        """Puts an item (back) into its place."""
        self.drop(item.path)
        self._items[item.path] = item
        self.size += item.stamp.size
        line = self._small if item.is_small else self._large
        heapq.heappush(line.heap, item)
        line.filled.set()

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
        while line.heap:
            item = heapq.heappop(line.heap)
            if self._items.get(item.path) is item:  # else dropped meanwhile
                self.drop(item.path)
                return item
        return None


class _Line:
    def __init__(self) -> None:
        self.heap: list[Item] = []
        self.filled = asyncio.Event()
