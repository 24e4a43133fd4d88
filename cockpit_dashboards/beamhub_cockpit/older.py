"""Long lists: a page knows the newest, and asks for older ones page by page or by their name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from beamhub.schemas import Dataset, Job, Page

T = TypeVar("T", Dataset, Job)


@dataclass
class Older(Generic[T]):
    """What of a list the page has not asked for yet.

    `ask` gets what is looked for (None: anything), where to go on (None: at the newest) and how many.
    """

    ask: Callable[[str | None, str | None, int], Page[T]]
    count: int  # of a page
    # by what is looked for ("": anything): where the list goes on; None: that was its end
    _next: dict[str, str | None] = field(default_factory=dict)

    def newest(self, known: Mapping[int, T]) -> dict[int, T]:
        """The newest anew, with the older ones of those that are known."""
        page = self.ask(None, None, self.count)
        newest = {one.id: one for one in page.items}
        if page.next is None:
            self._next = {"": None}
            return newest
        self._next.setdefault("", page.next)
        return newest | {id_: one for id_, one in known.items() if id_ < min(newest)}

    def find(self, sought: str) -> dict[int, T]:
        """Those with this name that the page may not know."""
        name = sought.strip().casefold()
        return {} if self.whole or not name or name in self._next else self._read(name, None)

    def more(self, sought: str) -> dict[int, T]:
        """The next page of what is looked for."""
        name = sought.strip().casefold()
        return self._read(name, self._next[name]) if self.goes_on(sought) else {}

    @property
    def whole(self) -> bool:
        """Does the page know all of the list?"""
        return self._next.get("") is None

    def goes_on(self, sought: str) -> bool:
        """Are there more with this name than have been asked for?"""
        return not self.whole and self._next.get(sought.strip().casefold()) is not None

    def _read(self, name: str, after: str | None) -> dict[int, T]:
        page = self.ask(name or None, after, self.count)
        self._next[name] = page.next
        return {one.id: one for one in page.items}
