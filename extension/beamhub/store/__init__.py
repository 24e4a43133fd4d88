"""The store: all that beamhub remembers, and the only place that speaks SQL.

Transactions that write follow one another, on SQLite (BEGIN IMMEDIATE) as on PostgreSQL (an advisory lock):
no rule of the service depends on an interleaving, and events become visible in the order of their ids. A
transaction is durable when it returns; those that wait meanwhile are committed together, each for itself all
or nothing. Reads see one consistent snapshot and never wait for writers. Nobody waits for ever for what
somebody else has locked.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from sqlite3 import SQLITE_BUSY, SQLITE_FULL
from typing import Any, TypeVar

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, OperationalError

from beamhub.bus import Bus
from beamhub.errors import BeamhubError, Conflict, DiskFull, Unavailable
from beamhub.schemas import BackupManifest
from beamhub.store import backup
from beamhub.store.attempts import Attempts
from beamhub.store.datasets import Datasets
from beamhub.store.events import Cursors, Events
from beamhub.store.experiments import Experiments, Members
from beamhub.store.finalisations import Finalisations
from beamhub.store.gatherings import Gatherings, Missed
from beamhub.store.grants import Grants
from beamhub.store.idempotency import Idempotency
from beamhub.store.instruments import Instruments
from beamhub.store.jobs import Jobs
from beamhub.store.licences import Licences
from beamhub.store.moves import Moves
from beamhub.store.numbers import Counts
from beamhub.store.orders import AgentFileRows, Commands
from beamhub.store.triggers import Triggers
from beamhub.store.uploads import Uploads
from beamhub.store.usage import Usage

T = TypeVar("T")

READERS = 4
TOGETHER = 100  # transactions that are committed at once
BUSY_TIMEOUT = 30.0  # seconds that a writer waits for another process's writer, or whatever else has a lock
STALLED = 60.0  # seconds after which PostgreSQL gives up a writer that has stopped within a transaction
CONNECT_TIMEOUT = 10  # seconds that PostgreSQL's server may take to answer
LOCK_NOT_AVAILABLE, STALLED_CODE = "55P03", "25P03"  # what PostgreSQL says of these
WRITERS_LOCK = 0x6265616D687562  # "beamhub": the key of PostgreSQL's advisory lock


class Transaction:
    """What can be read and written, by noun. Lives for the duration of the `work` it was given to."""

    def __init__(self, connection: Connection) -> None:
        self.instruments = Instruments(connection)
        self.experiments = Experiments(connection)
        self.members = Members(connection)
        self.commands = Commands(connection)
        self.agent_files = AgentFileRows(connection)
        self.uploads = Uploads(connection)
        self.datasets = Datasets(connection)
        self.moves = Moves(connection)
        self.finalisations = Finalisations(connection)
        self.triggers = Triggers(connection)
        self.gatherings = Gatherings(connection)
        self.missed = Missed(connection)
        self.jobs = Jobs(connection)
        self.attempts = Attempts(connection)
        self.licences = Licences(connection)
        self.grants = Grants(connection)
        self.usage = Usage(connection)
        self.counts = Counts(connection)
        self.events = Events(connection)
        self.cursors = Cursors(connection)
        self.idempotency = Idempotency(connection)


class Store:
    """A database at an SQLAlchemy URL: `sqlite:////path/beamhub.db` or `postgresql+psycopg://...`. With a
    bus, other processes that use it learn of commits at once."""

    def __init__(self, url: str, bus: Bus | None = None) -> None:
        self._bus = bus
        if bus is not None:
            bus.on_commit(self._tell)
        if url.startswith("sqlite"):
            self._read_engine = _sqlite(url, "BEGIN", "PRAGMA query_only = ON")
            self._write_engine = _sqlite(url, "BEGIN IMMEDIATE")
        elif url.startswith("postgresql+psycopg"):
            self._read_engine = _postgresql(url, isolation_level="REPEATABLE READ")
            event.listen(self._read_engine, "begin", _read_only)
            self._write_engine = _postgresql(url)
            event.listen(self._write_engine, "connect", _not_for_ever)
            event.listen(self._write_engine, "begin", _one_writer)
        else:
            raise BeamhubError(
                f"The database URL {url.partition(':')[0]}:… is neither SQLite nor PostgreSQL with psycopg.",
                "Use sqlite:////absolute/path.db or postgresql+psycopg://user@host/database.",
            )
        self._readers = ThreadPoolExecutor(READERS, "beamhub-read")
        self._writer = ThreadPoolExecutor(1, "beamhub-write")
        self._waiting: deque[tuple[Callable[[Transaction], Any], Future[Any]]] = deque()
        self._committed: list[Callable[[], None]] = []

    def migrate(self) -> None:
        """Brings the database's tables to this version of beamhub; does nothing when they are there already.

        Raises BeamhubError when the database has been used by a newer version.
        """
        with self._write_engine.begin() as connection:
            _upgrade(connection, "head")

    def save(self, path: Path) -> BackupManifest:
        """Writes a backup of the whole database, as it is at one moment. Raises Conflict where there is a
        file already."""
        with self._read_engine.begin() as connection:
            return backup.save(connection, path)

    def restore(self, path: Path, *, replace: bool = False) -> BackupManifest:
        """Makes the database what a backup holds, and brings it to this version of beamhub; all of that or
        nothing. Raises Invalid if the backup is damaged, Conflict if the database has been used and is not to
        be replaced."""
        manifest = backup.check(path)
        with self._write_engine.begin() as connection:
            if not replace and backup.used(connection):
                raise Conflict("The database has been used.", "Restore to an empty one, or replace it.")
            backup.clear(connection)
            _upgrade(connection, manifest.revision)
            backup.fill(connection, path, manifest)
            _upgrade(connection, "head")
        return manifest

    def migrated(self) -> bool:
        """Whether the database's tables are those of this version of beamhub."""
        found, newest = self.revisions()
        return found == newest

    def revisions(self) -> tuple[str | None, str]:
        """That of the database's tables, None if it has none, and that of this version of beamhub."""
        versions = files("beamhub.store.migrations") / "versions"
        newest = max(file.name[:4] for file in versions.iterdir() if file.name.endswith(".py"))
        with self._read_engine.begin() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None, newest
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found, newest

    def damage(self) -> str:
        """What SQLite finds wrong with its file, "" if nothing; it reads all of it. PostgreSQL looks after
        its own."""
        if self._read_engine.dialect.name != "sqlite":
            return ""
        with self._read_engine.begin() as connection:
            found: str = connection.scalars(text("PRAGMA quick_check(1)")).one()
        return "" if found == "ok" else found

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Has `callback` called after each committed write, on any thread; with a bus, after those of other
        processes too. It must not raise."""
        self._committed.append(callback)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """The result of `work` on one consistent snapshot, in a thread of the store's own."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_sync, work)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """The result of `work`, all of it committed, or the error it raised, none of it committed.

        A caller that is cancelled while it waits does not stop a transaction that has begun.
        """
        future: Future[T] = Future()
        self._waiting.append((work, future))
        self._writer.submit(self._write_waiting)
        return await asyncio.wrap_future(future)

    def read_sync(self, work: Callable[[Transaction], T]) -> T:
        """As `read`, on the calling thread."""
        with self._read_engine.begin() as connection:
            return work(Transaction(connection))

    def write_sync(self, work: Callable[[Transaction], T]) -> T:
        """As `write`, on the calling thread."""
        with self._write_engine.begin() as connection:
            result = work(Transaction(connection))
        self._committed_here()
        return result

    def _write_waiting(self) -> None:
        """Commits what waits, at once: to flush a commit to the disk takes longer than most transactions."""
        together = self._next(TOGETHER)
        if not together:
            return  # an earlier call has done it
        done: list[tuple[Future[Any], Any, Exception | None]] = []
        patient = True
        try:
            with self._write_engine.begin() as connection:
                for work, future in together:
                    done.append((future, *_apart(connection, work)))
                    if patient and _locked(done[-1][2]):  # the others have waited with it
                        patient = False
                        connection.execute(text("SET LOCAL lock_timeout = 1"))
                        together += self._next(sys.maxsize)
        except Exception as error:  # of the database itself: nothing has been committed
            if not done:  # it is locked, or away: nobody waits for it longer than clients wait for an answer
                together += self._next(sys.maxsize)
            done = [(future, None, error) for _, future in together]
        if any(problem is None for _, _, problem in done):
            self._committed_here()
        for future, result, problem in done:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

    def _next(self, many: int) -> list[tuple[Callable[[Transaction], Any], Future[Any]]]:
        """Of those that wait."""
        taken: list[tuple[Callable[[Transaction], Any], Future[Any]]] = []
        while self._waiting and len(taken) < many:
            work, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((work, future))
        return taken

    def explained(self, error: BaseException | None) -> BaseException | None:
        """What may be told of an error: DiskFull where the database has no room, Unavailable where it is
        locked or away; else the error itself."""
        if not isinstance(error, DBAPIError):
            return error
        if _code(error) in (SQLITE_FULL, "53100"):
            return DiskFull(
                "There is no room on the disk of the service's database.",
                "Ask the operators for space, then try again: nothing has been changed.",
            )
        locked = _locked(error)
        gone = isinstance(error, OperationalError) or _code(error) == STALLED_CODE
        away = self._read_engine.dialect.name == "postgresql" and gone
        if locked or away or error.connection_invalidated:
            return Unavailable(
                f"The service's database {'is locked' if locked else 'does not answer'}.",
                "Try again in a minute; if it stays so, tell the facility's operators.",
            )
        return error

    def _committed_here(self) -> None:
        self._tell()
        if self._bus is not None:
            self._bus.commit()

    def _tell(self) -> None:
        for callback in self._committed:
            callback()

    def close(self) -> None:
        """Waits for the transactions under way, and closes all connections."""
        self._readers.shutdown()
        self._writer.shutdown()
        self._read_engine.dispose()
        self._write_engine.dispose()


def _upgrade(connection: Connection, revision: str) -> None:
    import alembic.command  # 12 MB, which processes that find the tables there can do without
    import alembic.config
    import alembic.util

    config = alembic.config.Config()
    config.set_main_option("script_location", "beamhub.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        alembic.command.upgrade(config, revision)
    except alembic.util.CommandError as error:
        raise BeamhubError(
            f"The database cannot be brought to this version of beamhub: {error}.",
            "Install the version of beamhub that has used it last, or a newer one.",
        ) from error


def _apart(connection: Connection, work: Callable[[Transaction], T]) -> tuple[T | None, Exception | None]:
    """What one of several in a transaction comes to; if it fails, it leaves nothing behind."""
    connection.exec_driver_sql("SAVEPOINT one")  # begin_nested() takes three times as long
    try:
        result = work(Transaction(connection))
    except Exception as error:
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT one")
        return None, error
    connection.exec_driver_sql("RELEASE SAVEPOINT one")
    return result, None


def _locked(error: BaseException | None) -> bool:
    """Whether the database could not do it as others have locked it, or what it is about."""
    if not isinstance(error, DBAPIError):
        return False
    code = _code(error)
    return code & 0xFF == SQLITE_BUSY if isinstance(code, int) else code == LOCK_NOT_AVAILABLE


def _code(error: DBAPIError) -> int | str:
    """SQLite's number or PostgreSQL's five characters for what went wrong; "" if it is neither."""
    found: int | str | None = getattr(error.orig, "sqlite_errorcode", getattr(error.orig, "sqlstate", None))
    return found or ""


def _engine(url: str, **options: Any) -> Engine:
    return create_engine(url, json_deserializer=_json, **options)


def _json(text: str) -> Any:
    """Half of what a long list takes is reading JSON, which pydantic's reader does in a third of the time."""
    try:
        return from_json(text)
    except ValueError:  # it takes no text that is not Unicode ("\ud800")
        return json.loads(text)


