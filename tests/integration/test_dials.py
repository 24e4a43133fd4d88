"""Real DIALS on a simulated crystal: what it finds is compared with what is true."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
from beamhub.catalogue import Catalogue, shipped
from beamhub.schemas import JobResult, JobSpec, SpecInput
from beamhub.simulation.acquisition import PILATUS, Acquisition
from beamhub.simulation.crystal import D_MIN, Crystal, Floats, Ints
from beamhub.simulation.detector import VirtualDetector, VirtualPilatus, VirtualSwmr
from beamhub_notebooks.crystals import Crystal as CrystalFound
from beamhub_notebooks.crystals import Integrated, known_crystal, require_same_form
from beamhub_notebooks.dials import Processing, frame_range, image_number, import_arguments, indexed_fraction
from beamhub_notebooks.errors import ProcessingError
from beamhub_notebooks.live import LiveDataset
from beamhub_notebooks.merging import CURVES
from beamhub_notebooks.spots import SpotFinder

from tests.growth import Growth

pytestmark = [pytest.mark.dials, pytest.mark.timeout(900)]

# for what is only prepared here: of the fifty lattices that DIALS would refine by default, these all do
QUICKLY = ["indexing.nproc=1", "basis_vector_combinations.max_refine=4"]


@pytest.fixture(scope="module")
def lysozyme(tmp_path_factory: pytest.TempPathFactory) -> VirtualDetector:
    """15 degrees, to a moderate resolution so that it is soon processed."""
    scan = Acquisition(frames=30, width=0.5, distance=0.16)
    detector = VirtualDetector(tmp_path_factory.mktemp("raw"), "lyso", scan, images_per_file=10, rate=1e3)
    detector.run()
    return detector


def run(folder: Path, data: Path, **parameters: Any) -> JobResult:
    """The DIALS template as a job runs it."""
    return start(folder, "dials", [SpecInput(id=1, path=str(data))], parameters)


def start(folder: Path, template: str, inputs: list[SpecInput], parameters: dict[str, Any]) -> JobResult:
    folder.mkdir()
    shutil.copy(shipped() / f"{template}.ipynb", folder / "template.ipynb")
    spec = JobSpec(
        id=1,
        experiment="sim-mx-2026-00001",
        template=template,
        template_version="0" * 16,
        parameters=parameters,
        inputs=inputs,
        cpus=1,
        memory=4 * 1024**3,
        folder=str(folder),
    )
    (folder / "job.json").write_text(spec.model_dump_json())
    subprocess.run([sys.executable, "-m", "beamhub.run", str(folder)], check=False, timeout=800)
    return JobResult.model_validate_json((folder / "result.json").read_bytes())


@pytest.fixture(scope="module")
def processed(lysozyme: VirtualDetector, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, JobResult]:
    """What a job has made of it, and its folder."""
    folder = tmp_path_factory.mktemp("jobs") / "lyso"
    return folder, run(folder, lysozyme.master)


def test_it_finds_the_true_crystal(lysozyme: VirtualDetector, processed: tuple[Path, JobResult]) -> None:
    folder, result = processed

    assert result.outcome == "finished", result.reason
    found = {name: quantity.value for name, quantity in result.metrics.items()}
    true = lysozyme.scan.crystal
    for axis, length in (("a", true.a), ("b", true.a), ("c", true.c)):
        assert found[f"cell_{axis}"] == pytest.approx(length, rel=0.005)
    for angle in ("alpha", "beta", "gamma"):
        assert found[f"cell_{angle}"] == pytest.approx(90, abs=0.05)
    assert found["laue_group"] == true.laue_group
    assert found["mosaicity"] == pytest.approx(true.mosaicity, rel=0.3)
    assert _number(found["indexed"]) > 90
    assert _number(found["cc_half"]) > 0.98
    assert _number(found["r_meas"]) < 0.1
    assert 2.5 < _number(found["resolution"]) < 4
    assert _number(found["completeness"]) > 30
    assert _number(found["reflections"]) > _number(found["reflections_unique"]) > 500
    assert result.software["DIALS"].startswith("3.")

    mtz = gemmi.read_mtz_file(str(folder / "scaled.mtz"))
    assert mtz.cell.a == pytest.approx(true.a, rel=0.005)
    assert mtz.nreflections == found["reflections"]
    kinds = {artifact.path: artifact.kind for artifact in result.artifacts}
    assert {path for path, kind in kinds.items() if kind == "plot"} == {
        "spots.png",
        "shells.png",
        "scale.png",
    }
    steps = ("import", "find_spots", "index", "refine", "integrate", "symmetry", "scale", "export")
    for step in steps:
        assert kinds[f"dials/{step}.log"] == "log"
        assert (folder / "dials" / f"{step}.log").stat().st_size > 0
    columns, *shells = map(json.loads, (folder / "series/shells.jsonl").read_text().splitlines())
    assert columns["columns"] == CURVES
    assert len(shells) > 5
    told = [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]
    fractions = [line["fraction"] for line in told if line["what"] == "progress"]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_what_two_jobs_have_integrated_is_merged(
    lysozyme: VirtualDetector, processed: tuple[Path, JobResult], tmp_path: Path
) -> None:
    """The same crystal, turned on by 40 degrees in between: together they have more than one alone."""
    scan = replace(lysozyme.scan, start=40.0, frames=24)
    turned = VirtualDetector(tmp_path / "raw", "turned", scan, images_per_file=24, rate=1e3)
    turned.run()
    jobs, alone = [processed[0], tmp_path / "2"], processed[1]
    prepared = integrate(jobs[1], LiveDataset(turned.master), "P43212", 3.4)
    symmetrized(prepared, "a,b,c")
    assert alone.outcome == "finished"

    folder = tmp_path / "3"
    inputs = [SpecInput(kind="job", id=number, path=str(job)) for number, job in enumerate(jobs, 1)]
    result = start(folder, "merge", inputs, {"resolution_limit": 3.4})

    assert result.outcome == "finished", result.reason
    found = {name: quantity.value for name, quantity in result.metrics.items()}
    assert set(found) == set(Catalogue([shipped()]).get("merge").template.metrics)
    assert found["datasets"] == 2
    assert found["laue_group"] == lysozyme.scan.crystal.laue_group
    assert found["cell_a"] == pytest.approx(lysozyme.scan.crystal.a, rel=0.005)
    for name in ("completeness", "multiplicity", "reflections", "reflections_unique"):
        assert _number(found[name]) > _number(alone.metrics[name].value), name
    assert _number(found["cc_half"]) > 0.98
    assert _number(found["r_pim"]) < _number(found["r_meas"]) < 0.1
    merged = gemmi.read_mtz_file(str(folder / "merged.mtz"))
    assert merged.column_with_label("IMEAN") is not None
    # DIALS merges a few reflections more than it counts in the statistics' shells
    assert merged.nreflections == pytest.approx(found["reflections_unique"], rel=0.05)
    assert gemmi.read_mtz_file(str(folder / "scaled.mtz")).nreflections == found["reflections"]


@dataclass(frozen=True)
class FourFold(Crystal):
    """The same lattice with a fourfold axis and nothing across it (4/m): hkl and -h,k,-l differ, and the cell
    does not tell which is which."""

    def intensities(self, hkl: Ints) -> Floats:
        h, k, l = hkl.T  # noqa: E741 (Miller indices)
        turned = (h * k < 0) | (h == 0)
        one, other = np.where(turned, np.abs([k, h]), np.abs([h, k]))
        n = math.ceil(self.a / D_MIN) + 1
        draw = np.random.default_rng([self.seed, 1]).exponential(size=(n, n, n))[one, other, np.abs(l)]
        falling: Floats = draw * np.exp(-0.5 * self.b_factor * self.q(hkl) ** 2)
        return falling


def test_datasets_are_brought_to_one_indexing_before_they_are_merged(tmp_path: Path) -> None:
    """Two sweeps of a crystal of Laue group 4/m on a small detector, indexed in the two ways that the lattice
    allows: as they are, they would not agree."""
    crystal, inputs = FourFold(), []
    scan = Acquisition(PILATUS["300K"], 20, width=1.0, distance=0.14, dtype="uint32", crystal=crystal)
    for way, angle in enumerate((0.0, 45.0)):
        number, scan = way + 1, replace(scan, start=angle)
        detector = VirtualPilatus(tmp_path / f"raw{number}", "pilatus", scan, rate=1e3)
        detector.run()
        process = integrate(tmp_path / str(number), LiveDataset(detector.dataset), "P4", 3)
        as_it_is = indexed_way(process.folder / "integrated.expt", crystal) == way
        symmetrized(process, "a,b,c" if as_it_is else "-a,b,-c")
        assert indexed_way(process.folder / "symmetrized.expt", crystal) == way
        inputs.append(SpecInput(kind="job", id=number, path=str(tmp_path / str(number))))

    folder = tmp_path / "3"
    result = start(folder, "merge", inputs, {"resolution_limit": 3.0})

    assert result.outcome == "finished", result.reason
    found = {name: quantity.value for name, quantity in result.metrics.items()}
    assert (found["datasets"], found["reindexed"], found["laue_group"]) == (2, 1, "4/m")
    assert _number(found["r_meas"]) < 0.08
    assert _number(found["cc_half"]) > 0.98  # 0.82 as they are
    merged = gemmi.read_mtz_file(str(folder / "merged.mtz"))
    hkl, measured = merged.make_miller_array(), merged.column_with_label("IMEAN").array
    agreement = [
        np.corrcoef(crystal.intensities(indices.astype(np.int64)), measured)[0, 1]
        for indices in (hkl, hkl * [-1, 1, -1])
    ]
    assert max(agreement) > 0.98  # with the truth, in one of the two ways
    assert min(agreement) < 0.4


def integrate(job: Path, dataset: LiveDataset, space_group: str, d_min: float) -> Processing:
    """Goes as far as a DIALS job needs to for `symmetrized`."""
    process = Processing(job / "dials")
    process.run("import", *import_arguments(dataset), "output.log=None")
    process.run("find_spots", "imported.expt", "nproc=1", "output.log=None")
    known = known_crystal(space_group, None)
    process.run("index", "imported.expt", "strong.refl", *known, *QUICKLY, "output.log=None")
    limit = f"prediction.d_min={d_min}"
    process.run("integrate", "indexed.expt", "indexed.refl", "nproc=1", limit, "output.log=None")
    return process


def symmetrized(process: Processing, operator: str) -> None:
    """What a DIALS job leaves before it scales, indexed anew by this operator."""
    process.run(
        "reindex",
        "integrated.expt",
        "integrated.refl",
        f"change_of_basis_op={operator}",
        "output.experiments=symmetrized.expt",
        "output.reflections=symmetrized.refl",
    )


def indexed_way(experiments: Path, crystal: Crystal) -> int:
    """0 where c points where it truly does, up to the mirror plane of 4/m that no rotation makes; 1 where it
    points the other way, so that h,k,l is -h,k,-l."""
    found = json.loads(experiments.read_bytes())["crystal"][0]["real_space_c"]
    true = crystal.orientation[:, 2] * [-1, 1, -1]  # DIALS' frame is turned by 180° about y
    return 0 if np.dot(found, true) > 0 else 1


def test_only_one_crystal_form_is_merged(tmp_path: Path) -> None:
    one = CrystalFound(
        cell=(79, 79, 38, 90, 90, 90), space_group="P 4 2 2", laue_group="4/mmm", mosaicity=None
    )
    files = tmp_path / "symmetrized.expt", tmp_path / "symmetrized.refl"
    jobs = [
        Integrated("job 1", *files, one),
        Integrated("job 2", *files, replace(one, space_group="P 4 21 2")),
    ]
    require_same_form(jobs)
    for other in (
        replace(one, laue_group="mmm", space_group="P 2 2 2"),
        replace(one, space_group="I 4 2 2"),
        replace(one, cell=(79, 79, 40, 90, 90, 90)),
    ):
        with pytest.raises(ProcessingError, match="job 3 found"):
            require_same_form([*jobs, Integrated("job 3", *files, other)])
    with pytest.raises(ProcessingError, match="Job 7 has left no integrated reflections"):
        Integrated.of(tmp_path / "7")


def test_a_series_of_cbf_files_has_the_true_cell(tmp_path: Path) -> None:
    """The same crystal on a PILATUS: all that its headers say is understood as it was meant."""
    scan = Acquisition(PILATUS["300K"], 24, width=1.0, distance=0.08, dtype="uint32")
    detector = VirtualPilatus(tmp_path / "raw", "pilatus", scan, rate=1e3)
    detector.run()
    dataset = LiveDataset(detector.dataset)
    process = Processing(tmp_path / "dials")
    process.run("import", *import_arguments(dataset), "output.log=None")
    process.run("find_spots", "imported.expt", "nproc=1", "output.log=None")
    process.run("index", "imported.expt", "strong.refl", *QUICKLY, "output.log=None")
    assert indexed_fraction(process.log("index")) > 0.9
    found = sorted(CrystalFound.of(process.folder / "indexed.expt").cell[:3])
    true = Crystal()
    np.testing.assert_allclose(found, sorted((true.a, true.a, true.c)), rtol=0.005)


@pytest.mark.parametrize("written", [24, 15])
def test_one_file_that_was_written_for_readers_has_the_true_cell(tmp_path: Path, written: int) -> None:
    """Also when it was closed early."""
    scan, stop = Acquisition(frames=24, width=1.0), threading.Event()
    detector = VirtualSwmr(tmp_path / "raw", "swmr", scan, rate=1e3)
    assert detector.run(lambda frame: stop.set() if frame == written else None, stop) == written
    dataset = LiveDataset(detector.dataset)
    assert (dataset.published, dataset.announced) == (written, 24)
    process = Processing(tmp_path / "dials")
    process.run("import", *import_arguments(dataset), "output.log=None")
    experiments = "imported.expt"
    if frames := frame_range(dataset.announced, None, dataset.published):
        chosen = f"image_range={frames[0]},{frames[1]}"
        process.run("slice_sequence", experiments, chosen, "output.experiments_filename=sliced.expt")
        experiments = "sliced.expt"
    process.run("find_spots", experiments, "nproc=1", "output.log=None")
    process.run("index", experiments, "strong.refl", *QUICKLY, "output.log=None")
    assert indexed_fraction(process.log("index")) > 0.9
    found = sorted(CrystalFound.of(process.folder / "indexed.expt").cell[:3])
    true = Crystal()
    np.testing.assert_allclose(found, sorted((true.a, true.a, true.c)), rtol=0.005)


def test_a_file_that_is_still_written_is_left_for_later(tmp_path: Path) -> None:
    detector = VirtualSwmr(tmp_path / "detector", "swmr", Acquisition(frames=2), rate=1e3)
    detector.run()
    growth = Growth(detector.master, tmp_path / "home" / "raw" / "swmr_master.h5")
    growth.grow(2)

    result = run(tmp_path / "job", growth.path)

    assert result.outcome == "failed"
    assert "still written" in result.reason


def test_a_series_with_a_hole_is_imported_up_to_it(tmp_path: Path) -> None:
    scan = Acquisition(PILATUS["300K"], 5, distance=0.08, dtype="uint32")
    detector = VirtualPilatus(tmp_path / "raw", "pilatus", scan, rate=1e3)
    detector.run()
    detector.frame_file(4).unlink()
    dataset = LiveDataset(detector.dataset)
    assert import_arguments(dataset) == [str(detector.frame_file(number)) for number in (1, 2, 3)]
    process = Processing(tmp_path / "dials")
    process.run("import", *import_arguments(dataset), "output.log=None")
    scan_found = json.loads((process.folder / "imported.expt").read_bytes())["scan"][0]
    assert scan_found["image_range"] == [1, 3]
    assert [image_number(dataset, frame) for frame in (1, 3)] == [1, 3]


def test_nothing_to_see_is_said_plainly(tmp_path: Path) -> None:
    empty = Acquisition(frames=2, crystal=Crystal(strength=0))
    detector = VirtualDetector(tmp_path / "raw", "empty", empty, images_per_file=2, rate=1e3)
    detector.run()

    result = run(tmp_path / "job", detector.master)

    assert result.outcome == "failed"
    assert re.search(r"(No|Only \d+) spots found on (any of )?2 frames", result.reason)
    assert "in the viewer" in result.reason


def test_spots_are_those_that_dials_finds(lysozyme: VirtualDetector, tmp_path: Path) -> None:
    """Frame by frame, as DIALS does for stills: the same criterion gives the same counts."""
    process = Processing(tmp_path / "dials")
    process.run("import", lysozyme.master, "convert_sequences_to_stills=True", "output.log=None")
    process.run("find_spots", "imported.expt", "algorithm=dispersion", "nproc=1", "output.log=None")
    log = process.log("find_spots").read_text()
    theirs = [int(count) for count in re.findall(r"Filtered (\d+) of \d+ spots", log)]

    dataset = LiveDataset(lysozyme.master)
    finder = SpotFinder(dataset.mask)
    ours = [count for _, count in dataset.map(lambda frame: len(finder.find(frame)))]

    assert len(theirs) == len(ours) == 30
    np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=1)


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)
