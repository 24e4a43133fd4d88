"""Frames that members see while their file is still written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from beamhub.frames import swmr
from beamhub.frames.outside import FileProblem
from beamhub.schemas import Dataset, DatasetState
from beamhub.testing import write_dataset
from numpy.typing import NDArray

from tests.detector import Detector, counts
from tests.integration.agents import PATIENCE, RunningAgent


class Viewer:
    """A member who looks at every frame as soon as it can be seen, in a thread."""

    def __init__(self, agent: RunningAgent, detector: Detector) -> None:
        self._agent, self._detector = agent, detector
        self._client = agent.service.client("ada")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen = 0
        self.problem = ""

    @property
    def dataset(self) -> Dataset | None:
        found = self._client.datasets(self._agent.beamtime.experiment)
        return found[0] if found else None

    @property
    def state(self) -> DatasetState | None:
        return dataset.state if (dataset := self.dataset) else None

    @property
    def readable(self) -> int:
        return dataset.frames_readable if (dataset := self.dataset) else 0

    def frame(self, number: int) -> NDArray[Any]:
        """A frame, counted from 0."""
        dataset = self.dataset
        assert dataset
        return self._client.frame(dataset.id, number + 1)

    def until(self, done: Callable[[], bool]) -> None:
        self._agent.until(lambda: bool(self.problem) or done())
        assert not self.problem

    def _look(self) -> None:
        try:
            while not self._over.wait(0.01):
                self.compare()
        except Exception as error:
            self.problem = f"after frame {self.seen}: {error!r}"

    def compare(self) -> None:
        """Looks at all that can be seen and has not been."""
        for number in range(self.seen, self.readable):
            right = counts(number, self._detector.shape, self._detector.dtype)
            assert np.array_equal(self.frame(number), right), "it is not what the detector has written"
            self.seen += 1

    @contextmanager
    def looking(self) -> Iterator[Viewer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join(PATIENCE)


def written(path: Path) -> int:
    """How many frames readers of the original find."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = swmr.frames_from(0, path, path.parent).growing
        except FileProblem:  # its writer is at it
            assert time.monotonic() < deadline
        else:
            return found.frames if found else 0


@pytest.mark.parametrize("codec", ["bslz4", ""])
def test_no_frame_that_is_seen_is_another_than_was_written(agent: RunningAgent, codec: str) -> None:
    agent.settings["settle"] = "1"
    agent.start()
    path, frames = agent.data / "scan_master.h5", 500
    with Detector(path, codec, images=frames, dtype="uint16") as detector:
        viewer = Viewer(agent, detector)
        with viewer.looking():
            detector.begin("run", 200)
            viewer.until(lambda: viewer.seen > 20)
            detector.process.send_signal(signal.SIGSTOP)
            paused = written(path)
            viewer.until(lambda: viewer.seen == paused)
            detector.process.send_signal(signal.SIGCONT)
            detector.begin("run", 150)
            viewer.until(lambda: viewer.seen > paused)
            agent.kill()
            seen = viewer.seen
            detector.begin("run", 150)
            agent.start()
            viewer.until(lambda: viewer.seen > seen)
            viewer.until(lambda: viewer.seen == frames)
            assert agent.files() == {}, "it is published before it is finished"
    agent.until_arrived(path.name)
    agent.until(lambda: viewer.state is DatasetState.COMPLETE)
    agent.assert_all_there_once()
    with h5py.File(agent.service.data_dir / agent.beamtime.experiment / "raw" / path.name) as file:
        assert all(
            np.array_equal(file[detector.link][number], counts(number, dtype="uint16"))
            for number in range(frames)
        )
    viewer.seen = 0
    viewer.compare()
    assert viewer.seen == frames


def test_what_was_sent_before_a_frame_was_written(agent: RunningAgent) -> None:
    """Its place was in the file before, and held something else, which the service has got."""
    agent.start()
    path = agent.data / "scan_master.h5"
    with Detector(path, images=2, shape=(1024, 1024)) as detector:
        viewer = Viewer(agent, detector)
        detector.write(1)
        agent.until(lambda: viewer.readable == 1)
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(b"x" * (3 << 20))
        agent.until(lambda: any(upload.offset > size + (1 << 20) for upload in agent.uploads()))
        detector.write(1)
        listed = swmr.frames_from(1, path, path.parent).growing
        assert listed
        assert listed.chunks[0][0] <= size
        agent.until(lambda: viewer.readable == 2)
        viewer.compare()
    agent.until_arrived(path.name)
    agent.assert_all_there_once()


def test_a_slow_detector_of_small_frames(agent: RunningAgent) -> None:
    """What it has written last is seen, though nothing more comes, in the data files of a master."""
    agent.settings["wait_for_files"] = "0"
    agent.start()
    master, data, other = write_dataset(agent.folder, "live", frames=6, per_file=3)
    data.unlink()
    other.unlink()
    master.rename(agent.data / master.name)
    agent.until_arrived(master.name)
    with Detector(agent.data / data.name, "bslz4", shape=(16, 20), dtype="uint16") as detector:
        viewer = Viewer(agent, detector)
        for number in range(3):
            detector.write(1)
            agent.until(lambda: viewer.readable > number)  # noqa: B023 (it ends here)
            right = counts(number, detector.shape, detector.dtype)
            right[0, 0] = np.iinfo(detector.dtype).max  # the master's mask
            assert np.array_equal(viewer.frame(number), right)
        assert agent.uploads()[0].frames == 3
        assert agent.uploads()[0].size < 2**20
    agent.until_arrived(data.name)
    agent.assert_all_there_once()
    assert agent.log.count(f"{data.name} was sent while it grew") == 1


def test_the_last_frames_are_seen_though_their_file_is_closed_meanwhile(agent: RunningAgent) -> None:
    """It is not ready as long as it may be opened again."""
    agent.settings["settle"] = "3600"
    agent.start()
    with Detector(agent.data / "scan_master.h5", "bslz4", images=9) as detector:
        viewer = Viewer(agent, detector)
        detector.write(4)
        agent.until(lambda: viewer.readable == 4)
        detector.write(5)
    agent.until(lambda: viewer.readable == 9)
    viewer.compare()
    assert viewer.state is DatasetState.RECEIVING


def test_frames_that_only_hdf5_can_unpack(agent: RunningAgent) -> None:
    agent.start()
    path = agent.data / "scan_master.h5"
    with Detector(path, "gzip", images=20) as detector:
        detector.write(10)
        agent.until(lambda: "only HDF5 can unpack its frames" in agent.log)
        detector.write(10)
        agent.until(lambda: any(upload.offset > 2**20 for upload in agent.uploads()))
        assert agent.service.client("ada").datasets(agent.beamtime.experiment) == []
    agent.until_arrived(path.name)
    agent.assert_all_there_once()
    assert agent.log.count("shows no frames before it is ready") == 1
    viewer = Viewer(agent, detector)
    assert (viewer.readable, viewer.state) == (20, DatasetState.COMPLETE)
