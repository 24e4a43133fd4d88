"""What a benchmark yields, and how it is measured, written and shown."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from beamhub.client import Client
from rich.console import Console
from rich.table import Table

RESULTS = Path(".bench/results.json")
DOCS = Path("docs/performance.md")


@dataclass(frozen=True)
class Result:
    """One number. With a peer, measured in the same run, the target is one of the ratio to the peer's value.
    `better` says on which side of the target it has to be."""

    area: str
    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    peer: str | None = None
    peer_value: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.peer_value if self.peer_value else None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        measured = self.value if self.ratio is None else self.ratio
        return measured <= self.target if self.better == "lower" else measured >= self.target

    def row(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio, "met": self.met}

    def cells(self) -> list[str]:
        """As a table shows it."""
        peer = "" if self.peer is None else f"{self.peer}: {self.peer_value:.3g} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        target = "" if self.target is None else f"{'≤' if self.better == 'lower' else '≥'} {self.target:g}"
        met = {True: "yes", False: "**missed**", None: ""}[self.met]
        return [self.area, self.name, f"{self.value:.3g} {self.unit}", peer, ratio, target, met]


HEAD = ["area", "what", "value", "peer in the same run", "ratio", "target", "met"]


def publish(results: Sequence[Result]) -> None:
    """Write the results, show them, and put those of each area where the documentation has a place for them:
    between `<!-- area -->` and `<!-- end -->`."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([result.row() for result in results], indent=1))
    table = Table(*HEAD)
    for result in results:
        table.add_row(*result.cells())
    Console(width=160).print(table)
    text = DOCS.read_text()
    for area in dict.fromkeys(result.area for result in results):
        lines = [HEAD, ["---"] * len(HEAD), *(result.cells() for result in results if result.area == area)]
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        before, mark, after = text.partition(f"<!-- {area} -->\n")
        if mark:
            text = f"{before}{mark}{rows}\n{after[after.index('<!-- end -->') :]}"
    DOCS.write_text(text)


def percentile(values: Iterable[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def latencies(client: Client, experiment: str, count: int) -> list[float]:
    """Seconds of the requests that a Cockpit makes, one after the other, in turns."""
    asked = (
        lambda: client.experiment(experiment),
        lambda: client.jobs(experiment=experiment),
        lambda: client.datasets(experiment),
        lambda: client.instruments(),
        lambda: client.members(experiment),
    )
    taken = []
    for n in range(count):
        began = time.perf_counter()
        asked[n % len(asked)]()
        taken.append(time.perf_counter() - began)
    return taken
