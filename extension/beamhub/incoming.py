"""Files that are arriving, on disk: where their bytes collect, how they are verified and given their names.

Every step may be repeated after a kill. Nothing is replaced, and no link that somebody else has put into the
way is followed. All of it blocks: to be called in threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Self

from beamhub import digests, folders
from beamhub.body import Body
from beamhub.digests import Running
from beamhub.errors import ChecksumMismatch, Conflict, DiskFull, Gone, NotFound, Unavailable
from beamhub.marks import Marks
from beamhub.previews import Previews
from beamhub.schemas import DigestAlgorithm, Upload, UploadState

MAX_VERSIONS = 100  # of one path
LOCKS = ".publishing"  # the file in the data directory that all names' locks are ranges of
WAIT = 0.02  # seconds between attempts to claim a name, or to hold a file that is just looked at
RESERVE = 64 * 2**20  # bytes of disk that uploads leave to the rest of the service
Stamp = tuple[int, int, int]  # inode, bytes, time of the last change: of one state of a file
BLOCK = 2**20  # bytes received and written at once: fewer calls of the kernel, which also takes larger pages
TURN = 0.05  # seconds that a thread receives one file before it may be another's turn
AHEAD = (
    32 * 2**20
)  # bytes after which the disk begins to write, so that little is left to wait for at the end
USUAL: DigestAlgorithm = "sha256"  # of what is sent without a digest


@functools.lru_cache(maxsize=1024)
def versions(path: str) -> tuple[str, ...]:
    """The names that all versions of a file can have, if one of them has this path."""
    first = folders.unversioned(path)
    return tuple(folders.versioned(first, number) for number in range(1, MAX_VERSIONS + 1))


class Incoming:
    """The temporary files `<data_dir>/<experiment>/.incoming/<upload>`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.previews = Previews(data_dir)
        self.marks = Marks(data_dir)

    def temporary(self, upload: Upload) -> Path:
        return self._data_dir / upload.experiment / folders.INCOMING / upload.id

    def make_room(self, upload: Upload) -> Held:
        """An empty temporary file, held. Raises DiskFull if the announced bytes can't fit."""
        temporary = self.temporary(upload)
        if upload.source is None:
            self._require_room(upload)
        while True:
            try:
                # there already when a kill has come between this and the upload's row
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            except OSError as error:
                raise explained(error, upload) from error
            with contextlib.suppress(Gone):  # it was there, and has just been removed as an orphan
                return self.hold(upload)

    def keep(self, upload: Upload, content: memoryview) -> Held:
        """A temporary file with all the bytes of an upload, which are known to be those that were announced,
        held. They stay there once `flush` has been called. Raises Conflict, OSError."""
        held = self.make_room(upload)
        try:
            held.cut(0)  # what a kill has left
            held.write(0, content)
            held.position = len(content)
            os.fchmod(held.fileno(), _mode(upload))
        except BaseException:
            self.discard(upload)
            held.close()
            raise
        return held

    def _require_room(self, upload: Upload) -> None:
        if self.free(upload) < upload.size:
            raise explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), upload)

    def free(self, upload: Upload) -> int:
        """How many bytes the disk has room for."""
        return shutil.disk_usage(self.temporary(upload).parent).free - RESERVE

    def join(self, file: Held, parts: Sequence[Held]) -> None:
        """Puts the bytes of the parts into an empty file, one behind the other. Raises Conflict if one is not
        complete."""
        for part in parts:
            if part.size() != part.upload.size:
                raise Conflict(
                    f"The part {part.upload.id} has {part.size()} of {part.upload.size} bytes.",
                    "Send the rest of it; then put the parts together.",
                )
        file.cut(0)
        for part in parts:
            _copy(part.fileno(), file.fileno(), part.upload.size, file.size())

    def source(self, upload: Upload, root: Path, file: Held) -> Source:
        """An upload's source, a file below `root`, and the temporary file for a copy of it.

        Nothing on the way from `root` to the source may be a link. Raises NotFound, ChecksumMismatch (it is
        not as long as announced).
        """
        assert upload.source is not None  # noqa: S101
        with folders.open_file(root, PurePosixPath(upload.source).relative_to(root)) as stream:
            source = Source(upload, os.dup(stream.fileno()), file)
        if (size := source.size()) != upload.size:
            source.close()
            raise ChecksumMismatch(
                f"{upload.source} has {size} bytes, not {upload.size}.", "Register it again."
            )
        return source

    def bring(self, source: Source) -> Held:
        """The file to publish: the source itself where it can have a second name in the experiment, else the
        held temporary file with a copy of it. Raises ChecksumMismatch (it changes), DiskFull."""
        if self._can_be_named(source.upload, source):
            return source
        self._require_room(source.upload)
        source.copy.cut(0)
        _copy(source.fileno(), source.copy.fileno(), source.upload.size, 0)
        source.seal(0)
        return source.copy

    def _can_be_named(self, upload: Upload, source: Source) -> bool:
        """Whether a file elsewhere may get a hard link among the experiments: not from another file system,
        and the kernel also refuses it for files that the service may not write (fs.protected_hardlinks)."""
        probe = f"{upload.id}.probe"
        with folders.folder(self._data_dir / upload.experiment, PurePosixPath(folders.INCOMING)) as parent:
            with contextlib.suppress(FileNotFoundError):  # a kill has left it
                os.unlink(probe, dir_fd=parent)
            try:
                os.link(_this(source.fileno()), probe, dst_dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP):
                    return False
                raise
            os.unlink(probe, dir_fd=parent)
        return True

    def hold(self, upload: Upload) -> Held:
        """The temporary file, for one request or process at a time: until it is closed, nobody else adds to
        it, publishes it or removes it for its age. A kill releases it.

        Raises Conflict while somebody else holds it, Gone where there is none. A look at it (see `remove`)
        keeps nobody out: its end is waited for.
        """
        temporary = self.temporary(upload)
        try:
            held = Held(upload, _open(temporary))
        except FileNotFoundError as error:
            raise _over(upload) from error
        try:
            while not _lock(held.fileno(), fcntl.LOCK_EX):
                if not _lock(held.fileno(), fcntl.LOCK_SH):
                    raise busy(upload)
                fcntl.flock(held.fileno(), fcntl.LOCK_UN)
                time.sleep(WAIT)
            # it may have been removed before it was locked
            held.position = held._under_way = held.size()
            if only_checksums(upload) and (doubted := self.marks.doubted(upload)) is not None:
                held.cut(min(doubted, held.position))  # a kill has left it
                self.marks.believe(upload)
        except BaseException:
            held.close()
            raise
        return held

    def claim(self, experiment: str, paths: Collection[str]) -> int | None:
        """The right to publish under these names, before all other processes: a descriptor, to be closed
        afterwards; None while somebody else has one of them. A kill gives it back."""
        lock = os.open(self._data_dir / LOCKS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        names = (f"{experiment}/{path}".encode() for path in paths)
        places = {int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()) for name in names}
        try:
            for place in sorted(places):  # in one order, so that of two who want the same, one gets all
                # of the open file, not of the process: two claims of one process exclude each other too
                one_byte = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, one_byte)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    @contextlib.contextmanager
    def claimed(self, experiment: str, *paths: str) -> Iterator[None]:
        """As `claim`, and waits for it."""
        while (lock := self.claim(experiment, paths)) is None:
            time.sleep(WAIT)
        try:
            yield
        finally:
            os.close(lock)

    def measured(self, upload: Upload) -> Upload:
        """The upload with the offset that the disk knows."""
        if upload.state is not UploadState.RECEIVING:
            return upload
        arrived = self.arrived(upload)  # None: completed or given up since its row was read
        if arrived is None:
            return upload
        return upload.model_copy(
            update={"offset": arrived, "size": arrived if upload.deferred else upload.size}
        )

    def arrived(self, upload: Upload) -> int | None:
        """How many bytes the temporary file has, but for those in doubt; None where there is none."""
        try:
            size = self.temporary(upload).lstat().st_size
        except FileNotFoundError:
            return None
        doubted = self.marks.doubted(upload) if only_checksums(upload) else None
        return size if doubted is None else min(size, doubted)

    def touched(self, uploads: Iterable[Upload]) -> dict[str, datetime]:
        """When the last byte of each came, by their ids; of those that have a temporary file."""
        found = {}
        for upload in uploads:
            with contextlib.suppress(FileNotFoundError):
                found[upload.id] = datetime.fromtimestamp(self.temporary(upload).lstat().st_mtime, UTC)
        return found

    def verify(self, upload: Upload, file: Held, running: Running) -> str:
        """The digest of the bytes in the file, which are those that were announced, and stay there. What has
        not gone into the running digest when it came is read. Raises ChecksumMismatch."""
        running.catch_up(file.fileno())
        digest = str(running)
        if upload.digest not in (None, digest) or running.position != file.size():
            raise different(upload.path)
        file.seal(_mode(upload))
        return digest

    def publish(
        self, experiment: str, files: Sequence[tuple[Upload, Held, Sequence[str]]]
    ) -> list[str | Conflict | OSError]:
        """Gives each of these held files the first of its names that is free, durably: that name, or why it
        got none."""
        results: list[str | Conflict | OSError] = []
        with self._parents(experiment) as parent:
            for upload, file, paths in files:
                try:
                    results.append(self._link(upload, file.fileno(), paths, parent))
                except (Conflict, OSError) as error:
                    results.append(error)
        return results

    @contextlib.contextmanager
    def _parents(self, experiment: str) -> Iterator[Callable[[PurePosixPath], int]]:
        """Opens folders of an experiment, each once, and makes those that are missing. What has been put into
        them stays, also after a power cut."""
        found: dict[PurePosixPath, int] = {}
        with contextlib.ExitStack() as stack:

            def parent(path: PurePosixPath) -> int:
                if path not in found:
                    opening = folders.folder(self._data_dir / experiment, path, create=True)
                    found[path] = stack.enter_context(opening)
                return found[path]

            yield parent
            for descriptor in found.values():
                os.fsync(descriptor)

    def _link(
        self, upload: Upload, file: int, paths: Sequence[str], parent: Callable[[PurePosixPath], int]
    ) -> str:
        status = os.fstat(file)
        # a name it has already, since before a kill, counts as free: look for that one first
        named = [path for path in paths if self._names(upload, path, status)] if status.st_nlink > 1 else []
        for path in named or paths:
            where = PurePosixPath(path)
            try:
                folder = parent(where.parent)
            except NotFound as error:
                raise Conflict(
                    f"{where.parent} is not a folder, so {upload.path} can't be put there.",
                    "Choose another name.",
                ) from error
            with contextlib.suppress(FileExistsError):
                os.link(_this(file), where.name, dst_dir_fd=folder)
                return path
            if path in named:
                return path
        raise Conflict(f"There are {MAX_VERSIONS} versions of {upload.path}.", "Choose another name.")

    def _names(self, upload: Upload, path: str, status: os.stat_result) -> bool:
        """Whether this is a name of the file with this status."""
        where = PurePosixPath(path)
        try:
            with folders.folder(self._data_dir / upload.experiment, where.parent) as parent:
                return os.path.samestat(os.stat(where.name, dir_fd=parent, follow_symlinks=False), status)
        except (NotFound, FileNotFoundError):
            return False

    def holds(self, published: Upload, size: int, digest: str) -> bool:
        """Whether a published file is there and has this content; in shared/ people may have changed it.

        Where its digest is of another algorithm, the file is read."""
        algorithm = digests.algorithm_of(digest)
        known = published.digest is not None and digests.algorithm_of(published.digest) == algorithm
        if published.size != size or (known and published.digest != digest):
            return False
        try:
            where = PurePosixPath(published.path)
            with folders.open_file(self._data_dir / published.experiment, where) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                if known and published.path.startswith(f"{folders.RAW}/"):
                    return True
                return digests.of_file(file, algorithm) == digest
        except NotFound:
            return False

    def discard(self, *uploads: Upload) -> None:
        """Removes their temporary files; the published names stay."""
        for upload in uploads:
            self.previews.discard(upload)
            self.marks.discard(upload)
            self.temporary(upload).unlink(missing_ok=True)

    def withdraw(self, upload: Upload, others: Collection[str]) -> None:
        """Takes back the names that its file got before a kill, when nobody was told of it any more.
        `others`: names under which files have been published, this or another one."""
        for file in (self.temporary(upload), Path(upload.source or os.devnull)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._take_names(upload, file.lstat(), others)

    def _take_names(self, upload: Upload, status: os.stat_result, others: Collection[str] = ()) -> None:
        """Of the file with this status, which has another name elsewhere."""
        for path in versions(upload.path) if status.st_nlink > 1 else ():
            if path not in others and self._names(upload, path, status):
                self._unlink(upload.experiment, PurePosixPath(path))

    # --- what nobody may get ---

    def quarantined(self, upload: Upload) -> Path:
        return self._data_dir / folders.QUARANTINE / upload.experiment / upload.id

    def isolate(self, upload: Upload, file: Held, path: str) -> None:
        """Takes a held file that has just been published as `path` out of everybody's reach, durably."""
        place = PurePosixPath(folders.QUARANTINE, upload.experiment)
        with folders.folder(self._data_dir, place, create=True) as quarantine:
            if not isinstance(file, Source):  # that one's owner decides
                os.fchmod(file.fileno(), 0o600)
            with contextlib.suppress(FileExistsError):  # before a kill
                os.link(_this(file.fileno()), upload.id, dst_dir_fd=quarantine)
            os.fsync(quarantine)
        self._unlink(upload.experiment, PurePosixPath(path))

    def release(self, upload: Upload) -> str:
        """Gives a quarantined file a name again; which one."""
        with self.quarantined(upload).open("rb") as file:
            if upload.source is None:
                os.fchmod(file.fileno(), 0o440)
            with self._parents(upload.experiment) as parent:
                return self._link(upload, file.fileno(), versions(upload.path), parent)

    def take_back(self, upload: Upload) -> None:
        """A quarantined file has no other name, whatever a kill has left."""
        file = self.quarantined(upload)
        self._take_names(upload, file.stat())
        if upload.source is None:
            file.chmod(0o600)

    def _unlink(self, experiment: str, where: PurePosixPath) -> None:
        with folders.folder(self._data_dir / experiment, where.parent) as parent:
            os.unlink(where.name, dir_fd=parent)
            os.fsync(parent)

    def in_quarantine(self) -> list[Path]:
        """All files there; each has the id of its upload as its name."""
        return list(self._data_dir.glob(f"{folders.QUARANTINE}/*/*"))

    # --- what is there ---

    def found(self) -> list[Path]:
        """All temporary files, and what lies beside them; each name begins with the id of its upload."""
        return list(self._data_dir.glob(f"*/{folders.INCOMING}/*"))


def _mode(upload: Upload) -> int:
    """What the instrument has measured is never changed; in shared/ people work."""
    return 0o440 if upload.path.startswith(f"{folders.RAW}/") else 0o660


def flush(files: Sequence[Held]) -> None:
    """Lets the bytes of all these files stay as they are, also after a power cut.

    All are given to the disk before the first is waited for. To flush the whole file system at once would be
    as fast, but not beside a large upload, whose bytes it waits for too.
    """
    for file in files:
        file.begin_flush()
    for file in files:
        file.flush()


def only_checksums(upload: Upload) -> bool:
    """Whether nothing vouches for its bytes but the checksums that they may come with: it has no digest."""
    return upload.digest is None and upload.digest_follows is None and upload.source is None


def running_digest(upload: Upload) -> Running:
    """The digest of a file of which nothing has come yet."""
    known = digests.algorithm_of(upload.digest) if upload.digest else upload.digest_follows
    return Running(known or USUAL)


_SYNC_FILE_RANGE = ctypes.CDLL(None).sync_file_range
_SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_WRITE = 2  # SYNC_FILE_RANGE_WRITE

_of_thread = threading.local()


def _buffer() -> memoryview:
    """Room for a block, one in each thread that receives."""
    if not hasattr(_of_thread, "buffer"):
        _of_thread.buffer = memoryview(bytearray(BLOCK))
    buffer: memoryview = _of_thread.buffer
    return buffer


def _open(temporary: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(temporary, os.O_RDWR | flags)
    except PermissionError:  # a kill has come between its verification and its publication
        return os.open(temporary, os.O_RDONLY | flags)


def _lock(descriptor: int, kind: int) -> bool:
    """Whether this lock could be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove(temporary: Path, unless: Callable[[], bool]) -> None:
    """Removes a temporary file that nobody holds, unless something speaks against it, before or while nobody
    can begin to hold it. Who wants to hold it meanwhile waits, and finds that it is there or gone."""
    if unless():
        return
    try:
        descriptor = _open(temporary)
    except FileNotFoundError:
        return
    try:
        if _lock(descriptor, fcntl.LOCK_SH) and not unless():  # else it is just being announced
            temporary.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


class Held:
    """A temporary file that is held (see Incoming.hold). Closing it lets it go."""

    def __init__(self, upload: Upload, descriptor: int) -> None:
        self.upload = upload
        self.position = 0  # how many bytes have arrived
        self._under_way = 0  # and how many of them to the disk
        self._descriptor = descriptor

    @property
    def stamp(self) -> Stamp:
        """Is another one as soon as anybody else has written into it."""
        status = os.fstat(self._descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # not by closing alone: a process that is just being started has a copy until it runs its program
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def size(self) -> int:
        """How many bytes it has. Raises Gone if it has been removed: the upload is over."""
        status = os.fstat(self._descriptor)
        if status.st_nlink == 0:
            raise _over(self.upload)
        return status.st_size

    def receive(self, body: Body, limit: int, takers: Sequence[Callable[[memoryview], object]]) -> bool:
        """Adds what has come of a body to the file, and gives it to the takers, for as long as it keeps
        coming, but not much longer than TURN. False: more has come than fits below `limit`.

        Raises Gone if the upload is over, OSError. `position` tells how far it has come, also then.
        """
        buffer, end = _buffer(), time.monotonic() + TURN
        while time.monotonic() < end and (count := body.take(buffer)):
            if self.position + count > limit:
                return False
            self.size()
            block = buffer[:count]
            self.write(self.position, block)
            for take in takers:
                take(block)
            self.position += count
            if self.position - self._under_way >= AHEAD:
                self.begin_flush()
        return True

    def write(self, position: int, block: bytes | memoryview) -> None:
        view = memoryview(block)
        while view:
            count = os.pwrite(self._descriptor, view, position)
            view, position = view[count:], position + count

    def begin_flush(self) -> None:
        """Lets the disk begin to write what is not yet on its way there, and waits for nothing: a hint, for
        which the kernel need not have an ear. What stays is for `seal` to see to."""
        _SYNC_FILE_RANGE(self._descriptor, self._under_way, self.position - self._under_way, _WRITE)
        self._under_way = self.position

    def flush(self) -> None:
        """Lets the bytes stay as they are, also after a power cut."""
        os.fsync(self._descriptor)

    def cut(self, size: int) -> None:
        """Forgets the bytes from `size` on."""
        os.ftruncate(self._descriptor, size)
        self.position = size

    def seal(self, mode: int) -> None:
        """Lets the verified bytes stay as they are, also after a power cut."""
        os.fchmod(self._descriptor, mode)
        self.flush()


class Source(Held):
    """A file on the facility's own storage, to be published where it lies. Nothing of it is changed, and
    nobody is kept from it; so it has to be watched.

    Args:
        copy: where its bytes may be copied to.
    """

    def __init__(self, upload: Upload, descriptor: int, copy: Held) -> None:
        super().__init__(upload, descriptor)
        self.copy = copy
        self._stamp = self.stamp

    def seal(self, mode: int) -> None:  # noqa: ARG002 (its owner decides)
        self.flush()
        if self.stamp != self._stamp:
            raise ChecksumMismatch(
                f"{self.upload.source} changed while it was read.", "Register it again once it is finished."
            )


def _this(file: int) -> str:
    """A path that leads to this very open file, whatever its names have become."""
    return f"/proc/self/fd/{file}"


def _copy(source: int, target: int, size: int, position: int) -> None:
    """Copies `size` bytes from the beginning of one file to `position` in another, in the kernel, which
    shares them where the file system can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, size - done, done, position + done)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            os.lseek(target, position + done, os.SEEK_SET)
            count = os.sendfile(target, source, done, size - done)
        if count == 0:
            raise ChecksumMismatch("A file became shorter while it was copied.", "Try again.")
        done += count


def different(path: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{path} arrived with another content than announced.", "Announce and send it again."
    )


def damaged(upload: Upload) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"A part of {upload.path} was damaged on its way.", "Ask for the offset, and send from there on."
    )


def busy(upload: Upload) -> Conflict:
    return Conflict(
        f"Another request is sending {upload.path}.", "Wait for it, ask for the offset, and go on from there."
    )


def _over(upload: Upload) -> Gone:
    return Gone(f"The upload of {upload.path} is over.", "Ask for its state.")


def explained(error: OSError, upload: Upload) -> Exception:
    """DiskFull or Unavailable where the disk is full or keeps the service out; else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"There is no room for {upload.path} ({upload.size} bytes) on the disk of the service.",
            "Ask the operators for space; then send on: what has arrived is kept.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Unavailable(
            f"The service can't put {upload.path} into the folder of {upload.experiment}: "
            f"{os.strerror(error.errno).lower()}.",
            "Tell the facility's operators; then send on: what has arrived is kept.",
        )
    return error
