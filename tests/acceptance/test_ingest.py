"""Data on their way, as people see it: paused, in flight while the experiment is switched, in quarantine,
moved, signed off, put in from a browser whose network breaks.

One facility and one story, as in test_beamtime: each test takes up where the one before ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from beamhub.schemas import DatasetState, InstrumentChange, UploadState
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Page, Route, expect

from tests.acceptance.people import LONG, People

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

COCKPIT = "/services/cockpit/voila/render/cockpit.ipynb"
INSTRUMENT = "sim-mx"
SLOW = 2_000_000  # bytes/s of the agent while a file is to be seen in flight
PART = 8 * 2**20  # what a browser sends at once


@dataclass(frozen=True)
class Beamtimes:
    """The experiment that is active at first, and the one that the staff switch to."""

    first: str
    second: str


@pytest.fixture(scope="module")
def beamtimes(facility: RunningDemo) -> Iterator[Beamtimes]:
    sam = facility.client("sam")
    first = facility.credentials.experiment
    sam.activate(INSTRUMENT, first)
    sam.change_instrument(INSTRUMENT, InstrumentChange(automation=False))  # jobs are another story
    yield Beamtimes(first, sam.create_experiment(INSTRUMENT, "Thaumatin, second shift", "ada").id)
    sam.change_instrument(INSTRUMENT, InstrumentChange(automation=True, active_experiment=first))


def write(facility: RunningDemo, name: str, size: int = 1000, link: str = "") -> Path:
    """A detector's file of random bytes, with an external link to a file of the machine if asked for."""
    path = facility.state / "detector" / name
    hidden = path.with_suffix(".part")
    with h5py.File(hidden, "w") as file:
        file["noise"] = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        if link:
            file["entry/data"] = h5py.ExternalLink(link, "/")
    return hidden.rename(path)


def limit(facility: RunningDemo, rate: int | None) -> None:
    """Give the agent another bandwidth, as `systemctl reload` does."""
    config = facility.state / "agent" / "sync.toml"
    text = config.read_text().partition("\n[upload]")[0]
    config.write_text(text + (f'\n[upload]\nlimit = "{rate} B/s"\n' if rate else ""))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # others come and go
            command = process.read_bytes().decode(errors="replace")
            if str(config) in command and "guard.py" not in command:
                os.kill(int(process.parent.name), signal.SIGHUP)


def cockpit(people: People, facility: RunningDemo, user: str, experiment: str) -> Page:
    page = people.page(user)
    page.goto(f"{facility.url}{COCKPIT}?experiment={experiment}")
    expect(page.locator(".bh-experiment")).to_have_attribute("data-experiment", experiment, timeout=LONG)
    return page


def test_sam_pauses_uploads_and_says_why(facility: RunningDemo, people: People, beamtimes: Beamtimes) -> None:
    ada = cockpit(people, facility, "ada", beamtimes.first)
    sam = cockpit(people, facility, "sam", beamtimes.first)
    sam.locator(".bh-uploads-pause").click()
    sam.locator(".bh-question [name=reason]").fill("The cryostream is being filled")
    people.picture(sam, "ingest-pausing")
    sam.locator(".bh-question-yes").click()
    expect(sam.locator(".bh-paused-why")).to_have_text("The cryostream is being filled", timeout=LONG)

    limit(facility, SLOW)
    write(facility, "flight.h5", 12 * SLOW)
    expect(sam.locator(".bh-instrument")).to_contain_text("1 file (24.0", timeout=LONG)
    people.picture(sam, "ingest-paused")
    ada.reload()
    expect(ada.locator(".bh-paused-why")).to_be_visible(timeout=LONG)
    expect(ada.locator(".bh-uploads-resume, .bh-upload-control")).to_have_count(0)
    assert facility.client("ada").uploads(beamtimes.first, state=UploadState.RECEIVING) == []


