"""Merging statistics, as `dials.scale` writes them: how good the scaled data are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beamhub_notebooks.errors import ProcessingError

# what is drawn of shells over their middle, and the units
CURVES = {
    "resolution": "Å",
    "cc_half": "",
    "i_over_sigma": "",
    "completeness": "%",
    "multiplicity": "",
    "r_meas": "",
}


@dataclass(frozen=True)
class Shell:
    """Merging statistics of a shell of resolution, or of all data."""

    d_max: float  # Å
    d_min: float  # Å
    observations: int
    unique: int
    multiplicity: float
    completeness: float  # percent
    i_over_sigma: float
    r_merge: float | None
    r_meas: float | None
    r_pim: float | None
    cc_half: float | None


@dataclass(frozen=True)
class Merging:
    """What `dials.scale` says about the scaled data."""

    overall: Shell
    low: Shell
    high: Shell
    shells: tuple[Shell, ...]
    frames: tuple[int, ...]
    scale: tuple[float, ...]  # per frame
    r_merge: tuple[float, ...]  # per frame

    def curves(self) -> Iterator[dict[str, float]]:
        """A row of `CURVES` for each shell, for a series; what could not be computed is left out."""
        for shell in self.shells:
            row = {"resolution": round((2 / (1 / shell.d_max**2 + 1 / shell.d_min**2)) ** 0.5, 3)}
            values = {name: getattr(shell, name) for name in CURVES if name != "resolution"}
            yield row | {name: value for name, value in values.items() if value is not None}

    def table(self) -> str:
        """All shells and the whole, as text."""
        header = (
            "Å",
            "Å",
            "observed",
            "unique",
            "multipl.",
            "compl. %",
            "I/σ",
            "Rmerge",
            "Rmeas",
            "Rpim",
            "CC½",
        )
        rows = [
            (
                f"{shell.d_max:.2f}",
                f"{shell.d_min:.2f}",
                str(shell.observations),
                str(shell.unique),
                f"{shell.multiplicity:.1f}",
                f"{shell.completeness:.1f}",
                f"{shell.i_over_sigma:.1f}",
                *(
                    "" if value is None else f"{value:.3f}"
                    for value in (shell.r_merge, shell.r_meas, shell.r_pim, shell.cc_half)
                ),
            )
            for shell in (*self.shells, self.overall)
        ]
        return "\n".join("".join(f"{entry:>9}" for entry in row) for row in (header, *rows))

    @classmethod
    def of(cls, statistics: Path) -> Merging:
        """Read the file that `dials.scale output.json=...` wrote.

        Raises:
            ProcessingError: there were too few reflections for any statistics.
        """
        content = json.loads(statistics.read_bytes())
        tables = content.get("scaling_tables", {})
        if not tables.get("overall") or not tables.get("resolution_binned"):
            raise ProcessingError(
                "Too few reflections were measured more than once to say how good the data are. "
                "Take more frames."
            )
        names = [_plain(row[0]) for row in tables["overall"]]
        overall, low, high = (
            _shell(dict(zip(names, column, strict=True)))
            for column in list(zip(*tables["overall"], strict=True))[1:]
        )
        header = [_plain(name) for name in tables["resolution_binned"][0]]
        scale, r_merge = content["batch_plots"]["scale_rmerge_vs_batch"]["data"][:2]
        return cls(
            overall=overall,
            low=low,
            high=high,
            shells=tuple(
                _shell(dict(zip(header, row, strict=True))) for row in tables["resolution_binned"][1:]
            ),
            frames=tuple(map(int, scale["x"])),
            scale=tuple(map(float, scale["y"])),
            r_merge=tuple(map(float, r_merge["y"])),
        )


# how the columns of DIALS' tables are called, overall and in shells
_COLUMNS = {
    "observations": ("Observations", "N(obs)"),
    "unique": ("Unique reflections", "N(unique)"),
    "multiplicity": ("Multiplicity",),
    "completeness": ("Completeness",),
    "i_over_sigma": ("Mean I/σ(I)",),
    "r_merge": ("Rmerge",),
    "r_meas": ("Rmeas",),
    "r_pim": ("Rpim",),
    "cc_half": ("CC½",),
}


def _shell(named: Mapping[str, Any]) -> Shell:
    """One shell out of a column's or row's entries, which are texts with units, stars and empty places.

    DIALS also writes 0 for what it cannot compute because nothing was measured twice: that is no CC½ of 0.
    """
    d_max, d_min = (float(edge) for edge in str(named["Resolution (Å)"]).split(" - "))
    values: dict[str, float | None] = {}
    for field, names in _COLUMNS.items():
        text = next(str(named[name]) for name in names if name in named).rstrip("%*")
        values[field] = float(text) if text else None
    return Shell(
        d_max=d_max,
        d_min=d_min,
        observations=int(values["observations"] or 0),
        unique=int(values["unique"] or 0),
        multiplicity=values["multiplicity"] or 0.0,
        completeness=values["completeness"] or 0.0,
        i_over_sigma=values["i_over_sigma"] or 0.0,
        r_merge=values["r_merge"] or None,
        r_meas=values["r_meas"] or None,
        r_pim=values["r_pim"] or None,
        cc_half=values["cc_half"] or None,
    )


def _plain(text: str) -> str:
    return re.sub(r"<[^>]*>", "", text)
