"""What `beamhub doctor` says of the database, its backup and the cluster."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from beamhub import checkup
from beamhub.cli import main
from beamhub.store import Store
from click.testing import CliRunner
from sqlalchemy import create_engine, text


def set_revision(url: str, revision: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :to"), {"to": revision})
    engine.dispose()


def test_a_database_of_either_kind(store: Store) -> None:
    url = store._write_engine.url.render_as_string(hide_password=False)
    found = checkup.database(url)
    assert found.fine
    assert "reachable and whole" in found.message
    set_revision(url, "0001")
    assert "the next start brings them to" in checkup.database(url).message
    set_revision(url, "9999")
    newer = checkup.database(url)
    assert not newer.fine
    assert "install the version of beamhub that has used it last" in newer.message


def test_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    found = checkup.database(f"sqlite:///{tmp_path / 'beamhub.sqlite'}")
    assert found.fine
    assert not list(tmp_path.iterdir())  # it isn't made by looking


def test_a_damaged_database(tmp_path: Path) -> None:
    path = tmp_path / "beamhub.sqlite"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    damaged = checkup.database(f"sqlite:///{path}")
    assert not damaged.fine
    assert "beamhub restore" in damaged.message
    path.write_bytes(b"not a database" * 1000)
    strange = checkup.database(f"sqlite:///{path}")
    assert not strange.fine
    assert "file is not a database" in strange.message


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    found = checkup.database(f"postgresql+psycopg://beamhub:secret@/beamhub?host={tmp_path}")
    assert not found.fine
    assert "start it, or correct database_url (BEAMHUB_DATABASE_URL)" in found.message
    assert "secret" not in found.message


def test_the_last_backup_is_remembered_by_its_age(tmp_path: Path) -> None:
    path = tmp_path / "beamhub.sqlite"
    store = Store(f"sqlite:///{path}")
    store.migrate()
    store.close()
    assert not checkup.backup(tmp_path).fine
    saved = tmp_path / "saved"
    done = CliRunner().invoke(main, ["backup", str(saved), f"--database=sqlite:///{path}"])
    assert done.exit_code == 0, done.output
    fresh = checkup.backup(tmp_path, tmp_path / "service")
    assert (fresh.fine, fresh.message) == (True, f"{saved} is 0 hours old")
    checkup.note_backup(tmp_path, saved, datetime.now(UTC) - timedelta(days=8))
    old = checkup.backup(tmp_path)
    assert not old.fine
    assert "8 days old" in old.message
    saved.unlink()
    assert "has been moved" in checkup.backup(tmp_path).message


def test_a_cluster_is_looked_at_where_one_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(checkup, "SLURM_CONF", tmp_path / "slurm.conf")
    assert checkup.slurm_conf({}) is None
    assert checkup.slurm_conf(json.loads('{"interval": 1}')) == tmp_path / "slurm.conf"
    assert checkup.slurm_conf({"conf": "/opt/slurm.conf"}) == Path("/opt/slurm.conf")
    there_is_none = checkup.slurm(tmp_path / "slurm.conf")
    assert not there_is_none.fine
    assert "copy the cluster's" in there_is_none.message
    (tmp_path / "slurm.conf").write_text(
        f"AuthType=auth/munge\nAuthInfo=socket={tmp_path / 'munge.socket'}\n"
    )
    silent = checkup.munge(tmp_path / "slurm.conf")
    assert not silent.fine
    assert "systemctl start munge" in silent.message
