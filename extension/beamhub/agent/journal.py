"""What the agent remembers across restarts: each file it found ready, and what became of it."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .file import Stamp

VERSION = 3


class JournalError(Exception):
    """The journal can't be used; the message says why and what to do."""


class State(StrEnum):
    GROWING = "growing"  # not ready; parts of it are sent already
    QUEUED = "queued"  # ready; not, or not completely, sent
    ARRIVED = "arrived"  # the service has verified and published it
    REFUSED = "refused"  # the service does not take it
    SKIPPED = "skipped"  # the staff don't want it, whatever becomes of it


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in one state, and how far it has come."""

    path: str
    stamp: Stamp
    state: State
    digest: str | None  # see beamhub.digests; once it has been read
    key: str | None  # of the announcement: repeated with the same key, it does not begin a second upload
    upload: str | None  # the path of the upload's URL, once the service has begun one
    experiment: str | None  # that the upload was begun for: no other may get the file in this state
    error: str


class Snapshot:
    """A journal that is only looked at, perhaps while an agent works with it; empty where there is none."""

    def __init__(self, path: Path, mode: str = "ro") -> None:
        self.path = path
        there = mode != "ro" or path.exists()
        try:
            self._connection = _connect(f"{path.as_uri()}?mode={mode}" if there else "file::memory:")
        except sqlite3.Error as error:
            raise JournalError(f"the journal {path} can't be opened ({error}): {_remedy(error)}") from error
        if not there:
            self._execute(_FILES)

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """All its rows."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(
                f"the journal {self.path} can't be used ({error}): {_remedy(error)}"
            ) from error

    def find(self, path: str) -> Entry | None:
        rows = self._execute(f"{_SELECT} WHERE path = ?", (path,))
        return _entry(rows[0]) if rows else None

    def find_all(self, paths: Collection[str]) -> dict[str, Entry]:
        """Those of these that are known."""
        among = "WHERE path IN (SELECT value FROM json_each(?))"
        rows = self._execute(f"{_SELECT} {among}", (json.dumps(list(paths)),))
        return {entry.path: entry for entry in map(_entry, rows)}

    def settled(self, path: str, stamp: Stamp) -> bool:
        """Has the file, in this state, arrived or been refused, or is it to be skipped in any state?"""
        entry = self.find(path)
        if entry is None or entry.state in (State.QUEUED, State.GROWING):
            return False
        return entry.stamp == stamp or entry.state is State.SKIPPED

    def check(self, instrument: str) -> None:
        """Reads all of it.

        Raises:
            JournalError: it is damaged, or of another instrument.
        """
        if (damage := self._execute("PRAGMA quick_check(1)")[0][0]) != "ok":
            raise JournalError(f"the journal {self.path} is damaged ({damage}): {_MOVE_AWAY}")
        if self._execute("SELECT 1 FROM sqlite_schema WHERE name = 'about'"):  # else nothing is in it
            self._owned_by(instrument)

    def _owned_by(self, instrument: str) -> None:
        for (owner,) in self._execute("SELECT instrument FROM about WHERE instrument != ?", (instrument,)):
            raise JournalError(
                f"the journal {self.path} belongs to instrument {owner}: "
                f"give instrument {instrument} its own with `path` under [journal]"
            )

    def close(self) -> None:
        self._connection.close()