def test_a_file_in_flight_stays_where_it_began(
    facility: RunningDemo, people: People, beamtimes: Beamtimes
) -> None:
    sam = people.page("sam")
    sam.locator(".bh-uploads-resume").click()
    expect(sam.locator(".bh-uploads-paused")).to_have_count(0, timeout=LONG)
    flying = sam.locator(".bh-upload", has_text="flight.h5")
    expect(flying.locator(".bh-upload-bytes")).to_contain_text(" of 24.0", timeout=LONG)
    people.picture(sam, "ingest-flight")

    sam.locator(".bh-experiment-switch").select_option(beamtimes.second)
    expect(sam.locator(".bh-experiment")).to_have_attribute("data-experiment", beamtimes.second, timeout=LONG)
    sam.locator(".bh-activate").click()
    expect(sam.locator(".bh-flying")).to_contain_text(f"flight.h5 goes to {beamtimes.first}")
    people.picture(sam, "ingest-switching")
    sam.locator(".bh-question-yes").click()
    expect(sam.locator(".bh-experiment-state")).to_have_attribute("data-state", "active", timeout=LONG)
    expect(flying.locator(".bh-upload-where")).to_contain_text(beamtimes.first, timeout=LONG)
    people.picture(sam, "ingest-switched")
    limit(facility, None)
    expect(sam.locator(".bh-instrument")).to_contain_text("Nothing is being uploaded", timeout=LONG)
    ada = facility.client("ada")
    assert [f.path for f in ada.files(beamtimes.first, "raw") if "flight" in f.path] == ["raw/flight.h5"]
    assert ada.files(beamtimes.second, "raw") == []


def test_a_file_that_points_outside_is_kept_from_everybody(
    facility: RunningDemo, people: People, beamtimes: Beamtimes
) -> None:
    sam = people.page("sam")
    write(facility, "hostile.h5", link="/etc/hostname")
    sam.locator(".bh-unsent-open", has_text="1 in quarantine").click(timeout=LONG)
    group = sam.locator(".bh-unsent-group[data-state=quarantined]")
    expect(group).to_contain_text("hostile.h5")
    expect(group.locator(".bh-unsent-reason")).to_contain_text("/etc/hostname")
    people.picture(sam, "ingest-quarantine")
    sam.locator(".bh-unsent .bh-icon-button").first.click()
    assert facility.client("ada").files(beamtimes.second, "raw") == []


def test_a_dataset_is_moved_to_where_it_belongs(
    facility: RunningDemo, people: People, beamtimes: Beamtimes
) -> None:
    sam = people.page("sam")
    facility.acquire("--prefix=misplaced", "--frames=4", "--rate=20", "--width=0.5")
    line = sam.locator(".bh-dataset", has_text="misplaced")
    expect(line.locator("[data-state=complete]")).to_be_visible(timeout=LONG)
    line.locator(".bh-dataset-move").click()
    dialog = sam.locator(".bh-question")
    dialog.locator("[name=experiment]").select_option(beamtimes.first)
    dialog.locator("[name=reason]").fill("Measured before the switch")
    people.picture(sam, "ingest-moving")
    dialog.locator(".bh-question-yes").click()
    expect(line).to_have_count(0, timeout=LONG)
    moved = next(d for d in facility.client("ada").datasets(beamtimes.first) if d.name == "misplaced")
    assert moved.state is DatasetState.COMPLETE


def test_a_series_ends_when_sam_says_so(facility: RunningDemo, people: People, beamtimes: Beamtimes) -> None:
    sam = people.page("sam")
    facility.acquire("--format=cbf", "--prefix=series", "--frames=4", "--rate=20", "--width=0.5").wait()
    line = sam.locator(".bh-dataset", has_text="series")
    expect(line).to_contain_text("4 frames so far", timeout=LONG)
    expect(line.locator("[data-state=receiving]")).to_be_visible()
    line.locator(".bh-dataset-end").click()
    people.picture(sam, "ingest-ending")
    sam.locator(".bh-question-yes").click()
    expect(line.locator("[data-state=complete]")).to_be_visible(timeout=LONG)
    expect(line.locator(".bh-dataset-end")).to_have_count(0)
    expect(line.locator(".bh-dataset-move")).to_be_visible()
    ended = next(d for d in facility.client("ada").datasets(beamtimes.second) if "series" in d.name)
    assert (ended.state, ended.frames_readable) == (DatasetState.COMPLETE, 4)


