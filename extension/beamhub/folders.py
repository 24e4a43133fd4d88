"""Files below a folder that others may write to: nothing here follows a symbolic link or leaves the folder.

Members' sessions and jobs write into an experiment's folder, so a path there may be a trap at any moment: a
link to somebody else's data, a pipe that blocks whoever opens it. Each component is therefore opened from the
one before it, without following links, and what has been opened is what is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path, PurePosixPath

from beamhub.errors import BadName, NotFound
from beamhub.schemas import File

RAW, PROCESSED, SHARED, INCOMING = "raw", "processed", "shared", ".incoming"
# beside the experiments' folders, which sessions and jobs see: no sandbox has it
QUARANTINE = ".quarantine"
MAX_PATH = 900  # characters; leaves room in the store's 1000 for the area and a version
MAX_NAME = 255  # bytes; what file systems allow
MAX_DEPTH = 32
VERSION = re.compile(r"version-\d+")
# letters and marks that nobody sees; others of that kind are not printable anyway
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def parse(path: str, *, new: bool = False) -> PurePosixPath:
    """A relative path out of a request, if it is one that can be published, listed and typed again.

    Raises BadName for absolute paths, `..`, names that are hidden, unprintable, too long or not portable, and
    for a `new` file also for names that the service itself gives.
    """
    parts = path.split("/")
    complaint = ""
    if not path or len(path) > MAX_PATH or len(parts) > MAX_DEPTH:
        complaint = f"it needs 1 to {MAX_PATH} characters and at most {MAX_DEPTH} levels"
    else:
        complaint = next(filter(None, map(_complaint, parts)), "")
    if new and not complaint:
        complaint = next(filter(None, map(_complaint_of_new, parts)), "")
    if complaint:
        raise BadName(
            f"The path {path[:200]!r} is not allowed: {complaint}.", "Rename the file and send it again."
        )
    return PurePosixPath(path)


def versioned(path: str, version: int) -> str:
    """Where a later version of a file goes: into a folder beside it, so that the files of one acquisition
    keep their names, and a master's links to its data files stay right."""
    folder, slash, name = path.rpartition("/")
    return path if version == 1 else f"{folder}{slash}version-{version}/{name}"


def _complaint(name: str) -> str:
    """Why a file or folder can't have this name; "" if it can."""
    if name in ("", ".", ".."):
        return "it must be relative, without empty names, `.` and `..`"
    if name.startswith("."):
        return "names that begin with a dot are reserved for temporary files"
    if not name.isprintable() or "\\" in name:
        return "names need printable characters, and no backslash"
    if name != name.strip():
        return "names must not begin or end with a space"
    if len(name.encode()) > MAX_NAME:
        return f"a name has at most {MAX_NAME} bytes"
    return ""


def _complaint_of_new(name: str) -> str:
    """Why a file or folder can't get this name, which has no other fault; "" if it can."""
    if VERSION.fullmatch(name):
        return "names like version-2 are given to later versions of a file"
    if INVISIBLE.search(name) or unicodedata.normalize("NFC", name) != name:
        return "another name would look the same: write it in composed characters (NFC), all of them visible"
    meant = unicodedata.normalize("NFKC", name)
    if meant != name and ("/" in meant or _complaint(meant) or VERSION.fullmatch(meant)):
        return f"it looks like {meant!r}, which can't be a name"
    return ""


def unversioned(path: str) -> str:
    """What a file was called before its version gave it another place: the same for all its versions."""
    folder, _, name = path.rpartition("/")
    above, _, last = folder.rpartition("/")
    if not VERSION.fullmatch(last):
        return path
    return f"{above}/{name}" if above else name


@contextlib.contextmanager
def folder(root: Path, path: PurePosixPath, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder `path` below `root`. With `create`, what is missing is made, durably.

    Raises NotFound where there is no such folder, or where a link is in the way.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.parts:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o750, dir_fd=descriptor)
                    os.fsync(descriptor)
            try:
                child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                raise _explained(error, path) from error
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(root: Path, path: PurePosixPath) -> BufferedReader:
    """The regular file `path` below `root`, opened for reading. Raises NotFound for anything else."""
    with folder(root, path.parent) as parent:
        try:
            # non-blocking: opening a pipe would wait for its writer
            descriptor = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
        except OSError as error:
            raise _explained(error, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_found(path)
    return os.fdopen(descriptor, "rb")


def walk(root: Path, prefix: PurePosixPath) -> Iterator[File]:
    """All regular files below `root`/`prefix` but hidden ones, in no order, paths relative to `root`."""
    waiting = [prefix]
    while waiting:
        here = waiting.pop()
        with (
            contextlib.suppress(NotFound),
            folder(root, here) as descriptor,
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                if _complaint(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it has just been removed
                    if entry.is_dir(follow_symlinks=False) and len(here.parts) < MAX_DEPTH:
                        waiting.append(here / entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield File(
                            path=str(here / entry.name),
                            size=status.st_size,
                            modified=datetime.fromtimestamp(status.st_mtime, UTC),
                        )


def _explained(error: OSError, path: PurePosixPath) -> Exception:
    """NotFound where there is nothing, a link or a socket in place of what was asked for; else the error."""
    nothing = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
    return _not_found(path) if error.errno in nothing else error


def _not_found(path: PurePosixPath) -> NotFound:
    return NotFound(f"There is no file or folder {str(path)!r} here.", "Check the path in the list of files.")
