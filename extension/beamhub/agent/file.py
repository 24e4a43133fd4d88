"""A regular file in a watched directory: which state of it was seen, and how it is opened and hashed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from beamhub.digests import ALGORITHMS
from beamhub.schemas import DigestAlgorithm

CHUNK = 1 << 20  # bytes read at a time
INODE = 2**63 - 1  # some network file systems use all 64 bits of an inode's number, SQLite has 63


class ChangedError(Exception):
    """The file is not what it was: it grew, shrank, was overwritten, or another one has taken its name."""


class GoneError(Exception):
    """There is no such file any more."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells one state of a file from the next, without reading it."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_ino & INODE, status.st_size, status.st_mtime_ns)


def look(path: str) -> Stamp | None:
    """The file's stamp; None where there is no regular file. Symbolic links are not followed."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Stamp.of(status) if stat.S_ISREG(status.st_mode) else None


def looks(paths: Sequence[str]) -> list[Stamp | None]:
    """As `look`, at each of these."""
    return [look(path) for path in paths]


def oddity(mode: int) -> str:
    """What is neither a file nor a directory, in words; "" for what is."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


@contextmanager
def opened(root: Path, name: str, stamp: Stamp) -> Iterator[int]:
    """A descriptor of the file `name` below `root`, in the state `stamp`.

    Each folder on the way is opened without following links, so that nobody who may write into the watched
    directory can make the agent read a file elsewhere.

    Raises:
        GoneError: the file or a folder of it is no longer there.
        ChangedError: it is not in the state `stamp`, or no regular file any more.
        OSError: it can't be opened.
    """
    file = open_in_state(root, name, stamp)
    try:
        yield file
    finally:
        os.close(file)


def open_in_state(root: Path, name: str, stamp: Stamp) -> int:
    """As `opened`, for who closes it otherwise."""
    file = open_below(root, name)
    try:
        unchanged(file, stamp)
    except BaseException:
        os.close(file)
        raise
    return file


def open_below(root: Path, name: str) -> int:
    """A descriptor of the file `name` below `root`; see `opened`.

    Raises:
        GoneError, OSError
    """
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                below = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = below
            return os.open(last, flags, dir_fd=folder)
        finally:
            os.close(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GoneError(name) from error


def read(file: int, stamp: Stamp, length: int, position: int) -> bytes:
    """At least one and at most `length` bytes of an open file in the state `stamp`.

    Raises:
        ChangedError: it is in another state.
    """
    data = os.pread(file, length, position)
    unchanged(file, stamp)
    if not data:
        raise ChangedError
    return data


def read_into(file: int, stamp: Stamp, buffer: memoryview, position: int) -> int:
    """As `read`, as many bytes as there is room for; how many these are.

    Memory that is used again: to get some from the system for each piece, and to give it back, which happens
    in threads, takes far longer than to read.
    """
    count = os.preadv(file, [buffer], position)
    unchanged(file, stamp)
    if not count:
        raise ChangedError
    return count


def unchanged(file: int, stamp: Stamp) -> None:
    """Raises ChangedError when the open file is no longer in the state `stamp`."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or Stamp.of(status) != stamp:
        raise ChangedError


def moved(file: int, path: str) -> bool:
    """Has the open file another name than `path` now? (What was deleted has none, and is read to its end.)"""
    status = os.fstat(file)
    there = look(path)
    return status.st_nlink > 0 and (there is None or there.inode != Stamp.of(status).inode)


class Digesting:
    """The digest of a file in the making, while it is read piece by piece for another purpose.

    Pieces may come again, as they do when a connection has broken; none may be left out.
    """

    def __init__(self, algorithm: DigestAlgorithm) -> None:
        self.algorithm = algorithm
        self.position = 0  # up to which all has gone into it
        self._hasher = ALGORITHMS[algorithm]()
        self._lock = threading.Lock()  # a read that was given up may end beside the one that repeats it

    def add(self, piece: bytes | memoryview, position: int) -> None:
        """A piece that was read at `position`."""
        with self._lock:
            if position <= self.position < position + len(piece):
                self._hasher.update(memoryview(piece)[self.position - position :])
                self.position = position + len(piece)

    def catch_up(self, file: int, stamp: Stamp, position: int, stop: threading.Event) -> None:
        """Reads what lies before `position` and has not gone into it.

        Raises:
            ChangedError: the open file is not in the state `stamp`, or `stop` was set.
        """
        buffer = memoryview(bytearray(min(CHUNK, max(position - self.position, 0))))
        while self.position < position:
            count = read_into(file, stamp, buffer[: position - self.position], self.position)
            self.add(buffer[:count], self.position)
            if stop.is_set():
                raise ChangedError

    def digest(self) -> str:
        """Of all up to `position` (see beamhub.digests)."""
        return f"{self.algorithm}:{self._hasher.hexdigest()}"

    @property
    def size(self) -> int:
        """Bytes of the digest itself."""
        return len(self._hasher.digest())


def rest(file: int, path: str, stamp: Stamp, position: int = 0) -> bytes:
    """What an open file in the state `stamp` has from `position` on; little.

    Raises:
        ChangedError: it is in another state.
        GoneError: it is called otherwise than `path` now.
    """
    pieces = list[bytes]()
    while position < stamp.size:
        pieces.append(read(file, stamp, stamp.size - position, position))
        position += len(pieces[-1])
    unchanged(file, stamp)
    if moved(file, path):
        raise GoneError(path)
    return b"".join(pieces)


def digest_of(file: int, stamp: Stamp, algorithm: DigestAlgorithm, stop: threading.Event) -> str:
    """The digest (see beamhub.digests) of an open file that is in the state `stamp` from beginning to end.

    Raises:
        ChangedError: it changed while it was read, or `stop` was set.
    """
    digesting = Digesting(algorithm)
    digesting.catch_up(file, stamp, stamp.size, stop)
    unchanged(file, stamp)
    return digesting.digest()


def printable(text: str) -> str:
    """One line that is safe to log and to show: names of files may hold anything but "/" and NUL."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int) -> str:
    """Both ends of a text, at most `length` characters in all."""
    return text if len(text) <= length else f"{text[: length // 2 - 2]} … {text[-length // 2 + 2 :]}"


def encodable(path: str) -> bool:
    """Is the name UTF-8 on the disk? Only such names can travel and be kept in the journal."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