def test_sam_signs_the_experiment_off(
    facility: RunningDemo, people: People, beamtimes: Beamtimes, tmp_path: Path
) -> None:
    sam = people.page("sam")
    write(facility, "good.h5", 100_000)
    ada = facility.client("ada")
    expect(sam.locator(".bh-upload", has_text="good.h5")).to_be_visible(timeout=LONG)
    sam.locator(".bh-finalise-open").click()
    dialog = sam.locator(".bh-finalise")
    expect(dialog).to_be_visible()
    people.picture(sam, "ingest-finalise")
    dialog.locator(".bh-finalise-begin").click()
    expect(dialog).to_have_attribute("data-state", "blocked", timeout=LONG)
    expect(dialog.locator(".bh-differences")).to_contain_text("hostile.h5 is in quarantine")
    people.picture(sam, "ingest-finalise-blocked")
    dialog.locator(".bh-icon-button").click()

    sam.locator(".bh-unsent-open").click()
    sam.locator(".bh-unsent-discard").click()
    sam.locator(".bh-question [name=reason]").fill("Nobody here made it")
    sam.locator(".bh-question-yes").click()
    expect(sam.locator(".bh-unsent-group")).to_have_count(0, timeout=LONG)
    sam.locator(".bh-unsent .bh-icon-button").first.click()

    sam.locator(".bh-finalise-open").click()
    dialog.locator(".bh-finalise-begin").click()
    expect(dialog).to_have_attribute("data-state", "done", timeout=LONG)
    people.picture(sam, "ingest-finalised")
    with sam.expect_download() as download:
        dialog.locator(".bh-manifest").click()
    manifest = download.value.path().read_text()
    assert "raw/good.h5" in manifest
    assert "hostile" not in manifest
    for line in manifest.splitlines():
        path = line.split("  ", 1)[1]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        ada.download(beamtimes.second, path, tmp_path / path)
    (tmp_path / "sha256sums").write_text(manifest)
    checked = subprocess.run(
        ["sha256sum", "-c", "sha256sums"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "raw/good.h5: OK" in checked.stdout
    dialog.locator(".bh-icon-button").click()
    expect(dialog).to_have_count(0)
    people.picture(sam, "ingest-signed-off")


def test_ada_puts_in_a_file_over_a_network_that_breaks(
    facility: RunningDemo, people: People, beamtimes: Beamtimes, tmp_path: Path
) -> None:
    content = os.urandom(3 * PART)
    file = tmp_path / "model of the loop.pdb"
    file.write_bytes(content)
    ada = cockpit(people, facility, "ada", beamtimes.first)
    held: list[Route] = []

    def part(route: Route) -> None:
        offset = route.request.headers.get("upload-offset")
        if offset == str(2 * PART) and not held:
            held.append(route)
        else:
            route.continue_()

    ada.route("**/api/v1/uploads/*", part)
    ada.locator(".bh-drop input").set_input_files(file)
    line = ada.locator(".bh-send")
    while not held:
        ada.evaluate("() => new Promise(requestAnimationFrame)")
    people.picture(ada, "ingest-browser", whole=True)
    ada.context.set_offline(True)
    expect(ada.locator("body > .bh-banner-lost")).to_contain_text(
        "No connection"
    )  # at once, and not only when asked
    held[0].abort("internetdisconnected")
    expect(line).to_have_attribute("data-state", "interrupted", timeout=LONG)
    expect(line).to_contain_text(re.compile("goes on by itself"))
    people.picture(ada, "ingest-browser-offline", whole=True)
    ada.context.set_offline(False)
    arrived = ada.locator(f".bh-shared-file[data-path='shared/{file.name}']")
    expect(arrived).to_be_visible(timeout=LONG)
    people.picture(ada, "ingest-browser-arrived", whole=True)
    assert facility.client("ada").file(beamtimes.first, f"shared/{file.name}") == content
