"""Reading what DIALS prints and writes, and saying plainly what went wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from beamhub_notebooks import crystals, dials, merging
from beamhub_notebooks.errors import ProcessingError

FIND_SPOTS = """
Number of centroids per image for imageset 0:
+---------+----------+-----------------+-------------------+
|   image |   #spots |   #spots_no_ice |   total_intensity |
|---------+----------+-----------------+-------------------|
|       1 |      {0} |              79 |            142889 |
|       2 |        0 |               0 |                 0 |
+---------+----------+-----------------+-------------------+
"""
INDEX = """
+------------+-------------+---------------+-------------+
|   Imageset |   # indexed |   # unindexed | % indexed   |
|------------+-------------+---------------+-------------|
|          0 |          50 |           150 | 25.0%       |
+------------+-------------+---------------+-------------+
Refined crystal models:
|          0 |         150 |            50 | 75.0%       |
"""
SYMMETRY = """
+--------------+---------+---------------+--------------+---------------+--------------+
| Screw axis   |   Score |   No. present |   No. absent |   <I> present |   <I> absent |
|--------------+---------+---------------+--------------+---------------+--------------|
| 41c          |   0     |             0 |            0 |         0     |        0     |
| 21a          |   0.998 |            12 |           12 |       463.278 |       -0.182 |
| 42c          |   0.001 |             9 |           11 |       301.2   |      295.1   |
+--------------+---------+---------------+--------------+---------------+--------------+
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "step.log"
    path.write_text(text, encoding="utf-8")
    return path


def test_spots_per_frame_are_numbered_as_in_the_dataset(tmp_path: Path) -> None:
    log = write(tmp_path, FIND_SPOTS.format("  74"))

    assert dials.spots_per_frame(log) == {1: 74, 2: 0}
    assert dials.spots_per_frame(log, first=11) == {11: 74, 12: 0}


@pytest.mark.parametrize(
    ("found", "said"),
    [("   0", "No spots found on any of 2 frames"), ("   7", "Only 7 spots found on 2 frames")],
)
def test_too_few_spots_is_said_plainly(tmp_path: Path, found: str, said: str) -> None:
    with pytest.raises(ProcessingError, match=said):
        dials.spots_per_frame(write(tmp_path, FIND_SPOTS.format(found)))


def test_the_last_table_counts_what_is_indexed(tmp_path: Path) -> None:
    assert dials.indexed_fraction(write(tmp_path, INDEX)) == 0.75


def test_screw_axes_that_were_not_measured_are_not_called_absent(tmp_path: Path) -> None:
    axes = dials.screw_axes(write(tmp_path, SYMMETRY))

    assert axes == {"41c": None, "21a": True, "42c": False}
    text = dials.screw_axes_text(axes)
    assert "41c: not measured, 21a: present, 42c: absent" in text
    assert dials.screw_axes_text({}) == "Screw axes were not looked for."


@pytest.mark.parametrize(
    ("space_group", "cell", "others"),
    [
        ("P 41", (79, 79, 38, 90, 90, 90), ["-h,k,-l"]),
        ("P 43 21 2", (79, 79, 38, 90, 90, 90), []),
        ("P 63", (60, 60, 90, 90, 90, 120), ["-h-k,k,-l"]),
        ("P 2 3", (70, 70, 70, 90, 90, 90), ["-h,-l,-k"]),
        ("P 21 21 21", (50, 60, 70, 90, 90, 90), []),
        ("P 21 21 21", (60, 60.5, 70, 90, 90, 90), ["-k,-h,-l"]),  # nearly tetragonal
        ("P 1 21 1", (50, 60, 70, 90, 100, 90), []),
    ],
)
def test_whether_a_lattice_can_be_indexed_in_other_ways(
    space_group: str, cell: tuple[float, float, float, float, float, float], others: list[str]
) -> None:
    crystal = crystals.Crystal(cell=cell, space_group=space_group, laue_group="", mosaicity=None)
    assert crystals.other_indexings(crystal) == others


