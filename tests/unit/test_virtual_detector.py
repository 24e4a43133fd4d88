"""What a virtual detector leaves in its folder, and in which order."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from beamhub.frames.nxmx import inspect_master
from beamhub.frames.reader import open_dataset
from beamhub.simulation.acquisition import Acquisition, Detector, Grid
from beamhub.simulation.command import simulate
from beamhub.simulation.crystal import Crystal
from beamhub.simulation.detector import VirtualDetector, VirtualSwmr
from beamhub.simulation.photons import Exposure
from click.testing import CliRunner
from watchfiles import watch

TINY = Detector("tiny", (1, 2), 0.05, module=(160, 80), gap=(4, 6))
SCAN = Acquisition(TINY, frames=7, distance=0.05, crystal=Crystal(strength=2000))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_files_appear_complete_and_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    detector = VirtualDetector(folder, "lyso", SCAN, images_per_file=3, rate=500)
    seen: list[list[str]] = []

    def look(frame: int) -> None:
        assert frame == len(seen) + 1
        seen.append(visible(folder))
        for name in seen[-1]:
            if name.endswith(".h5"):
                h5py.File(folder / name).close()  # closed by its writer, or this fails

    assert detector.run(look) == 7
    begin = ["lyso_master.h5", "lyso_truth.json"]
    first, second, third = (f"lyso_data_00000{n}.h5" for n in (1, 2, 3))
    assert seen == [begin] * 3 + [sorted([*begin, first])] * 3 + [sorted([*begin, first, second])]
    assert visible(folder) == sorted([*begin, first, second, third])
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_frames_are_the_exposures(tmp_path: Path) -> None:
    detector = VirtualDetector(tmp_path, "x", SCAN, 3, 500)
    detector.run()
    frames, exposure = open_dataset(detector.master), Exposure(SCAN)
    assert frames.readable() == 7
    for index in range(7):
        assert np.array_equal(frames.frame(index), exposure.image(index))
    with h5py.File(detector.data_file(2)) as file:
        data = file["entry/data/data"]
        assert data.chunks == (1, *TINY.shape)
        assert data.id.get_create_plist().get_filter(0)[0] == 32008
        assert (data.attrs["image_nr_low"], data.attrs["image_nr_high"]) == (4, 6)


def test_no_frame_comes_before_its_time(tmp_path: Path) -> None:
    times: list[float] = []
    begin = time.monotonic()
    VirtualDetector(tmp_path, "x", SCAN, 10, rate=50).run(lambda _: times.append(time.monotonic() - begin))
    assert all(at >= number / 50 for number, at in enumerate(times, 1))


def test_stopping_keeps_the_frames_that_there_are(tmp_path: Path) -> None:
    stop = threading.Event()
    detector = VirtualDetector(tmp_path, "x", SCAN, 3, 500)
    assert detector.run(lambda frame: stop.set() if frame == 5 else None, stop) == 5
    frames = open_dataset(detector.master)
    assert (len(frames), frames.readable()) == (7, 5)
    assert visible(tmp_path) == ["x_data_000001.h5", "x_data_000002.h5", "x_master.h5", "x_truth.json"]


def test_stopping_between_files_leaves_no_empty_one(tmp_path: Path) -> None:
    stop = threading.Event()
    detector = VirtualDetector(tmp_path, "x", SCAN, 3, 500)
    assert detector.run(lambda frame: stop.set() if frame == 3 else None, stop) == 3
    assert visible(tmp_path) == ["x_data_000001.h5", "x_master.h5", "x_truth.json"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_single_file_is_read_while_it_is_written(tmp_path: Path) -> None:
    detector, exposure = VirtualSwmr(tmp_path, "x", SCAN, rate=500), Exposure(SCAN)
    read = f"""
import h5py, hdf5plugin
with h5py.File({str(detector.master)!r}, "r", swmr=True) as file:
    frames = file["entry/data/data"]
    print(len(frames), frames[-1].sum(), file["entry/instrument/detector/detectorSpecific/nimages"][()])
