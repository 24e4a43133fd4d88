"""Looking into files from outside, in child processes whose memory and time are bounded.

A file may be built to exhaust or crash its reader, and the libraries that read it are large. So the service
opens none: a child does, `Format.look` and `Frames.counts`, and is replaced when a file was too much for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import math
import mmap
import os
import queue
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from beamhub.frames import formats, reader
from beamhub.frames.bounded import BEGUN, START, serve
from beamhub.frames.format import MAX_PIXELS, Contents, Frames, MissingFrameError
from beamhub.frames.growing import Come
from beamhub.frames.outside import FileProblem, HostileFile, UnreadableFile

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    import numpy as np
    from numpy.typing import NDArray

MAX_ANSWER = 1 << 24  # bytes of a line
KEPT = 16  # datasets of which a child remembers where the frames lie
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where to look: a file, or a dataset, of this format; nothing may leave `root`. `first` is the number of
    a series' first file. Without a format: an HDF5 file of no dataset, of which only the links are looked at.
    """

    format: str | None
    path: Path
    root: Path
    first: int | None = None


@dataclass(frozen=True)
class Mask:
    """Which pixels of a dataset's frames don't count, and the largest count that is a measurement."""

    bad: NDArray[np.bool_]
    saturation: int


class Inspector:
    """Looks at files and reads frames in bounded child processes.

    A child lives on between files (starting one costs half a second), and is replaced when a file has crashed
    it or run it out of its bounds; that file is then unreadable.

    Args:
        children: how many at most, started as they are needed. Half of them look at files that arrive: what
            is slow to look at doesn't keep the viewer waiting.
        memory: address space of a child, bytes.
        seconds: CPU time and wall-clock time for one question.
    """

    def __init__(self, children: int = 4, memory: int = 2 << 30, seconds: float = 20.0) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(children, "beamhub-inspect")
        self._children: queue.LifoQueue[_Child] = queue.LifoQueue()  # the one used last comes first
        self._all = [_Child(memory, seconds) for _ in range(children)]
        for child in self._all:
            self._children.put(child)
        self._looking = asyncio.Semaphore(max(1, children // 2))

    async def look(self, place: Place) -> Contents:
        """`Format.look`. Raises what that raises."""

        async with self._looking:
            return await self._with_child(lambda child: child.look(place))

    async def look_at_all(self, places: Sequence[Place]) -> list[Contents | FileProblem]:
        """As `look`, at many files; what it would raise of one is that one's answer, but for a file that is
        gone, which raises."""
        if not places:
            return []
        async with self._looking:
            return await self._with_child(lambda child: child.look_at_all(places))

    async def counts(self, place: Place, index: int, shape: tuple[int, int]) -> NDArray[Any]:
        """Frame `index` (from 0) of a dataset, whose frames have this shape. Raises as `Frames.counts`."""
        question = _question("counts", place, index=index)
        return await self._with_child(lambda child: child.ask_array(question, place.path.name, shape)[0])

    async def mask(self, place: Place, shape: tuple[int, int]) -> Mask:
        """The mask of a dataset. Raises as `Frames.counts`."""

        def work(child: _Child) -> Mask:
            array, saturation = child.ask_array(_question("mask", place), place.path.name, shape)
            return Mask(array != 0, saturation)

        return await self._with_child(work)

    async def close(self) -> None:
        """End the children, and those who wait for one."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for child in self._all:
            child.end()

    async def _with_child(self, work: Callable[[_Child], T]) -> T:
        """Runs to its end, also when nobody waits any longer: an answer belongs to its question."""

        def run() -> T:
            child = self._children.get()
            try:
                return work(child)
            finally:
                self._children.put(child)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)


class _Child:
    """One child process. Arrays come back in memory that both share."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._memory = memory
        self._seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._shared = -1
        self._room = 0

    def ask(self, question: dict[str, Any], name: str, room: int = 0) -> bytes:
        """The child's answer about a file called `name`, for which it needs `room` bytes of shared memory.

        Raises:
            HostileFile, UnreadableFile, FileNotFoundError, MissingFrameError: the child's verdict, or that
                it could give none.
        """
        line = json.dumps(question).encode() + b"\n"
        tried_before = self.process is not None
        try:
            answer = self._exchange(line, room)
            if not answer and tried_before:  # it may have died of something else in the meantime
                self.end()
                answer = self._exchange(line, room)
        except TimeoutError as error:
            self.end()
            raise UnreadableFile(name, f"looking at it took more than {self._seconds:g} s") from error
        if not answer:
            self.end()
            raise UnreadableFile(name, "looking at it exhausted or crashed its reader")
        return _content(answer, name)

    def look(self, place: Place) -> Contents:
        """`Format.look`. Raises as `ask`."""
        answer = self.ask(_question("look", place), place.path.name)
        try:
            return _CONTENTS.validate_json(answer)
        except ValueError as error:
            raise _senseless(place.path.name) from error

    def look_at_all(self, places: Sequence[Place]) -> list[Contents | FileProblem]:
        """As `look`, with one question; each by itself when that comes to no answer, so that none has to
        suffer for another."""
        name = places[0].path.name
        if len(places) > 1:
            questions = [_question("look", place) for place in places]
            try:
                answer = self.ask({"what": "look at all", "path": name, "questions": questions}, name)
                return self._verdicts(answer, places)
            except UnreadableFile:
                pass
        found: list[Contents | FileProblem] = []
        for place in places:
            try:
                found.append(self.look(place))
            except FileProblem as problem:
                found.append(problem)
        return found

    def _verdicts(self, answer: bytes, places: Sequence[Place]) -> list[Contents | FileProblem]:
        """What the child says of each. Raises UnreadableFile for what makes no sense."""
        found: list[Contents | FileProblem] = []
        try:
            verdicts = _VERDICTS.validate_json(answer)
            for verdict, place in zip(verdicts, places, strict=True):
                try:
                    found.append(_CONTENTS.validate_json(_content(verdict.encode(), place.path.name)))
                except FileProblem as problem:
                    found.append(problem)
        except ValueError as error:
            raise _senseless(places[0].path.name) from error
        return found

    def ask_array(
        self, question: dict[str, Any], name: str, shape: tuple[int, int]
    ) -> tuple[NDArray[Any], int]:
        """An array of this shape, and the saturation value. Raises as `ask`."""
        import numpy as np

        pixels = shape[0] * shape[1]
        if not 0 < pixels <= MAX_PIXELS:
            raise HostileFile(name, f"it claims frames of {shape[0]} × {shape[1]} pixels")
        answer = self.ask({**question, "shape": shape}, name, 4 * pixels)
        try:
            told = _ARRAY.validate_json(answer)
            dtype = np.dtype(str(told["dtype"]))
            saturation = int(told["saturation"])
        except (ValueError, KeyError, TypeError) as error:
            raise _senseless(name) from error
        if dtype.kind not in "ui" or dtype.itemsize > 4:
            raise _senseless(name)
        with mmap.mmap(self._shared, pixels * dtype.itemsize, prot=mmap.PROT_READ) as memory:
            # a copy: the child may write again, and the next frame will
            array = np.array(np.frombuffer(memory, dtype, pixels).reshape(shape))
        return array, saturation

    def _make_room(self, size: int) -> None:
        if self._shared < 0:
            self._shared = os.memfd_create("beamhub-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # a child that shrinks it would crash whoever reads it here
            fcntl.fcntl(self._shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        if size > self._room:
            os.ftruncate(self._shared, size)
            self._room = size

    def _exchange(self, question: bytes, room: int) -> bytes:
        """The child's answer, b"" if it died over the question. Raises TimeoutError."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        self._make_room(room)  # not before: another child has other memory
        child = self.process
        if child is None or child.stdin is None or child.stdout is None:
            return b""
        deadline = time.monotonic() + START  # which is no fault of the file
        answer = bytearray()
        try:
            child.stdin.write(question)
            child.stdin.flush()
            ready = select.poll()
            ready.register(child.stdout, select.POLLIN)
            while answer == BEGUN or not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not ready.poll(left * 1000):
                    raise TimeoutError
                if not answer:
                    deadline = time.monotonic() + self._seconds
                part = os.read(child.stdout.fileno(), 1 << 16 if answer else len(BEGUN))
                if not part or len(answer) > MAX_ANSWER:
                    return b""
                answer += part
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return bytes(answer.removeprefix(BEGUN))

    def _start(self) -> None:
        self.end()
        self._make_room(1 << 16)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "beamhub.frames.inspect"),
                *map(str, (self._memory, math.ceil(self._seconds), self._shared)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._shared,),
            # nothing of the service's environment; no filter plugins from elsewhere; no threads' arenas
            env={"OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::", "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )

    def end(self) -> None:
        """End it. The next question would start another."""
        child, self.process = self.process, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except BrokenPipeError:  # what was not written any more
                        continue
        if self._shared >= 0:
            os.close(self._shared)
            self._shared, self._room = -1, 0


_CONTENTS = TypeAdapter(Contents)
_PROBLEM = TypeAdapter(dict[str, str])
_VERDICTS = TypeAdapter(list[str])  # one answer each
_ARRAY = TypeAdapter(dict[str, str | int])


def _question(what: str, place: Place, **more: Any) -> dict[str, Any]:
    where = {"format": place.format, "path": os.fspath(place.path), "root": os.fspath(place.root)}
    return {"what": what, **where, "first": place.first, **more}


def _content(answer: bytes, name: str) -> bytes:
    """What an answer about a file called `name` says, if that is no problem; else raises it."""
    kind, _, rest = answer.partition(b" ")
    if kind == b"ok":
        return rest
    try:  # whoever has taken over the child may answer anything
        problem = _PROBLEM.validate_json(rest)
        file, reason = problem["file"], problem["reason"]
    except (ValueError, KeyError) as error:
        raise _senseless(name) from error
    if kind == b"missing":
        raise FileNotFoundError(reason)
    if kind == b"none":
        raise MissingFrameError(reason)
    raise (HostileFile if kind == b"hostile" else UnreadableFile)(file, reason)


def _senseless(name: str) -> UnreadableFile:
    return UnreadableFile(name, "its reader gave a senseless answer")


# --- the child ----------------------------------------------------------------------------------------------


def _serve(memory: int, seconds: int, shared: int) -> None:
    from beamhub.frames import nxmx_frames  # noqa: F401 (once, and not while the first file's time runs)

    serve(lambda line: functools.partial(_answers, json.loads(line), shared), memory, seconds)


def _answers(question: dict[str, Any], shared: int) -> bytes:
    if question["what"] != "look at all":
        return _verdict(question, shared)
    verdicts = [_verdict(one, shared).decode() for one in question["questions"]]
    return b"ok " + _VERDICTS.dump_json(verdicts)


def _verdict(question: dict[str, Any], shared: int) -> bytes:
    name = Path(question["path"]).name
    try:
        return b"ok " + _answer(question, shared)
    except HostileFile as problem:
        return _problem("hostile", problem.file, problem.reason)
    except UnreadableFile as problem:
        return _problem("unreadable", problem.file, problem.reason)
    except MissingFrameError as problem:
        return _problem("none", name, str(problem))
    except FileNotFoundError:
        return _problem("missing", name, f"there is no file {name}")
    except MemoryError:
        return _problem("unreadable", name, "reading it needs more memory than is allowed")


def _answer(question: dict[str, Any], shared: int) -> bytes:
    path, root = Path(question["path"]), Path(question["root"])
    if question["what"] == "look":
        return _CONTENTS.dump_json(_look(question["format"], path, root))
    import numpy as np

    frames = _opened(path, root, question["first"], _stamp(path))
    array = frames.mask.view(np.uint8) if question["what"] == "mask" else frames.counts(question["index"])
    if list(array.shape) != question["shape"]:
        raise UnreadableFile(path.name, "its frames are of another size than was announced")
    with mmap.mmap(shared, array.nbytes) as memory:
        np.frombuffer(memory, array.dtype).reshape(array.shape)[:] = array
    return _ARRAY.dump_json({"dtype": array.dtype.name, "saturation": frames.saturation})


def _look(format_: str | None, path: Path, root: Path) -> Contents:
    if format_ is not None:
        return formats.FORMATS[format_].look(path, root)
    from beamhub.frames import hdf5

    with hdf5.opened(path, root):
        return Contents(None, None)


def _stamp(path: Path) -> tuple[int | str, ...]:
    """Changes when there is another file at the path, or about to be; a series' path leads to none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        come = Come.find(path)
        return (come.file.name,) if come else ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=KEPT)
def _opened(path: Path, root: Path, first: int | None, _stamp: tuple[int | str, ...]) -> Frames:
    return reader.open_dataset(path, root, first)


def _problem(kind: str, file: str, reason: str) -> bytes:
    return f"{kind} ".encode() + json.dumps({"file": file, "reason": reason}).encode()


if __name__ == "__main__":
    _serve(*(int(argument) for argument in sys.argv[1:4]))