class Journal(Snapshot):
    """A small SQLite file. Each method is one statement, so that it may be called from any thread.

    The journal is not flushed to the disk at each change: after a power cut the last lines may be missing;
    then those files are offered again, and the service answers that it has them.

    Raises:
        JournalError: it is damaged, of another instrument, in use by another agent, or can't be written.
    """

    def __init__(self, path: Path, instrument: str) -> None:
        self.skips = 0  # so often something has been skipped
        self._lock = _lock(path)
        try:
            super().__init__(path, mode="rwc")
        except JournalError:
            os.close(self._lock)
            raise
        try:
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = NORMAL")
            self._prepare(instrument)
        except JournalError:
            self.close()
            raise

    def _prepare(self, instrument: str) -> None:
        execute = self._execute
        version = execute("PRAGMA user_version")[0][0]
        if version > VERSION:
            raise JournalError(f"the journal {self.path} is of a newer beamhub: update this one")
        execute("CREATE TABLE IF NOT EXISTS about (instrument TEXT NOT NULL)")
        execute(_FILES)
        for statement in (_BLOCKS, _OVER, _GONE):
            execute(statement)
        execute("CREATE TABLE IF NOT EXISTS orders (obeyed INTEGER NOT NULL)")
        execute("INSERT INTO orders SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM orders)")
        execute("CREATE INDEX IF NOT EXISTS files_state ON files (state) WHERE state != 'arrived'")
        execute("CREATE INDEX IF NOT EXISTS files_inode ON files (inode)")
        execute(f"PRAGMA user_version = {VERSION}")
        execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (instrument,))
        self._owned_by(instrument)

    def unfinished(self) -> Iterator[Entry]:
        """What had been ready, has not arrived and is still wanted."""
        wanted = f"{_SELECT} WHERE state != 'arrived' AND state != 'skipped'"
        return map(_entry, self._execute(wanted))

    def skipped(self) -> Iterator[Entry]:
        wanted = f"{_SELECT} WHERE state != 'arrived' AND state = 'skipped'"  # as the index has it
        return map(_entry, self._execute(wanted))

    def of(self, experiment: str) -> Iterator[Entry]:
        """All that has begun for this experiment, and all that is still to begin for any."""
        wanted = f"{_SELECT} WHERE experiment = ? OR experiment IS NULL AND state != 'arrived'"
        return map(_entry, self._execute(wanted, (experiment,)))

    def called(self, path: str, stamp: Stamp) -> str | None:
        """The path of another file in this state: `path` by its new name, or by a second one."""
        rows = self._execute(
            "SELECT path FROM files WHERE (inode, size, mtime_ns) = (?, ?, ?) AND path != ?",
            (stamp.inode, stamp.size, stamp.mtime_ns, path),
        )
        return str(rows[0][0]) if rows else None

    def count_arrived(self) -> int:
        """How many files have arrived; looks at all."""
        return int(self._execute("SELECT COUNT(*) FROM files WHERE state = 'arrived'")[0][0])

    def count_skipped(self) -> int:
        query = "SELECT COUNT(*) FROM files WHERE state != 'arrived' AND state = 'skipped'"
        return int(self._execute(query)[0][0])

    def obeyed(self) -> int:
        """The last of the staff's commands that has been obeyed."""
        return int(self._execute("SELECT obeyed FROM orders")[0][0])

    def obey(self, command: int) -> None:
        self._execute("UPDATE orders SET obeyed = ?", (command,))

    def grow(self, path: str, stamp: Stamp, key: str) -> None:
        """The file is going to be sent while it grows; nothing that was known of it holds any longer."""
        self._execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, 'growing', NULL, ?, NULL, NULL, '')",
            (path, stamp.inode, stamp.size, stamp.mtime_ns, key),
        )

    def sent(self, path: str, digests: Mapping[int, bytes]) -> None:
        """The service has these blocks of the file, which had these digests when they were read; b"" where it
        is not known in which state it has the block."""
        told = json.dumps([[number, digest.hex()] for number, digest in digests.items()])
        self._execute(
            "INSERT OR REPLACE INTO blocks"
            " SELECT ?, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)",
            (path, told),
        )

    def blocks(self, path: str) -> dict[int, bytes]:
        """What the service has of a file that was sent while it grew: number of the block -> digest."""
        rows = self._execute("SELECT number, digest FROM blocks WHERE path = ?", (path,))
        return {number: bytes.fromhex(digest) for number, digest in rows}

    def block(self, path: str, number: int) -> bytes:
        """The digest of what the service has of this block; b"" where that is not known."""
        rows = self._execute("SELECT digest FROM blocks WHERE path = ? AND number = ?", (path, number))
        return bytes.fromhex(rows[0][0]) if rows else b""

    def not_sent(self, path: str, number: int) -> None:
        """The service does not have this block of the file, or not as a whole, and none behind it."""
        self._execute("DELETE FROM blocks WHERE path = ? AND number >= ?", (path, number))

    def queue(self, path: str, stamp: Stamp) -> None:
        """The file is ready. What is known of this very state of it stays known, and what has been sent of it
        while it grew."""
        self._execute(_QUEUE, (path, stamp.inode, stamp.size, stamp.mtime_ns))

    def hashed(self, path: str, digest: str | None, key: str) -> None:
        """With which key the file is announced, and its digest where that is known already."""
        self._execute("UPDATE files SET digest = ?, key = ? WHERE path = ?", (digest, key, path))

    def digested(self, path: str, digest: str) -> None:
        """The digest of a file that is on its way."""
        self._execute("UPDATE files SET digest = ? WHERE path = ?", (digest, path))

    def hashed_all(self, files: Mapping[str, tuple[str, str]]) -> None:
        """As `hashed`, of many files: path -> (digest, key)."""
        told = json.dumps([[path, *one] for path, one in files.items()])
        self._execute(
            "UPDATE files SET digest = json_extract(value, '$[1]'), key = json_extract(value, '$[2]')"
            " FROM json_each(?) WHERE files.path = json_extract(value, '$[0]')",
            (told,),
        )

    def begun(self, path: str, upload: str, experiment: str) -> None:
        self._execute(
            "UPDATE files SET upload = ?, experiment = ? WHERE path = ?", (upload, experiment, path)
        )

    def restart(self, path: str) -> None:
        """Neither digest nor upload are to be relied on: the file is read and sent from its beginning."""
        self._execute("UPDATE files SET digest = NULL, key = NULL, upload = NULL WHERE path = ?", (path,))

    def arrived(self, path: str) -> None:
        self._execute("UPDATE files SET state = 'arrived', upload = NULL WHERE path = ?", (path,))

    def arrived_all(self, experiments: Mapping[str, str]) -> None:
        """Files have arrived that were sent whole: path -> the experiment that they went to."""
        told = json.dumps(list(experiments.items()))
        self._execute(
            "UPDATE files SET state = 'arrived', upload = NULL, experiment = json_extract(value, '$[1]')"
            " FROM json_each(?) WHERE files.path = json_extract(value, '$[0]')",
            (told,),
        )

    def refused(self, path: str, error: str) -> None:
        self._execute(
            "UPDATE files SET state = 'refused', upload = NULL, error = ? WHERE path = ?", (error, path)
        )

    def skip(self, path: str, reason: str) -> None:
        """The file is not wanted. Its upload stays known, to be given up."""
        self.skips += 1
        self._execute("UPDATE files SET state = 'skipped', error = ? WHERE path = ?", (reason, path))

    def given_up(self, path: str) -> None:
        """The service no longer has a part of it."""
        self._execute("UPDATE files SET key = NULL, upload = NULL WHERE path = ?", (path,))

    def requeue(self, path: str) -> None:
        """What was refused or skipped is wanted after all."""
        self._execute(
            "UPDATE files SET state = 'queued', error = '' WHERE path = ? AND state != 'arrived'", (path,)
        )

    def grows_again(self, path: str, stamp: Stamp) -> bool:
        """A file that was sent while it grew, and then was ready, is not any longer. Whether what has been
        sent of it is still of use."""
        changed = self._execute(
            "UPDATE files SET state = 'growing', digest = NULL, size = ?, mtime_ns = ?"
            " WHERE path = ? AND inode = ? AND state = 'queued' AND upload IS NOT NULL"
            " AND EXISTS (SELECT 1 FROM blocks WHERE blocks.path = files.path) RETURNING path",
            (stamp.size, stamp.mtime_ns, path, stamp.inode),
        )
        return bool(changed)

    def forget_growing(self, path: str) -> None:
        self._execute("DELETE FROM files WHERE path = ? AND state = 'growing'", (path,))

    def forget(self, path: str) -> None:
        self._execute("DELETE FROM files WHERE path = ?", (path,))

    def retry_refused(self) -> None:
        """A restart gives what was refused another chance: perhaps the reason is gone."""
        self._execute("UPDATE files SET state = 'queued' WHERE state = 'refused'")

    def close(self) -> None:
        super().close()
        os.close(self._lock)


