"""A detector that writes one file for minutes: everybody sees its frames while it does."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from beamhub.schemas import Dataset, DatasetState, InstrumentChange, UploadState
from beamhub_hub.testing import RunningDemo
from playwright.sync_api import Locator, expect

from tests.acceptance.people import LONG, People

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

PAGES = "/services/cockpit/voila/render"
INSTRUMENT = "sim-mx"
NAME = "minutes"
FRAMES = 2000  # more than are written in the time that this takes on any machine


@pytest.fixture
def experiment(facility: RunningDemo) -> Iterator[str]:
    sam = facility.client("sam")
    before = facility.credentials.experiment
    experiment = sam.create_experiment(INSTRUMENT, "One long file", "ada").id
    # jobs are another story
    sam.change_instrument(INSTRUMENT, InstrumentChange(automation=False, active_experiment=experiment))
    yield experiment
    sam.change_instrument(INSTRUMENT, InstrumentChange(automation=True, active_experiment=before))


def growing(facility: RunningDemo, experiment: str, frames: int) -> Dataset:
    """The dataset, as soon as so many of its frames can be read."""
    ada = facility.client("ada")
    deadline = time.monotonic() + LONG / 1000
    while True:
        found = ada.datasets(experiment, name=NAME)
        if found and found[0].frames_readable >= frames:
            return found[0]
        assert time.monotonic() < deadline, f"{found} after {LONG / 1000:g} s"
        time.sleep(0.05)


def newest(facility: RunningDemo, dataset: Dataset, canvas: Locator, count: Locator) -> int:
    """The frame in view, as soon as it is the newest one and the Cockpit counts as many: the agent may still
    be sending what came before its writer stopped."""
    ada = facility.client("ada")
    deadline = time.monotonic() + LONG / 1000
    while True:
        frame, counted = canvas.get_attribute("data-frame"), count.get_attribute("data-frames")
        readable = ada.dataset(dataset.id).frames_readable
        if frame == counted == str(readable):
            return readable
        assert time.monotonic() < deadline, (
            f"frame {frame} in view, {counted} counted, {readable} readable after {LONG / 1000:g} s"
        )
        time.sleep(0.05)


def test_frames_are_shown_while_their_file_is_still_written(
    facility: RunningDemo, people: People, experiment: str, request: pytest.FixtureRequest
) -> None:
    ada, page = facility.client("ada"), people.page("ada")
    page.goto(f"{facility.url}{PAGES}/cockpit.ipynb?experiment={experiment}")
    expect(page.locator(".bh-experiment")).to_have_attribute("data-experiment", experiment, timeout=LONG)
    writer = facility.acquire("--swmr", f"--prefix={NAME}", f"--frames={FRAMES}", "--rate=4")
    request.addfinalizer(writer.kill)
    dataset = growing(facility, experiment, 3)
    writer.send_signal(signal.SIGSTOP)  # in the middle of its file, for as long as this takes
    assert writer.poll() is None

    expect(page.locator(".bh-dataset-name")).to_contain_text(NAME, timeout=LONG)
    expect(page.locator(".bh-dataset-state")).to_have_attribute("data-state", "receiving")
    expect(page.locator(".bh-thumbnail img")).to_be_visible(timeout=LONG)
    people.picture(page, "growing-cockpit")
    viewer = people.page("ada", tab="viewer")
    viewer.goto(f"{facility.url}{PAGES}/viewer.ipynb?dataset={dataset.id}")
    canvas = viewer.locator(".bh-frame-canvas")
    expect(viewer.locator(".bh-frame-live")).to_have_attribute("aria-pressed", "true", timeout=LONG)
    count = page.locator(".bh-column-main .bh-frames")
    shown = newest(facility, dataset, canvas, count)
    expect(viewer.locator(".bh-frame-problem")).to_be_hidden()
    people.picture(viewer, "growing-viewer")

    # nothing of it is complete yet, and nobody says so
    seen = ada.dataset(dataset.id)
    assert (seen.state, 3 <= shown < FRAMES) == (DatasetState.RECEIVING, True)
    assert [upload.path for upload in ada.uploads(experiment, state=UploadState.RECEIVING)] == [seen.path]
    assert seen.path not in {file.path for file in ada.files(experiment)}

    writer.send_signal(signal.SIGCONT)
    growing(facility, experiment, shown + 3)
    writer.send_signal(signal.SIGSTOP)
    further = newest(facility, dataset, canvas, count)  # the viewer goes along
    assert shown + 3 <= further < FRAMES
    assert writer.poll() is None

    writer.send_signal(signal.SIGCONT)
    # it stops before its time: what it has written is published, and the dataset is not complete
    writer.send_signal(signal.SIGINT)
    writer.wait(LONG / 1000)
    still = page.locator(".bh-upload-bytes", has_text="still written")
    expect(still).to_have_count(0, timeout=LONG)
    assert ada.dataset(dataset.id).state is not DatasetState.COMPLETE
