"""Files that are ready, in the order in which they are sent."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from .config import Watch
from .file import Digesting, Stamp


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
    announced: asyncio.Event = field(default_factory=asyncio.Event, compare=False)  # no answer is awaited
    skipped: bool = field(default=False, compare=False)  # while it was on its way

    @property
    def path(self) -> str:
        return f"{self.watch.path}/{self.name}"


class Queue:
    """Ready files: masters first, so that data files find theirs; else in the order of their arrival."""

    def __init__(self) -> None:
        self._heap: list[Item] = []
        self._items: dict[str, Item] = {}
        self._number = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def find(self, path: str) -> Item | None:
        return self._items.get(path)

    def add(self, watch: Watch, name: str, stamp: Stamp) -> None:
        self._number += 1
        self.put(Item((not name.endswith("_master.h5"), self._number), watch, name, stamp))

    def put(self, item: Item) -> None:
        """Puts an item (back) into its place."""
        self._items[item.path] = item
        heapq.heappush(self._heap, item)
        self._filled.set()

    def drop(self, path: str) -> None:
        self._items.pop(path, None)

    async def get(self) -> Item:
        while True:
            while self._heap:
                item = heapq.heappop(self._heap)
                if self._items.get(item.path) is item:  # else dropped meanwhile
                    del self._items[item.path]
                    return item
            self._filled.clear()
            await self._filled.wait()
