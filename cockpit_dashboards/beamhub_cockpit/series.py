"""The series of jobs, as plots that follow them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from beamhub.client import Client
from beamhub.schemas import File, SeriesPage

from beamhub_cockpit.live import Live
from beamhub_cockpit.plot import Plot

_FILE = re.compile(r"series/([A-Za-z_][A-Za-z0-9_]{0,62})\.jsonl")


def begun(files: Iterable[File]) -> list[str]:
    """The series that a job has begun, by what lies in its folder."""
    return sorted(found[1] for file in files if (found := _FILE.fullmatch(file.path)))


def undrawn(files: Sequence[File]) -> list[str]:
    """Those that the job has not drawn itself, in a picture of the same name."""
    paths = {file.path for file in files}
    return [name for name in begun(files) if f"{name}.png" not in paths]


@dataclass
class Follower:
    """One series of one job: the plot that shows it, and how many rows have been read."""

    job: int
    name: str
    height: int = 72
    x_range: tuple[int, int] | None = None
    link: str = ""
    plot: Plot | None = field(default=None, init=False)
    read: int = field(default=0, init=False)
    columns: dict[str, str] = field(default_factory=dict, init=False)
    last: dict[str, object] = field(default_factory=dict, init=False)

    def refresh(self, client: Client, live: Live) -> None:
        """Read the rows that are new and hand them to the plot. On the page's worker."""
        page: SeriesPage = client.series(self.job, self.name, after=self.read)
        if self.plot is None:
            if not page.columns:
                return
            self.columns = dict(page.columns)
            self.plot = live.call(
                lambda: Plot(self.columns, height=self.height, x_range=self.x_range, link=self.link)
            )
        if page.items:
            plot, rows = self.plot, page.items
            self.last = dict(rows[-1])
            self.read = page.next
            live.show(lambda: plot.append(rows))
