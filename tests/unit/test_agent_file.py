"""Opening and hashing files that others write."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
import xxhash
from beamhub.agent.file import (
    CHUNK,
    ChangedError,
    Digesting,
    GoneError,
    Stamp,
    digest_of,
    encodable,
    look,
    moved,
    opened,
    printable,
    read,
    rest,
)
from beamhub.digests import ALGORITHMS
from hypothesis import given
from hypothesis import strategies as st


def open_descriptors() -> set[str]:
    return set(os.listdir(f"/proc/{os.getpid()}/fd"))  # noqa: PTH208


def stamp_of(path: Path) -> Stamp:
    stamp = look(str(path))
    assert stamp is not None
    return stamp


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_digest(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    stamp = stamp_of(tmp_path / "a")

    with opened(tmp_path, "a", stamp) as file:
        read_whole = {name: digest_of(file, stamp, name, threading.Event()) for name in ALGORITHMS}
    assert read_whole == {
        "sha256": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "xxh128": f"xxh128:{xxhash.xxh3_128_hexdigest(content)}",
    }


@given(st.binary(max_size=100), st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30))))
def test_a_digest_of_pieces_that_come_again_is_that_of_the_whole(
    content: bytes, pieces: list[tuple[int, int]]
) -> None:
    digesting = Digesting("sha256")
    for back, length in pieces:
        begin = max(0, digesting.position - back)
        digesting.add(content[begin : begin + length], begin)
    digesting.add(content, 0)
    assert digesting.digest() == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_digest_catches_up_after_a_restart(tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK + 5)
    (tmp_path / "a").write_bytes(content)
    stamp, digesting = stamp_of(tmp_path / "a"), Digesting("xxh128")
    with opened(tmp_path, "a", stamp) as file:
        for position in (CHUNK + 1, 7, len(content)):
            digesting.catch_up(file, stamp, position, threading.Event())
            digesting.add(content[:10], 0)
            assert digesting.position == max(position, CHUNK + 1)
    assert digesting.digest() == f"xxh128:{xxhash.xxh3_128_hexdigest(content)}"


def test_a_file_that_changed_since_it_was_seen_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    stamp = stamp_of(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"22")

    with pytest.raises(ChangedError), opened(tmp_path, "a", stamp):
        pass


def test_growth_overwriting_and_shrinking_are_noticed_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1" * 100)

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"2")

    def overwrite() -> None:
        path.write_bytes(b"3" * 101)
        os.utime(path, ns=(0, 0))

    def shrink() -> None:
        os.truncate(path, 5)

    for change in (grow, overwrite, shrink):
        stamp = stamp_of(path)
        with opened(tmp_path, "a", stamp) as file:
            assert read(file, stamp, 10, 0)
            change()
            with pytest.raises(ChangedError):
                read(file, stamp, 10, 0)
            with pytest.raises(ChangedError):
                digest_of(file, stamp, "xxh128", threading.Event())


def test_a_file_that_is_called_otherwise_now(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    stamp = stamp_of(path)
    with opened(tmp_path, "a", stamp) as file:
        assert rest(file, str(path), stamp) == b"1"
        path.rename(tmp_path / "b")
        assert moved(file, str(path))
        with pytest.raises(GoneError):
            rest(file, str(path), stamp)
        (tmp_path / "a").write_bytes(b"2")
        assert moved(file, str(path)), "another one has its name"
        (tmp_path / "b").unlink()
        assert not moved(file, str(path)), "it is gone, and this is the last chance to read it"


def test_hashing_stops_when_the_agent_stops(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    stamp = stamp_of(tmp_path / "a")
    stop = threading.Event()
    stop.set()

    with opened(tmp_path, "a", stamp) as file, pytest.raises(ChangedError):
        digest_of(file, stamp, "xxh128", stop)


def test_no_link_is_followed_anywhere_below_the_watched_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "folder").symlink_to(secret)
    (root / "real" / "key").symlink_to(secret / "key")
    stamp = stamp_of(secret / "key")

    with pytest.raises(GoneError), opened(root, "folder/key", stamp):
        pass
    with pytest.raises(OSError, match="symbolic links"), opened(root, "real/key", stamp):
        pass


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    stamp = stamp_of(tmp_path / "a")
    (tmp_path / "a").unlink()

    assert look(str(tmp_path / "a")) is None
    for name in ("a", "folder/a"):
        with pytest.raises(GoneError), opened(tmp_path, name, stamp):
            pass


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    stamp = stamp_of(tmp_path / "a")
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")

    with pytest.raises(ChangedError), opened(tmp_path, "a", stamp):
        pass


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "a").touch()
    stamp = stamp_of(tmp_path / "x" / "y" / "a")
    before = open_descriptors()

    with opened(tmp_path, "x/y/a", stamp):
        pass
    with pytest.raises(GoneError), opened(tmp_path, "x/z/a", stamp):
        pass

    assert open_descriptors() == before


@given(st.text())
def test_what_is_shown_is_one_printable_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert text.isprintable() <= (shown == text)


def test_names_that_are_not_utf8() -> None:
    name = os.fsdecode(b"frame\xff.cbf")
    assert not encodable(name)
    assert encodable("Å_π.cbf")
    assert printable(name) == r"frame\udcff.cbf"
