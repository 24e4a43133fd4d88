"""Backups: what is restored, to whatever kind of database, is what was saved."""

from __future__ import annotations

import fcntl
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from beamhub.cli import main
from beamhub.credits import grant, hold
from beamhub.errors import BeamhubError, Conflict, Invalid
from beamhub.events import emit
from beamhub.schemas import InstrumentCreate, Job, LicenceCreate, Role
from beamhub.store import Store, Transaction, _upgrade, backup
from beamhub.store.tables import metadata
from click.testing import CliRunner
from sqlalchemy import text

from tests.records import job

NAMES = ("Lysozyme – μ-focus “ß”", "new\nline")


def fill(tx: Transaction) -> int:
    """Something of everything: texts, JSON with and without null, times, who refers to whom."""
    tx.instruments.create(InstrumentCreate(id="sim-mx", title=NAMES[0], staff=["sam"]))
    experiment = tx.experiments.create("sim-mx", NAMES[0], "ada")
    tx.members.add(experiment, "ada", Role.PI, "sam")
    tx.licences.create(LicenceCreate(id="lab", title="Lab", kind="lab", instruments=["sim-mx"]))
    grant(tx, "lab", 10**12, actor="root", note=NAMES[1])
    parent = None
    for _ in range(3):
        parent = held(tx, experiment, parent).id
    for number in range(backup.ROWS + 10):
        emit(tx, "test.told", actor="ada", data={"number": number, "nothing": None, "ratio": 0.1})
    assert parent
    return parent


def held(tx: Transaction, experiment: str, parent: int | None) -> Job:
    made = job(tx, experiment, "lab", parent=parent, parameters={"nothing": None})
    assert hold(tx, made, actor="ada")
    return made


def go_on(tx: Transaction, last: int) -> Job:
    found = tx.jobs.get(last)
    assert found
    assert found.parent == last - 1
    return held(tx, found.experiment, last)


@pytest.fixture(params=["sqlite", "postgresql"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A database without tables."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    store = Store(url)
    yield store
    store.close()


def test_a_restored_database_is_what_was_saved(store: Store, other: Store, tmp_path: Path) -> None:
    last = store.write_sync(fill)
    saved = store.save(tmp_path / "first.backup")
    assert set(saved.tables) == set(metadata.tables)
    assert saved.tables["events"].rows >= backup.ROWS + 10
    assert (tmp_path / "first.backup").stat().st_mode & 0o777 == 0o600
    other.restore(tmp_path / "first.backup")
    assert other.migrated()
    assert other.save(tmp_path / "second.backup").tables == saved.tables
    for one in (store, other):  # and life goes on
        assert one.write_sync(lambda tx: go_on(tx, last)).id == last + 1
    assert other.save(tmp_path / "third.backup").tables["jobs"].rows == 4


def test_a_used_database_is_only_replaced_on_demand(store: Store, tmp_path: Path) -> None:
    store.write_sync(fill)
    saved = store.save(tmp_path / "full.backup")
    with pytest.raises(Conflict, match="already"):
        store.save(tmp_path / "full.backup")
    store.write_sync(lambda tx: emit(tx, "test.later", actor="ada"))
    with pytest.raises(Conflict, match="has been used"):
        store.restore(tmp_path / "full.backup")
    assert store.read_sync(lambda tx: tx.events.head()) == saved.tables["events"].rows + 1
    store.restore(tmp_path / "full.backup", replace=True)
    assert store.save(tmp_path / "again.backup").tables == saved.tables


def test_a_damaged_backup_changes_nothing(store: Store, tmp_path: Path) -> None:
    store.write_sync(fill)
    good, bad = tmp_path / "good.backup", tmp_path / "bad.backup"
    saved = store.save(good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"test.told", b"test.lies", 1))
    whole = good.read_bytes()
    cut, no_zip = tmp_path / "cut.backup", tmp_path / "text.backup"
    cut.write_bytes(whole[: len(whole) // 2])
    no_zip.write_text("no backup")
    for path in (bad, cut, no_zip, tmp_path / "missing.backup"):
        with pytest.raises(Invalid):
            store.restore(path, replace=True)
    assert store.save(tmp_path / "after.backup").tables == saved.tables


def test_a_backup_of_an_older_version_is_migrated(other: Store, tmp_path: Path) -> None:
    path = tmp_path / "old.backup"
    with other._write_engine.begin() as connection:
        _upgrade(connection, "0007")
        connection.execute(
            text(
                "INSERT INTO licences (id, title, kind, instruments, granted, charged, held, valid_from) "
                "VALUES ('lab', 'Lab', 'lab', '[]', 100, 40, 0, '2026-01-01 00:00:00')"
            )
        )
    assert other.save(path).revision == "0007"
    other.restore(path, replace=True)
    assert other.migrated()
    licence = other.read_sync(lambda tx: tx.licences.get("lab"))
    assert licence
    assert licence.available == 60
    (part,) = other.read_sync(lambda tx: tx.grants.list("lab", after=None, limit=9)).items
    assert (part.cpu_seconds, part.left, part.counts) == (100, 60, True)


def test_a_backup_of_a_newer_version_is_refused(store: Store, tmp_path: Path) -> None:
    with store._write_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    store.save(tmp_path / "new.backup")
    with pytest.raises(BeamhubError, match="newer"):
        store.restore(tmp_path / "new.backup", replace=True)


def test_the_commands(tmp_path: Path) -> None:
    state, file = tmp_path / "state", str(tmp_path / "db.backup")
    state.mkdir()
    store = Store(f"sqlite:///{state / 'beamhub.sqlite'}")
    store.migrate()
    store.write_sync(fill)
    store.close()

    def run(*arguments: str) -> tuple[int, str]:
        environment = {"BEAMHUB_STATE_DIR": "", "BEAMHUB_DATABASE_URL": ""}
        result = CliRunner().invoke(main, arguments, env=environment)
        return result.exit_code, result.output

    code, said = run("backup", file, "--state", str(state))
    assert (code, "all the same" in said) == (0, True)
    assert run("restore", file, "--state", str(tmp_path / "empty"))[0] == 0
    code, said = run("restore", file, "--state", str(state))
    assert (code, "has been used" in said) == (1, True)
    with (state / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = run("restore", file, "--state", str(state), "--replace")
        assert (code, "A service runs" in said) == (1, True)
    assert run("restore", file, "--state", str(state), "--replace")[0] == 0
    assert "Say which database" in run("backup", file)[1]
    assert "There is no database" in run("backup", f"{file}2", "--state", str(tmp_path / "nowhere"))[1]


def test_the_commands_with_postgresql(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/operator.md shows them: without a folder, and none is made."""
    monkeypatch.chdir(tmp_path)
    saved, file = Store(f"sqlite:///{tmp_path}/saved.sqlite"), str(tmp_path / "a.backup")
    saved.migrate()
    saved.save(tmp_path / "a.backup")
    saved.close()
    before = set(tmp_path.iterdir())
    result = CliRunner().invoke(main, ["restore", file, "--database", postgresql_url])
    assert (result.exit_code, set(tmp_path.iterdir())) == (0, before), result.output
    gone = f"postgresql+psycopg://beamhub:hush@/beamhub?host={tmp_path}"
    for command in (["restore", file], ["backup", str(tmp_path / "b.backup")]):
        result = CliRunner().invoke(main, [*command, "--database", gone])
        assert result.exit_code == 1
        assert result.output.startswith("Error: PostgreSQL can't be read")
        assert "hush" not in result.output
    assert set(tmp_path.iterdir()) == before
