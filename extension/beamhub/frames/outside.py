"""Files from outside: what is wrong with them, and how one is opened that may be a trap."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath

HDF5 = b"\x89HDF\r\n\x1a\n"  # begins a superblock


class FileProblem(Exception):  # noqa: N818 (what it is, not how it is raised)
    """Something is wrong with a file from outside. `file` is its name, `reason` a plain sentence."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class HostileFile(FileProblem):
    """The file points outside its own folder, or is built to exhaust or mislead its reader."""


class UnreadableFile(FileProblem):
    """The file is damaged, incomplete, or not what its name says."""


def confined_name(file: str, name: str) -> str:
    """The name of a neighbour of `file`, as a link has it, if it stays inside the folder.

    Raises:
        HostileFile: it is absolute, climbs out with "..", or holds characters no file name should.
    """
    if not name or not name.isprintable() or "\\" in name or len(name) > 1024:
        raise HostileFile(file, f"it links to a file by the unusable name {name[:100]!r}")
    if name.startswith("/"):
        raise HostileFile(file, f"it links to {name[:200]!r}; only files in its own folder may be linked")
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise HostileFile(file, f"it links out of its folder, to {name[:200]!r}")
    if "%" in name:  # HDF5 expands %b in names of virtual sources
        raise HostileFile(file, f"it links by a name pattern, {name[:200]!r}; each file must be named")
    return str(PurePosixPath(*parts))


def open_confined(path: Path, root: Path) -> int:
    """A file descriptor of a regular file inside `root`.

    Raises:
        HostileFile: symbolic links lead out of `root`, or it is not a regular file.
        FileNotFoundError: there is no such file (yet).
    """
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise HostileFile(path.name, "it leads out of its experiment's folder")
    return open_regular(Path(real))


def open_regular(path: Path) -> int:
    """A file descriptor of a regular file at this very path.

    Raises:
        HostileFile: it is a symbolic link, or not a regular file.
        FileNotFoundError: there is no such file (yet).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HostileFile(path.name, "it is a symbolic link") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HostileFile(path.name, "it is not a regular file")
    return fd


def superblock(file: int) -> int | None:
    """Where the superblock of an open HDF5 file lies: 0, 512, 1024, 2048 or so on; None if it is none."""
    size, position = os.fstat(file).st_size, 0
    while position < size:
        if os.pread(file, len(HDF5), position) == HDF5:
            return position
        position = position * 2 or 512
    return None