def test_a_threefold_axis_alone_leaves_four_ways() -> None:
    trigonal = crystals.Crystal((60, 60, 90, 90, 90, 120), "P 31", "-3", None)
    assert len(crystals.other_indexings(trigonal)) == 3


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ("x,y,z: [0, 1, 3]\n-x,y,-z: [2]\nSaving reindexed experiments to reindexed.expt", 1),
        ("-x,y,-z: [0, 2, 3]\nx,y,z: [1]", 1),  # what most have is the way that counts
        ("x,y,z: [0, 1]", 0),
        ("-x,y,-z: [0]\nx,y,z: [1]", 1),
    ],
)
def test_datasets_that_were_indexed_in_another_way_are_counted(
    tmp_path: Path, lines: str, count: int
) -> None:
    text = f"Principal component analysis:\nx,y,z: [7, 8, 9, 10]\nReindexing operators:\n{lines}\n"
    assert dials.reindexed(write(tmp_path, text)) == count


def test_a_suggested_resolution_is_optional(tmp_path: Path) -> None:
    text = "Resolution limit suggested from CC½ fit (limit CC½=0.3): 1.98\n"

    assert dials.suggested_resolution(write(tmp_path, text)) == 1.98
    assert dials.suggested_resolution(write(tmp_path, "nothing of the kind")) is None


def test_a_crystal_is_read_from_an_experiment_list(tmp_path: Path) -> None:
    crystal = {
        "real_space_a": [0.0, 60.0, 0.0],
        "real_space_b": [80.0, 0.0, 0.0],
        "real_space_c": [0.0, -18.0, -50.0],
        "space_group_hall_symbol": " C 2y",
    }
    path = tmp_path / "refined.expt"
    path.write_text(json.dumps({"crystal": [crystal], "profile": [{"sigma_m": 0.125}]}))

    read = crystals.Crystal.of(path)

    assert read.cell == pytest.approx((60.0, 80.0, 53.14, 90.0, 109.8, 90.0), abs=0.01)
    assert (read.space_group, read.laue_group, read.mosaicity) == ("C 1 2 1", "2/m", 0.125)
    assert str(read) == "C 1 2 1, unit cell 60.00, 80.00, 53.14 Å, 90.00, 109.80, 90.00°"


def test_merging_statistics_are_read_with_their_gaps(tmp_path: Path) -> None:
    names = ["N(obs)", "N(unique)", "Multiplicity", "Completeness", "Mean I", "Mean I/σ(I)"]
    rs = ["R<sub>merge</sub>", "R<sub>meas</sub>", "R<sub>pim</sub>", "CC<sub>½</sub>"]
    content = {
        "scaling_tables": {
            "overall": [
                ["", "Overall", "Low resolution", "High resolution"],
                ["<strong>Resolution (Å)</strong>", "79.10 - 1.98", "79.16 - 5.38", "2.02 - 1.98"],
                ["<strong>Observations</strong>", "11681", "980", "43"],
                ["<strong>Unique reflections</strong>", "3793", "269", "39"],
                ["<strong>Multiplicity</strong>", "3.1", "3.6", "1.1"],
                ["<strong>Completeness</strong>", "43.01%", "52.6%", "9.3%"],
                ["<strong>Mean I/σ(I)</strong>", "60.5", "132.5", "16.5"],
                *([f"<strong>{name}</strong>", "0.020", "0.011", ""] for name in rs),
            ],
            "resolution_binned": [
                ["Resolution (Å)", *names, *rs],
                [
                    "79.16 - 5.38",
                    980,
                    269,
                    "3.64",
                    "52.6",
                    "501.1",
                    "132.5",
                    "0.011",
                    "0.013",
                    "0.007",
                    "0.999*",
                ],
                ["2.02 - 1.98", 43, 39, "1.10", "9.3", "31.0", "16.5", "", "", "", "0.000"],
            ],
        },
        "batch_plots": {
            "scale_rmerge_vs_batch": {
                "data": [{"x": [1, 2], "y": [1.0, 1.1]}, {"x": [1, 2], "y": [0.02, 0.03]}]
            }
        },
    }
    path = tmp_path / "scale.json"
    path.write_text(json.dumps(content))

    found = merging.Merging.of(path)

    assert (found.overall.d_max, found.overall.d_min) == (79.1, 1.98)
    assert (found.overall.observations, found.overall.unique) == (11681, 3793)
    assert (found.overall.completeness, found.overall.r_meas) == (43.01, 0.02)
    assert found.high.cc_half is None
    assert [shell.cc_half for shell in found.shells] == [0.999, None]
    assert found.shells[1].r_merge is None
    assert (found.frames, found.scale, found.r_merge) == ((1, 2), (1.0, 1.1), (0.02, 0.03))
    assert len(found.table().splitlines()) == 4
    curves = list(found.curves())
    assert list(curves[0]) == list(merging.CURVES)
    assert set(merging.CURVES) - set(curves[1]) == {"cc_half", "r_meas"}  # of which there are none
    for row, shell in zip(curves, found.shells, strict=True):
        assert shell.d_min <= row["resolution"] <= shell.d_max


