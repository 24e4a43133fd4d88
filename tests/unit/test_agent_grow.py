"""Which files grow by design."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from beamhub.agent.grow import open_for_swmr


@pytest.mark.parametrize("version", ["earliest", "v110"])
def test_a_file_says_that_it_is_open_for_swmr(tmp_path: Path, version: str) -> None:
    path = tmp_path / "a.h5"

    def says() -> bool:
        with path.open("rb") as file:
            return open_for_swmr(file.fileno())

    with h5py.File(path, "w", libver=(version, "v110")) as file:
        file.flush()
        assert not says()
        if version == "v110":
            file.swmr_mode = True
            assert says()
    assert not says()


@pytest.mark.parametrize("content", [b"", b"\x89HDF", b"x" * 100])
def test_what_is_no_hdf5_file_does_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with (tmp_path / "a").open("rb") as file:
        assert not open_for_swmr(file.fileno())
