"""Plots are drawn from whatever a measurement gives, gaps included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from beamhub_notebooks import plots
from beamhub_notebooks.merging import Merging, Shell
from matplotlib.figure import Figure
from PIL import Image


def shell(d_max: float, d_min: float, cc_half: float | None = 0.99) -> Shell:
    return Shell(d_max, d_min, 100, 50, 2.0, 90.0, 12.0, 0.1, 0.12, 0.06, cc_half)


SHELLS = (shell(40, 3), shell(3, 2.2), shell(2.2, 1.8, None))
MERGING = Merging(shell(40, 1.8), SHELLS[0], SHELLS[-1], SHELLS, (1, 2, 3), (1.0, 1.1, 1.2), (0.1, 0.1, 0.2))
FIGURES = {
    "per frame": lambda: plots.per_frame(
        [1, 2, 3], [0, 5, 9], [None, 2.5, 2.0], [1.0, None, 1.1], [False, True, False], "lyso"
    ),
    "one empty frame": lambda: plots.per_frame([1], [0], [None], [None], [False], "lyso"),
    "grid": lambda: plots.grid(np.array([[0.0, 3.0], [np.nan, 1.0]]), (1, 2), "lyso"),
    "long grid": lambda: plots.grid(np.zeros((200, 2)), (1, 1), "lyso"),
    "spots": lambda: plots.spots_per_frame([1, 2], [3, 0], "spots"),
    "shells": lambda: plots.shells(MERGING, "shells"),
    "scale": lambda: plots.scale_and_r_merge(MERGING, "scale"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_with_labels(name: str, tmp_path: Path) -> None:
    figure = FIGURES[name]()
    path = plots.save(figure, tmp_path / "figure.png")

    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert isinstance(figure, Figure)
    assert all(ax.get_ylabel() or ax.get_xlabel() for ax in figure.axes)


def test_ticks_of_a_resolution_axis_are_round_and_apart() -> None:
    ticks = plots._spacings(1 / 40**2, 1 / 1.8**2)

    assert 1.8 in ticks
    assert len(ticks) >= 3
    positions = [1 / d**2 for d in ticks]
    gaps = -np.diff(positions)
    assert gaps.min() > 0.1 / 1.8**2