def test_no_statistics_is_said_plainly(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    path.write_text("{}")

    with pytest.raises(ProcessingError, match="Too few reflections"):
        merging.Merging.of(path)


@pytest.mark.parametrize("written", ["P43212", "P 43 21 2", "p43212"])
def test_what_is_known_of_the_crystal_goes_to_indexing(written: str) -> None:
    assert crystals.known_crystal(written, [79.1, 79.1, 37.9, 90, 90, 90]) == [
        "known_symmetry.space_group=P43212",
        "known_symmetry.unit_cell=79.1,79.1,37.9,90,90,90",
    ]
    assert crystals.known_crystal(None, None) == []


@pytest.mark.parametrize("written", ["P1 output.log=/tmp/x", "P-1", "lysozyme", "Pnma", ""])
def test_only_space_groups_of_proteins_are_taken(written: str) -> None:
    with pytest.raises(ProcessingError, match="is not a space group"):
        crystals.known_crystal(written, None)


def test_a_cell_that_contradicts_the_space_group_is_refused() -> None:
    with pytest.raises(ProcessingError, match="does not fit the space group P 43 21 2"):
        crystals.known_crystal("P43212", [79.1, 70.1, 37.9, 90, 90, 90])


def test_a_range_of_frames() -> None:
    assert dials.frame_range(60, None, None) is None
    assert dials.frame_range(60, 1, 60) is None
    assert dials.frame_range(60, 11, None) == (11, 60)
    assert dials.frame_range(60, None, 30) == (1, 30)
    for first, last in ((0, 5), (5, 4), (1, 61), (61, None), (None, 0)):
        with pytest.raises(ProcessingError, match="frames 1 to 60"):
            dials.frame_range(60, first, last)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others on the PATH, with a dials.import that just works."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    program(folder, "dials.import", "exit 0")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_arguments_pass_no_shell_and_the_environment_is_clean(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "dials.find_spots", 'printf "%s\\n" "$@"; env')
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    process = dials.Processing(tmp_path / "dials", cpus=3)

    step = process.run("find_spots", "a; touch b", "$(touch c)")

    lines = step.log.read_text().splitlines()
    assert lines[:2] == ["a; touch b", "$(touch c)"]
    assert "OMP_NUM_THREADS=3" in lines
    assert f"HOME={tmp_path / 'dials'}" in lines
    assert not any(line.startswith("PYTHONPATH") or "matplotlib_inline" in line for line in lines)
    assert [path.name for path in process.folder.iterdir()] == ["find_spots.log"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Sorry: no spots here; exit 1", r"^dials.index stopped: no spots here\. Check beam centre"),
        (
            "echo No suitable lattice could be found.; exit 1",
            "stopped: No suitable lattice could be found. Check",
        ),
        (
            "echo 'AssertionError: Please report this error to help@example.org: Too few spots'; exit 1",
            r"stopped: Too few spots\. Check",
        ),
        ("kill -9 $$", "ended by signal 9; often there was not enough memory"),
        ("exit 3", "ended with code 3"),
    ],
)
def test_a_failing_program_is_quoted_with_a_remedy(
    programs: Path, tmp_path: Path, script: str, said: str
) -> None:
    program(programs, "dials.index", script)

    with pytest.raises(ProcessingError, match=said):
        dials.Processing(tmp_path / "dials").run("index")


def test_a_missing_dials_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ProcessingError, match="DIALS is not installed"):
        dials.Processing(tmp_path / "dials")