"""

    def look(frame: int) -> None:
        assert visible(tmp_path) == ["x_master.h5", "x_truth.json"]
        if frame in (1, 4):
            told = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
            assert told.stdout.split() == [str(frame), str(exposure.image(frame - 1).sum()), "7"]

    assert detector.run(look) == 7
    frames = open_dataset(detector.master)
    assert (len(frames), frames.readable()) == (7, 7)
    assert np.array_equal(frames.frame(6), exposure.image(6))
    with pytest.raises(FileExistsError):
        VirtualSwmr(tmp_path, "x", SCAN, rate=500).run()


def test_stopping_closes_a_single_file(tmp_path: Path) -> None:
    stop = threading.Event()
    detector = VirtualSwmr(tmp_path, "x", SCAN, rate=500)
    assert detector.run(lambda frame: stop.set() if frame == 5 else None, stop) == 5
    h5py.File(detector.master).close()
    frames = open_dataset(detector.master)
    assert (len(frames), frames.readable()) == (7, 5)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    VirtualDetector(tmp_path, "x", SCAN, 3, 500).run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="choose another prefix"):
        VirtualDetector(tmp_path, "x", SCAN, 3, 500).run()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "wrong", [{"prefix": ""}, {"prefix": "../x"}, {"prefix": ".x"}, {"rate": 0}, {"images_per_file": 0}]
)
def test_what_makes_no_sense(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        VirtualDetector(tmp_path, scan=SCAN, **({"prefix": "x"} | wrong))


def test_ground_truth(tmp_path: Path) -> None:
    detector = VirtualDetector(tmp_path, "x", SCAN, 7, 500)
    detector.run()
    truth = json.loads(detector.truth.read_text())
    assert truth["cell"] == [79.1, 79.1, 37.9, 90, 90, 90]
    assert (truth["space_group"], truth["laue_group"]) == ("P 43 21 2", "4/mmm")
    assert truth["reciprocal_basis"] == SCAN.crystal.reciprocal_basis.tolist()
    assert truth["wavelength"] == pytest.approx(0.99987, abs=1e-5)
    assert truth["acquisition"]["frames"] == 7
    table = truth["reflections"]
    assert len(table["hkl"]) == len(table["phi"]) == len(table["x"]) == len(table["photons"]) > 100
    # the strongest of those that pass in the middle of the scan is bright where the table says
    middle = [
        (photons, x, y, phi)
        for photons, x, y, phi in zip(table["photons"], table["x"], table["y"], table["phi"], strict=True)
        if 1 < phi < 2.5 and 3 < x < 157 and 3 < y < 77
    ]
    photons, x, y, phi = max(middle)
    image = open_dataset(detector.master).frame(int(phi / SCAN.width)).astype(int)
    spot = image[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]
    assert spot[spot < 65535].max() > photons / 50


def test_a_grid_scan(tmp_path: Path) -> None:
    scan = dataclasses.replace(SCAN, frames=20, grid=Grid(4, 5))
    detector = VirtualDetector(tmp_path, "grid", scan, 5, 500)
    detector.run()
    info = inspect_master(detector.master, tmp_path)
    assert info.kind == "raster"
    assert (info.metadata["grid_rows"].value, info.metadata["grid_columns"].value) == (4, 5)
    truth = json.loads(detector.truth.read_text())
    assert len(truth["grid"]["overlap"]) == 20
    with h5py.File(detector.master) as file:
        assert (file["entry/sample/transformations/omega"][()] == 0).all()


# --- the command --------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    words = f"--folder {tmp_path} --prefix lyso --frames 2 --rate 100 --images-per-file 1 --json".split()
    result = CliRunner().invoke(simulate, words)
    assert result.exit_code == 0, result.output
    master = tmp_path / "lyso_master.h5"
    assert json.loads(result.stdout) == {"master": str(master), "frames": 2, "announced": 2}
    assert inspect_master(master, tmp_path).shape == (1062, 1028)
    again = CliRunner().invoke(simulate, words)
    assert again.exit_code == 1
    assert "choose another prefix" in again.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--grid", "3"],
        ["--grid", "0x4"],
        ["--detector", "2M"],
        ["--rate", "0"],
        ["--detector", "16M", "--format", "cbf"],
        ["--detector", "1M", "--format", "cbf", "--swmr"],
    ],
)
def test_command_refuses(tmp_path: Path, options: list[str]) -> None:
    result = CliRunner().invoke(simulate, ["--folder", str(tmp_path), *options])
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_command_writes_a_single_file(tmp_path: Path) -> None:
    words = f"--folder {tmp_path} --swmr --frames 2 --rate 100 --json".split()
    result = CliRunner().invoke(simulate, words)
    assert result.exit_code == 0, result.output
    master = tmp_path / "lyso_master.h5"
    assert json.loads(result.stdout) == {"master": str(master), "frames": 2, "announced": 2}
    assert visible(tmp_path) == ["lyso_master.h5", "lyso_truth.json"]
    assert open_dataset(master).readable() == 2


def test_command_writes_a_series(tmp_path: Path) -> None:
    words = f"--folder {tmp_path} --format cbf --detector 300K --frames 2 --rate 100 --json".split()
    result = CliRunner().invoke(simulate, words)
    assert result.exit_code == 0, result.output
    dataset = tmp_path / "lyso_#####.cbf"
    assert json.loads(result.stdout) == {"master": str(dataset), "frames": 2, "announced": 2}
    assert visible(tmp_path) == ["lyso_00001.cbf", "lyso_00002.cbf", "lyso_truth.json"]
    assert open_dataset(dataset).info.shape == (619, 487)
    again = CliRunner().invoke(simulate, words)
    assert again.exit_code == 1
    assert "choose another prefix" in again.stderr


def test_command_tells_of_a_folder_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(simulate, ["--folder", str(tmp_path / "file" / "below"), "--frames", "1"])
    assert result.exit_code == 1
    assert "could not write" in result.stderr


def test_command_ends_early_on_a_signal(tmp_path: Path) -> None:
    """The frames that were recorded are kept, in a file that was closed."""
    code = "from beamhub.simulation.command import simulate; simulate()"
    options = {"folder": tmp_path, "prefix": "x", "frames": 5000, "width": 0.01, "images-per-file": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE) as process:
        try:
            for _ in watch(tmp_path, rust_timeout=500, yield_on_timeout=True):
                assert process.poll() is None
                if (tmp_path / "x_data_000001.h5").exists():
                    break
        finally:
            process.send_signal(signal.SIGINT)
        told, _ = process.communicate()
    assert process.returncode == 0
    frames = open_dataset(tmp_path / "x_master.h5")
    assert 2 <= frames.readable() < 5000
    assert told.decode().startswith(f"Stopped after {frames.readable()} of 5000 frames")