def _sqlite(url: str, begin: str, *pragmas: str) -> Engine:
    """synchronous=FULL: a commit is on disk when it returns, which WAL's usual NORMAL does not promise."""
    engine = _engine(url, connect_args={"timeout": BUSY_TIMEOUT})
    setup = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON", *pragmas)

    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        for pragma in setup:
            connection.execute(pragma)
        connection.create_function("python_upper", 1, str.upper, deterministic=True)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _postgresql(url: str, **options: Any) -> Engine:
    """Connections that the server has ended are noticed, and made anew."""
    reach = {"connect_timeout": CONNECT_TIMEOUT}
    engine = _engine(url, pool_pre_ping=True, connect_args=reach, **options)

    def connect(connection: Any, _record: Any) -> None:
        connection.execute(f"SET lock_timeout = {round(BUSY_TIMEOUT * 1000)}")
        connection.commit()

    event.listen(engine, "connect", connect)
    return engine


def _read_only(connection: Connection) -> None:
    connection.execute(text("SET TRANSACTION READ ONLY"))


def _not_for_ever(connection: Any, _record: Any) -> None:
    connection.execute(f"SET idle_in_transaction_session_timeout = {round(STALLED * 1000)}")
    connection.commit()


def _one_writer(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITERS_LOCK})
