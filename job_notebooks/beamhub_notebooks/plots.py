"""The pictures that jobs show.

Figures are made without pyplot: they belong to nobody's global state, and `save` writes them the same way in
a notebook, a script or a test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from beamhub_notebooks.merging import Merging

BLUE, ORANGE, GREEN, RED, GREY = "#2563a8", "#d9822b", "#2e8b57", "#c23b3b", "#8a94a0"
DPI = 144  # sharp on screens with twice the pixels


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return the path."""
    figure.savefig(path, dpi=DPI)
    return Path(path)


def _figure(title: str, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a title and a grid of axes in one look."""
    size = {(1, 1): (7.5, 3.6), (3, 1): (7.5, 7.2), (1, 3): (10.5, 3.6)}[rows, columns]
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for ax in axes:
        ax.grid(True, color="#e3e7eb", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
    return figure, axes


def _frames(ax: Axes) -> None:
    ax.set_xlabel("Frame")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _from_zero(ax: Axes, values: Sequence[float]) -> None:
    """Show differences in proportion to the whole."""
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    ax.set_ylim(0, 1.1 * highest or 1.0)


def per_frame(
    frames: Sequence[int],
    spots: Sequence[int],
    resolution: Sequence[float | None],
    background: Sequence[float | None],
    ice: Sequence[bool],
    title: str,
) -> Figure:
    """Spots, resolution (Å) and background (counts) against frame number; frames with ice are marked."""
    figure, (top, middle, bottom) = _figure(title, 3, sharex=True)
    style: dict[str, Any] = {"marker": ".", "markersize": 5, "linewidth": 1.0}
    top.plot(frames, spots, color=BLUE, **style)
    top.set_ylabel("Spots")
    _from_zero(top, spots)
    middle.plot(frames, _numbers(resolution), color=GREEN, **style)
    middle.set_ylabel("Resolution (Å)")
    middle.invert_yaxis()  # better is higher
    bottom.plot(frames, _numbers(background), color=ORANGE, **style)
    bottom.set_ylabel("Background\n(counts per pixel)")
    _from_zero(bottom, _numbers(background))
    icy = [frame for frame, has in zip(frames, ice, strict=True) if has]
    if icy:
        top.plot(icy, [0] * len(icy), "|", color=RED, markersize=12, label="ice rings", clip_on=False)
        top.legend(frameon=False, fontsize=9, loc="upper right")
    _frames(bottom)
    return figure


def grid(spots: npt.NDArray[np.float64], best: tuple[int, int], title: str) -> Figure:
    """Heat map of a raster: `spots` by row and column, NaN where nothing was measured; `best` is marked."""
    rows, columns = spots.shape
    height = min(max(5.6 * rows / columns, 2.0), 9.0)
    figure = Figure(figsize=(7.0, height + 1.0), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    ax = figure.subplots()
    ax.set_facecolor("#e3e7eb")
    edges = (0.5, columns + 0.5, rows + 0.5, 0.5)
    image = ax.imshow(spots, extent=edges, cmap="viridis", vmin=0, interpolation="nearest")
    circle: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": RED, "markeredgewidth": 2}
    ax.plot(best[1], best[0], "o", markersize=16, **circle)
    ax.set_xlabel("Column")
    ax.set_ylabel("Row")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="Spots")
    return figure


def spots_per_frame(frames: Sequence[int], spots: Sequence[int], title: str) -> Figure:
    """Spots found on each frame."""
    figure, (ax,) = _figure(title)
    ax.bar(frames, spots, width=1.0, color=BLUE)
    ax.set_ylabel("Spots")
    ax.margins(x=0.01)
    _from_zero(ax, spots)
    _frames(ax)
    return figure


def shells(merging: Merging, title: str) -> Figure:
    """CC½, I/σ and completeness against resolution, on a scale even in 1/d²."""
    figure, (left, middle, right) = _figure(title, 1, 3)
    x = [(1 / shell.d_max**2 + 1 / shell.d_min**2) / 2 for shell in merging.shells]
    style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.3}
    left.plot(x, _numbers([shell.cc_half for shell in merging.shells]), color=BLUE, **style)
    left.axhline(0.3, color=GREY, linewidth=1, linestyle="--")
    left.set_ylabel("CC½")
    left.set_ylim(-0.05, 1.05)
    left.set_yticks([0, 0.3, 0.5, 1])
    middle.plot(x, [shell.i_over_sigma for shell in merging.shells], color=GREEN, **style)
    middle.set_ylabel("Mean I/σ(I)")
    _from_zero(middle, [shell.i_over_sigma for shell in merging.shells])
    right.plot(x, [shell.completeness for shell in merging.shells], color=ORANGE, **style)
    right.set_ylabel("Completeness (%)")
    right.set_ylim(0, 105)
    ticks = _spacings(x[0], x[-1])
    for ax in (left, middle, right):
        ax.set_xlabel("Resolution (Å)")
        ax.set_xticks([1 / d**2 for d in ticks], [f"{d:g}" for d in ticks])
    return figure


def _spacings(low: float, high: float) -> list[float]:
    """Round lattice spacings for the ticks of an axis from `low` to `high` (1/d²), not too close together."""
    round_ones = [10, 6, 5, 4, 3.5, 3, *(number / 10 for number in range(28, 9, -2)), 0.9, 0.8, 0.7, 0.6]
    ticks: list[float] = []
    for d in reversed(round_ones):
        if low <= 1 / d**2 <= high and (not ticks or 1 / ticks[-1] ** 2 - 1 / d**2 > 0.14 * (high - low)):
            ticks.append(d)
    return ticks


def scale_and_r_merge(merging: Merging, title: str) -> Figure:
    """Scale factor and Rmerge of each frame: a crystal that dies or slips shows here."""
    figure, (ax,) = _figure(title)
    ax.plot(merging.frames, merging.scale, color=BLUE, linewidth=1.5)
    ax.set_ylabel("Scale factor", color=BLUE)
    _from_zero(ax, merging.scale)
    other = ax.twinx()
    other.plot(merging.frames, merging.r_merge, color=ORANGE, marker=".", markersize=5, linewidth=0.8)
    other.set_ylabel("Rmerge", color=ORANGE)
    _from_zero(other, merging.r_merge)
    other.spines["top"].set_visible(False)
    other.tick_params(labelsize=9)
    _frames(ax)
    return figure


def _numbers(values: Sequence[float | None]) -> list[float]:
    """Values for matplotlib, which leaves a gap at NaN."""
    return [math.nan if value is None else float(value) for value in values]
