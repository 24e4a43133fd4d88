"""Files that are arriving, on disk: where their bytes collect, how they are verified and given their names.

Every step may be repeated after a kill. Nothing is replaced, and no link that somebody else has put into the
way is followed. All of it blocks: to be called in threads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path, PurePosixPath

from beamhub import folders
from beamhub.errors import ChecksumMismatch, Conflict, DiskFull, Gone, NotFound
from beamhub.schemas import Upload, UploadState

MAX_VERSIONS = 100  # of one path
RESERVE = 64 * 2**20  # bytes of disk that uploads leave to the rest of the service


def versions(path: str) -> list[str]:
    """The names that a file of this path and its later versions can have."""
    return [folders.versioned(path, number) for number in range(1, MAX_VERSIONS + 1)]


class Incoming:
    """The temporary files `<data_dir>/<experiment>/.incoming/<upload>`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def temporary(self, upload: Upload) -> Path:
        return self._data_dir / upload.experiment / folders.INCOMING / upload.id

    def make_room(self, upload: Upload) -> None:
        """An empty temporary file. Raises DiskFull if the announced bytes can't fit."""
        temporary = self.temporary(upload)
        if shutil.disk_usage(temporary.parent).free - RESERVE < upload.size:
            raise explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), upload)
        # there already when a kill has come between this and the upload's row
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))

    def write(self, upload: Upload, position: int, block: bytearray, hasher: hashlib._Hash | None) -> None:
        """Writes all of a block, and adds it to the hash. Raises Gone if the upload is over."""
        if hasher:
            hasher.update(block)
        view = memoryview(block)
        with self._opened(upload) as file:
            while view:
                count = os.pwrite(file.fileno(), view, position)
                view, position = view[count:], position + count

    def cut(self, upload: Upload, size: int) -> None:
        """Forgets the bytes from `size` on."""
        with self._opened(upload) as file:
            file.truncate(size)

    def _opened(self, upload: Upload) -> FileIO:
        try:
            return FileIO(self.temporary(upload), "r+")
        except FileNotFoundError as error:
            raise Gone(f"The upload of {upload.path} is over.", "Ask for its state.") from error

    def measured(self, upload: Upload) -> Upload:
        """The upload with the offset that the disk knows."""
        if upload.state is not UploadState.RECEIVING:
            return upload
        try:
            return upload.model_copy(update={"offset": self.temporary(upload).stat().st_size})
        except FileNotFoundError:  # completed or given up since its row was read
            return upload

    def touched(self, upload: Upload) -> datetime:
        """When its last byte came."""
        try:
            return datetime.fromtimestamp(self.temporary(upload).stat().st_mtime, UTC)
        except FileNotFoundError:
            return datetime.now(UTC)

    def verify(self, upload: Upload) -> None:
        """The bytes on disk are those that were announced, and stay there. Raises ChecksumMismatch."""
        with self.temporary(upload).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != upload.digest:
                raise ChecksumMismatch(
                    f"{upload.path} arrived with another content than announced.",
                    "Announce and send it again.",
                )
            # what the instrument has measured is never changed; in shared/ people work
            os.fchmod(file.fileno(), 0o440 if upload.path.startswith(f"{folders.RAW}/") else 0o660)
            os.fsync(file.fileno())

    def publish(self, upload: Upload, paths: Sequence[str]) -> str:
        """Gives the temporary file the first of these names that is free, durably; the name."""
        temporary = self.temporary(upload)
        status = temporary.stat()
        # a name it has already, since before a kill, counts as free: look for that one first
        named = [path for path in paths if self._names(upload, path, status)] if status.st_nlink > 1 else []
        for path in named or paths:
            where = PurePosixPath(path)
            try:
                with folders.folder(self._data_dir / upload.experiment, where.parent, create=True) as parent:
                    with contextlib.suppress(FileExistsError):
                        os.link(temporary, where.name, dst_dir_fd=parent, follow_symlinks=False)
                    found = os.stat(where.name, dir_fd=parent, follow_symlinks=False)
                    if os.path.samestat(found, status):
                        os.fsync(parent)
                        return path
            except NotFound as error:
                raise Conflict(
                    f"{where.parent} is not a folder, so {upload.path} can't be put there.",
                    "Choose another name.",
                ) from error
        raise Conflict(f"There are {MAX_VERSIONS} versions of {upload.path}.", "Choose another name.")

    def _names(self, upload: Upload, path: str, status: os.stat_result) -> bool:
        """Whether this is a name of the file with this status."""
        where = PurePosixPath(path)
        try:
            with folders.folder(self._data_dir / upload.experiment, where.parent) as parent:
                return os.path.samestat(os.stat(where.name, dir_fd=parent, follow_symlinks=False), status)
        except (NotFound, FileNotFoundError):
            return False

    def still_there(self, upload: Upload) -> bool:
        """Whether a published file is as it was published; in shared/ people may have changed it."""
        try:
            with folders.open_file(self._data_dir / upload.experiment, PurePosixPath(upload.path)) as file:
                if os.fstat(file.fileno()).st_size != upload.size:
                    return False
                if upload.path.startswith(f"{folders.RAW}/"):
                    return True
                return hashlib.file_digest(file, "sha256").hexdigest() == upload.digest
        except NotFound:
            return False

    def discard(self, upload: Upload) -> None:
        """Removes the temporary file; the published name stays."""
        self.temporary(upload).unlink(missing_ok=True)

    def remove_orphans(self, known: Collection[str]) -> None:
        """Removes the temporary files of all uploads but the known ones."""
        for temporary in self._data_dir.glob(f"*/{folders.INCOMING}/*"):
            if temporary.name not in known:
                temporary.unlink(missing_ok=True)


def explained(error: OSError, upload: Upload) -> Exception:
    """DiskFull where that is what happened; else the error itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"There is no room for {upload.path} ({upload.size} bytes) on the disk of the service.",
            "Ask the operators for space; then send on: what has arrived is kept.",
        )
    return error
