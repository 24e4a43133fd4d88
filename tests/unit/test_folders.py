"""Files below folders that others may write to."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path, PurePosixPath

import pytest
from beamhub import folders
from beamhub.errors import BadName, NotFound
from hypothesis import given
from hypothesis import strategies as st

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a//b",
    "a/",
    "./a",
    ".hidden",
    "a/.incoming/b",
    "~\0",
    "a\nb",
    "a\x1b[31mb",
    "a\u202eb",
    "a\\b",
    " a",
    "a ",
    "\ud800",
    "é" * 128,
    "x" * 256,
    "/".join(["x"] * 33),
    "x/" * 500 + "x",
]


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_refused_in_printable_words(path: str) -> None:
    with pytest.raises(BadName) as error:
        folders.parse(path)
    assert error.value.detail.isprintable()


@given(st.text() | st.text(alphabet="./ab\\\0-2versionx", max_size=60))
def test_what_is_accepted_stays_below_and_comes_back_as_it_was(path: str) -> None:
    try:
        accepted = folders.parse(path, new=True)
    except BadName:
        return
    assert str(accepted) == path
    assert not accepted.is_absolute()
    assert os.path.normpath(f"/root/{path}") == f"/root/{path}"
    assert all(not part.startswith(".") and len(part.encode()) <= 255 for part in accepted.parts)
    assert path.isprintable()


@pytest.mark.parametrize("path", ["version-2/a.h5", "a/version-17/b", "version-2"])
def test_the_names_of_versions_are_given_by_the_service(path: str) -> None:
    assert str(folders.parse(path)) == path
    with pytest.raises(BadName):
        folders.parse(path, new=True)


def test_versions_keep_the_file_name() -> None:
    assert folders.versioned("raw/a/lyso_master.h5", 1) == "raw/a/lyso_master.h5"
    assert folders.versioned("raw/a/lyso_master.h5", 3) == "raw/a/version-3/lyso_master.h5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two honest files and one of every trap."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "other.txt").write_text("secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("a")
    (root / "sub" / "b.txt").write_text("bb")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "file-out").symlink_to(tmp_path / "secret" / "other.txt")
    (root / "inner-link").symlink_to("a.txt")
    (root / "loop").symlink_to(".")
    (root / ".hidden").write_text("h")
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "c.txt").write_text("c")
    (root / "bad\nname").write_text("x")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket"))
    return root


def test_a_walk_lists_regular_files_only(root: Path) -> None:
    found = {file.path: file.size for file in folders.walk(root, PurePosixPath())}
    assert found == {"a.txt": 1, "sub/b.txt": 2}
    assert [file.path for file in folders.walk(root, PurePosixPath("sub"))] == ["sub/b.txt"]
    assert list(folders.walk(root, PurePosixPath("out"))) == []
    assert list(folders.walk(root, PurePosixPath("nothing"))) == []


@pytest.mark.parametrize(
    "path",
    ["out/other.txt", "file-out", "inner-link", "loop/a.txt", "pipe", "socket", "sub", "none", "a.txt/x"],
)
def test_a_trap_is_as_if_it_were_not_there(root: Path, path: str) -> None:
    with pytest.raises(NotFound):
        folders.open_file(root, PurePosixPath(path))


def test_an_honest_file_opens(root: Path) -> None:
    with folders.open_file(root, PurePosixPath("sub/b.txt")) as file:
        assert file.read() == b"bb"


def test_no_descriptor_is_left_open(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for path in ("out/other.txt", "pipe", "none", "sub/b.txt"):
        with contextlib.suppress(NotFound):
            folders.open_file(root, PurePosixPath(path)).close()
    list(folders.walk(root, PurePosixPath()))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_missing_folders_are_made_but_not_through_links(root: Path) -> None:
    with folders.folder(root, PurePosixPath("new/deep"), create=True):
        assert (root / "new" / "deep").is_dir()
    with pytest.raises(NotFound), folders.folder(root, PurePosixPath("out/new"), create=True):
        pass
    assert not (root / "out" / "new").exists()


def test_a_very_deep_tree_does_not_break_the_walk(tmp_path: Path) -> None:
    here = tmp_path
    for _ in range(100):
        here = here / "d"
        here.mkdir()
        (here / "f").write_text("")
    assert len(list(folders.walk(tmp_path, PurePosixPath()))) == folders.MAX_DEPTH
