"""Linux inotify, as much of it as the agent needs.

Why not a library: watchfiles reports a file that was created and one that was renamed alike, as "added". The
agent must tell them apart, because only the rename says that the writer has finished.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
IS_DIRECTORY = 0x40000000

_ONLY_DIRECTORIES = 0x1000000
_DO_NOT_FOLLOW = 0x2000000
_EVENTS = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE_SELF | MOVE_SELF
_MASK = _EVENTS | _ONLY_DIRECTORIES | _DO_NOT_FOLLOW
_HEADER = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)
available = hasattr(_libc, "inotify_init1")


@dataclass(frozen=True, slots=True)
class Notice:
    """What happened to `name` in the directory that `watch` stands for."""

    watch: int
    mask: int
    name: str


class Inotify:
    """A queue of notices about directories. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def fileno(self) -> int:
        return self._descriptor

    def add(self, folder: str) -> int:
        """Watches a directory (not those below); watching it twice gives the same number.

        Raises:
            OSError: ENOSPC when the system's number of watches is used up; FileNotFoundError,
                NotADirectoryError where there is no such directory.
        """
        return _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK), folder)

    def remove(self, watch: int) -> None:
        # fails when the directory has gone and taken its watch along, which is just as well
        _libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[Notice]:
        """The notices that are there now; none when there are none."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return []
        notices = []
        position = 0
        while position < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            notices.append(Notice(watch, mask, os.fsdecode(data[position : position + length].rstrip(b"\0"))))
            position += length
        return notices

    def close(self) -> None:
        os.close(self._descriptor)


def _checked(result: int, subject: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result
