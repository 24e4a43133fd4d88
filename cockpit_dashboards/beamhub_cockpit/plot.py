"""Line plots of a job's series that grow by their new rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anywidget
import traitlets
from pydantic import JsonValue

from beamhub_cockpit.format import unit_name
from beamhub_cockpit.region import FRONT, reference

VENDOR: Final = Path(__file__).parent / "vendor"
FLAGS: Final = ("ice",)  # columns of yes and no that mark frames in every panel
FROM_ZERO: Final = ("", "counts", "counts/pixel", "photons", "%")  # units whose axis starts at nought


class Plot(anywidget.AnyWidget):
    """One panel for each numeric column of a series, above one another, over its first column.

    Args:
        columns: name -> unit, in order; the first is the horizontal axis.
        height: of one panel, in pixels.
        x_range: of the horizontal axis, so that a running acquisition fills the plot from the left; None: as
            the data.
        link: to open with the horizontal value at its end, where somebody clicks; only for a column "frame".
    """

    _esm = (VENDOR / "uPlot.iife.min.js").read_text() + "\n" + (FRONT / "plot.js").read_text()
    panels: Any = traitlets.List().tag(sync=True)
    columns: Any = traitlets.List().tag(sync=True)
    x = traitlets.Dict().tag(sync=True)
    link = traitlets.Unicode("").tag(sync=True)
    empty = traitlets.Unicode("No values yet.").tag(sync=True)

    def __init__(
        self,
        columns: Mapping[str, str],
        *,
        height: int = 72,
        x_range: tuple[int, int] | None = None,
        link: str = "",
    ) -> None:
        names = list(columns)
        flag = next((name for name in names if name in FLAGS), None)
        drawn = [name for name in names[1:] if name not in FLAGS]
        super().__init__(
            columns=names,
            link=link if names[:1] == ["frame"] else "",
            panels=[
                {
                    "column": name,
                    "title": label(name),
                    "unit": unit_name(columns[name]),
                    "reverse": unit_name(columns[name]) == "Å",  # better is higher up
                    "zero": columns[name] in FROM_ZERO,
                    "height": height,
                    "flag": flag,
                }
                for name in drawn
            ],
            x={
                "title": label(names[0]) if names else "",
                **({"min": x_range[0], "max": x_range[1]} if x_range else {}),
            },
        )
        self._rows: list[list[JsonValue]] = []
        self.on_msg(self._heard)

    @property
    def ref(self) -> str:
        return reference(self)

    def append(self, rows: Sequence[Mapping[str, JsonValue]]) -> None:
        """Add rows; what the columns do not name is left out. On the kernel's loop."""
        if not rows:
            return
        start = len(self._rows)
        fresh = [[row.get(name) for name in self.columns] for row in rows]
        self._rows += fresh
        self.send({"from": start, "rows": fresh})

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        match content:
            case {"action": "want", "have": int(have)} if have >= 0:
                self.send({"from": have, "rows": self._rows[have:]})


def label(name: str) -> str:
    """A column's name as a heading: "n_spots" is "N spots"."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
