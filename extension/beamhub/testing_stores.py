"""Fixtures of databases: a real PostgreSQL server of the test run, and empty stores on it and on SQLite."""

from __future__ import annotations

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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """A PostgreSQL server: its URL, with {} where the name of a database goes.

    It listens on a socket in a temporary folder only, and its data go with it: nothing has to be durable.
    """
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="beamhub-postgresql-") as name:
        folder = Path(name)
        as_user: list[str | Path] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            as_user = ["runuser", "-u", "postgres", "--"]
            shutil.chown(folder, "postgres")
        data = folder / "data"
        initdb = [*as_user, programs / "initdb", "-D", data]
        _run([*initdb, "-U", "beamhub", "-A", "trust", "-E", "UTF8", "--no-sync"])
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off -c synchronous_commit=off"
        control = [*as_user, programs / "pg_ctl", "-D", data, "-s", "-w"]
        _run([*control, "-l", folder / "log", "-o", settings, "start"])
        try:
            yield f"postgresql+psycopg://beamhub@/{{}}?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """SQLAlchemy URL of an empty PostgreSQL database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    admin = postgresql_server.format("postgres").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield postgresql_server.format(name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store; a test that uses it runs once on SQLite and once on PostgreSQL."""
    from beamhub.store import Store

    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'beamhub.db'}" if on_sqlite else request.getfixturevalue("postgresql_url")
    store = Store(url)
    store.migrate()
    yield store
    store.close()


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
