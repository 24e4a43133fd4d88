"""`beamhub simulate`: a virtual detector on the command line."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from beamhub.simulation.acquisition import EIGER, PILATUS, Acquisition, Grid
from beamhub.simulation.crystal import Crystal
from beamhub.simulation.detector import VirtualDetector, VirtualPilatus, VirtualSwmr


def _grid(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,2})[x×]([1-9]\d{0,2})", text)
    if not found:
        raise click.BadParameter("give rows and columns as in 12x20, each up to 999", context, parameter)
    return int(found[1]), int(found[2])


@click.command("simulate")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to write."
)
@click.option("--prefix", default="lyso", show_default=True, help="What the files' names begin with.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["nxmx", "cbf"]),
    default="nxmx",
    show_default=True,
    help="nxmx: as an EIGER writes it; cbf: one file a frame, as a PILATUS does.",
)
@click.option(
    "--swmr",
    is_flag=True,
    help="Write a single NXmx file, master and frames, which others may read meanwhile (SWMR).",
)
@click.option(
    "--detector",
    type=click.Choice(sorted({*EIGER, *PILATUS}, key=lambda name: (name[-1], int(name[:-1])))),
    default="1M",
    show_default=True,
    help=f"Detector model: EIGER {', '.join(EIGER)}; PILATUS {', '.join(PILATUS)}.",
)
@click.option(
    "--frames", type=click.IntRange(1, 100_000), default=60, show_default=True, help="How many frames."
)
@click.option(
    "--width", type=click.FloatRange(0.001, 10), default=0.5, show_default=True, help="Degrees a frame."
)
@click.option(
    "--start", type=float, default=0.0, show_default=True, help="Goniometer angle to begin at, degrees."
)
@click.option(
    "--rate", type=click.FloatRange(0.01, 1000), default=10.0, show_default=True, help="Frames a second."
)
@click.option("--images-per-file", type=click.IntRange(1, 10_000), default=10, show_default=True)
@click.option(
    "--distance", type=click.FloatRange(0.03, 2), help="Metres to the detector. [default: by detector]"
)
@click.option("--energy", type=click.FloatRange(5, 30), default=12.4, show_default=True, help="keV.")
@click.option(
    "--cell", type=(float, float), default=(79.1, 37.9), show_default=True, help="a (= b) and c in Å."
)
@click.option(
    "--mosaicity", type=click.FloatRange(0.01, 1), default=0.1, show_default=True, help="Degrees, σ."
)
@click.option("--b-factor", type=click.FloatRange(0, 200), default=22.0, show_default=True, help="Å².")
@click.option(
    "--strength",
    type=click.FloatRange(0),
    default=200.0,
    show_default=True,
    help="Photons of an average strong spot.",
)
@click.option("--background", type=click.FloatRange(0, 20), default=1.0, show_default=True, help="Factor.")
@click.option(
    "--ice", type=click.FloatRange(0, 20), default=0.0, show_default=True, help="Factor on ice rings."
)
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Of crystal and photons.")
@click.option("--grid", metavar="ROWSxCOLUMNS", callback=_grid, help="A grid scan over a crystal instead.")
@click.option("--json", "as_json", is_flag=True, help="Tell the result as JSON, without a progress display.")
def simulate(
    folder: Path,
    prefix: str,
    format_: str,
    swmr: bool,
    detector: str,
    frames: int,
    width: float,
    start: float,
    rate: float,
    images_per_file: int,
    distance: float | None,
    energy: float,
    cell: tuple[float, float],
    mosaicity: float,
    b_factor: float,
    strength: float,
    background: float,
    ice: float,
    seed: int,
    grid: tuple[int, int] | None,
    as_json: bool,
) -> None:
    """Record a lysozyme crystal with a virtual detector, frame by frame, as a DECTRIS EIGER or PILATUS would.

    Ctrl-C ends the acquisition early: the file at hand is closed with the frames it has.
    """
    models = PILATUS if format_ == "cbf" else EIGER
    if detector not in models:
        raise click.BadParameter(
            f"in this format there are {', '.join(models)}, not {detector}", param_hint="--detector"
        )
    if swmr and format_ == "cbf":
        raise click.BadParameter("only an nxmx file can be written so", param_hint="--swmr")
    model = models[detector]
    scan = Acquisition(
        detector=model,
        frames=grid[0] * grid[1] if grid else frames,
        width=width,
        start=start,
        energy=energy,
        distance=model.distance if distance is None else distance,
        exposure=1 / rate,
        background=background,
        ice=ice,
        dtype="uint32" if format_ == "cbf" else "uint16",
        seed=seed,
        crystal=Crystal(cell[0], cell[1], b_factor, mosaicity, strength, seed),
        grid=Grid(*grid, seed=seed) if grid else None,
    )
    instrument = VirtualPilatus if format_ == "cbf" else VirtualSwmr if swmr else VirtualDetector
    try:
        with _interrupted() as stop:
            virtual = instrument(folder, prefix, scan, images_per_file, rate)
            written = _record(virtual, scan, stop, quiet=as_json)
    except (FileExistsError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"could not write to {folder}: {error.strerror}") from error
    if as_json:
        result = {"master": str(virtual.dataset), "frames": written, "announced": scan.frames}
        click.echo(json.dumps(result))
    elif written < scan.frames:
        click.echo(f"Stopped after {written} of {scan.frames} frames: {virtual.dataset}")
    else:
        click.echo(f"{written} frames: {virtual.dataset}")


def _record(virtual: VirtualDetector, scan: Acquisition, stop: threading.Event, *, quiet: bool) -> int:
    """How many frames were written when it was over, or stopped; progress goes to standard error."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    with progress:
        task = progress.add_task(f"{scan.detector.name} → {virtual.dataset}", total=scan.frames)
        return virtual.run(lambda done: progress.update(task, completed=done), stop)


@contextlib.contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """What SIGINT and SIGTERM set meanwhile."""
    stop = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