_FILES = (
    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, inode INTEGER NOT NULL, size INTEGER NOT NULL,"
    " mtime_ns INTEGER NOT NULL, state TEXT NOT NULL, digest TEXT, key TEXT, upload TEXT, experiment TEXT,"
    " error TEXT NOT NULL) WITHOUT ROWID"
)
# of what is sent while it grows; they go with the upload
_BLOCKS = (
    "CREATE TABLE IF NOT EXISTS blocks (path TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL,"
    " PRIMARY KEY (path, number)) WITHOUT ROWID"
)
_OVER = (
    "CREATE TRIGGER IF NOT EXISTS blocks_over AFTER UPDATE OF upload ON files WHEN NEW.upload IS NULL"
    " BEGIN DELETE FROM blocks WHERE path = NEW.path; END"
)
_GONE = (
    "CREATE TRIGGER IF NOT EXISTS blocks_gone AFTER DELETE ON files"
    " BEGIN DELETE FROM blocks WHERE path = OLD.path; END"
)
_QUEUE = (
    "INSERT INTO files VALUES (?1, ?2, ?3, ?4, 'queued', NULL, NULL, NULL, NULL, '')"
    " ON CONFLICT (path) DO UPDATE SET"
    " digest = CASE WHEN same THEN digest END,"
    " key = CASE WHEN same THEN key END,"
    " upload = CASE WHEN same THEN upload END,"
    " experiment = CASE WHEN same THEN experiment END,"
    " inode = ?2, size = ?3, mtime_ns = ?4, state = 'queued', error = ''"
).replace("same", "(inode, size, mtime_ns) = (?2, ?3, ?4) OR state = 'growing' AND inode = ?2")
_SELECT = "SELECT path, inode, size, mtime_ns, state, digest, key, upload, experiment, error FROM files"


def _entry(row: tuple[Any, ...]) -> Entry:
    path, inode, size, mtime_ns, state, *rest = row
    return Entry(path, Stamp(inode, size, mtime_ns), State(state), *rest)


_MOVE_AWAY = "move it away, and what has arrived already is only compared, not sent again"


def _remedy(error: sqlite3.Error) -> str:
    """What a person can do about it."""
    match getattr(error, "sqlite_errorcode", None) or 0:
        case code if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return _MOVE_AWAY
        case code if code & 0xFF == sqlite3.SQLITE_FULL:
            return "free space on its disk; nothing is lost meanwhile"
        case _:
            return "see to its folder and its disk, or move it away: what has arrived is not sent again"


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5)


def _lock(path: Path) -> int:
    """Holds a lock beside the journal for as long as the process lives, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"the journal {path} can't be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise JournalError(f"another agent already works with the journal {path}: stop it first") from error
    return lock
