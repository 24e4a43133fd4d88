"""Fixtures of databases: a real PostgreSQL server of the test run, and empty stores on it and on SQLite."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from beamhub.store import Store


DATABASE = "BEAMHUB_TEST_DATABASE"  # what tests run on that do not run on both anyway


class PostgreSQL:
    """A server that listens on a socket in a temporary folder only; its data go with it, and nothing has to
    be durable."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.url = f"postgresql+psycopg://beamhub@/{{}}?host={folder}"  # {}: the name of a database
        as_user: list[str | Path] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        data = folder / "data"
        initdb = [*as_user, programs / "initdb", "-D", data]
        _run([*initdb, "-U", "beamhub", "-A", "trust", "-E", "UTF8", "--no-sync"])
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c synchronous_commit=off"
        self._control = [*as_user, programs / "pg_ctl", "-D", data, "-s", "-w"]
        self._start = [*self._control, "-l", folder / "log", "-o", settings, "start"]

    def start(self) -> None:
        _run(self._start)

    def stop(self) -> None:
        """At once, as a crash would."""
        _run([*self._control, "-m", "immediate", "stop"])


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgreSQL]:
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="beamhub-postgresql-") as name:
        server = PostgreSQL(Path(name), programs)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server for all tests, which none stops: its URL, with {} where the name of a database
    goes."""
    with running_postgresql() as server:
        yield server.url


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """SQLAlchemy URL of a PostgreSQL database without tables."""
    with new_database(postgresql_server, "template1") as url:
        yield url


@pytest.fixture(scope="session")
def _with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the tables of this version and nothing in them: copying it is quicker than
    migrating."""
    path = tmp_path_factory.mktemp("store") / "beamhub.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def _postgresql_with_tables(postgresql_server: str) -> Iterator[str]:
    """The name of a PostgreSQL database with the tables of this version and nothing in them."""
    with new_database(postgresql_server, "template1") as url:
        _migrate(url)
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store; a test that uses it runs once on SQLite and once on PostgreSQL."""
    from beamhub.store import Store

    with _with_tables_in(request, tmp_path, request.param) as url:
        store = Store(url)
        yield store
        store.close()


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the tables of this version and nothing in them, of the kind that the run is
    for: SQLite, or with BEAMHUB_TEST_DATABASE=postgresql PostgreSQL."""
    with _with_tables_in(request, tmp_path, os.environ.get(DATABASE, "sqlite")) as url:
        yield url


@contextlib.contextmanager
def run_database(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The same without tables, for any scope; a SQLite file lies in `folder`."""
    if os.environ.get(DATABASE, "sqlite") == "postgresql":
        with new_database(request.getfixturevalue("postgresql_server"), "template1") as url:
            yield url
    else:
        yield f"sqlite:///{folder / 'beamhub.db'}"


@contextlib.contextmanager
def _with_tables_in(request: pytest.FixtureRequest, folder: Path, kind: str) -> Iterator[str]:
    """A copy of the database that has been migrated once: migrating takes longer than most tests."""
    if kind == "postgresql":
        tables = request.getfixturevalue("_postgresql_with_tables")
        with new_database(request.getfixturevalue("postgresql_server"), tables) as url:
            yield url
    else:
        yield f"sqlite:///{shutil.copy(request.getfixturevalue('_with_tables'), folder / 'beamhub.db')}"


def _migrate(url: str) -> None:
    from beamhub.store import Store

    store = Store(url)
    store.migrate()
    store.close()


@contextlib.contextmanager
def new_database(server: str, template: str) -> Iterator[str]:
    """The URL of a new database that is a copy of `template`; it goes when the context ends."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    admin = server.format("postgres").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    yield server.format(name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _postgresql_programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).parent if on_path else None


def _run(command: Sequence[str | Path]) -> None:
    # the folder that the tests run in may be closed to PostgreSQL's user
    subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
