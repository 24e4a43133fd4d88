"""What looks into HDF5 files for the agent, in a process of its own: see beamhub.agent.reader.

No link is followed: what a file points to is only named.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from beamhub.frames import hdf5
from beamhub.frames.bounded import serve
from beamhub.frames.outside import HostileFile, UnreadableFile, open_confined, superblock

from .file import INODE
from .reader import Listing, Question, Verdict


def open_in_writer(file: int) -> bool:
    """Does the file say that somebody writes it? (Versions 2 and 3 of the superblock can.)"""
    position = superblock(file)
    if position is None:
        return False
    head = os.pread(file, 12, position)
    return len(head) == 12 and head[8] >= 2 and head[11] != 0


def judge(path: Path, root: Path) -> Verdict:
    """Whether the file `path` below `root` is complete in itself, and what it points to.

    Raises:
        FileNotFoundError: it is gone.
    """
    try:
        file = open_confined(path, root)
        try:
            if open_in_writer(file):
                return Verdict(problem="has not been closed by its writer")
        finally:
            os.close(file)
        with hdf5.opened(path, root) as opened:
            sources = {*hdf5.neighbours(opened, path.name)} - {path.name}
        return Verdict(sources=tuple(sorted(sources)))
    except HostileFile as problem:
        return Verdict(problem=f"is not as it should be: {problem.reason}", hopeless=True)
    except UnreadableFile as problem:
        return Verdict(problem=f"can't be opened: {problem.reason}")


def frames(path: Path, root: Path, begin: int) -> Listing:
    """The frames of the file `path` below `root`, which somebody still writes, from `begin` on.

    Raises:
        FileNotFoundError: it is gone.
    """
    from beamhub.frames import swmr  # with large libraries, of which a verdict has no need

    begun = time.process_time()
    try:
        listed = swmr.frames_from(begin, path, root)
    except HostileFile as problem:
        return Listing(problem=f"is not as it should be: {problem.reason}", hopeless=True)
    except UnreadableFile as problem:
        return Listing(problem=f"has none to show: {problem.reason}", seconds=time.process_time() - begun)
    seconds = time.process_time() - begun
    return Listing(inode=listed.inode & INODE, growing=listed.growing, seconds=seconds)


def _answer(question: Question) -> Verdict | Listing:
    path, root = Path(question.path), Path(question.root)
    try:
        return judge(path, root) if question.begin is None else frames(path, root, question.begin)
    except FileNotFoundError:
        return Verdict(problem="is gone") if question.begin is None else Listing(problem="is gone")


def _understood(line: bytes) -> Callable[[], bytes]:
    question = Question.model_validate_json(line)
    if question.begin is not None:
        from beamhub.frames import swmr  # noqa: F401 (before the file's time runs)
    return lambda: _answer(question).model_dump_json().encode()


if __name__ == "__main__":
    os.setsid()  # Ctrl-C is the agent's
    serve(_understood, memory=int(sys.argv[1]), seconds=int(sys.argv[2]))
