"""A database as one file that does not depend on its kind: what was saved from SQLite can be restored to
PostgreSQL, and the other way round.

The file is a ZIP archive: a `manifest.json`, and for each table one line of JSON per row. It belongs to one
revision of the tables: a newer beamhub restores it at that revision, and migrates it afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.types import NullType

from beamhub.errors import BeamhubError, Conflict, Invalid
from beamhub.schemas import BackupManifest, BackupTable

MANIFEST = "manifest.json"
REVISION = "alembic_version"  # the table that knows it
ROWS = 500  # inserted at once


def save(connection: Connection, path: Path) -> BackupManifest:
    """Writes all that the connection's snapshot has to a new file, and reads it back to be sure. Raises
    Conflict where there is a file already."""
    if path.exists():
        raise Conflict(f"There is a file {path} already.", "Choose another name.")
    part = path.with_name(f".{path.name}.part")
    try:
        # it holds digests of tokens and everybody's names
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            manifest = _save(connection, file)
            file.flush()
            os.fsync(file.fileno())
        check(part)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return manifest


def _save(connection: Connection, file: IO[bytes]) -> BackupManifest:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        tables = {}
        for table in _tables(connection):
            with archive.open(_member(table.name), "w", force_zip64=True) as member:
                tables[table.name] = _digest(_lines(connection, table), member)
        manifest = BackupManifest(
            version=version("beamhub"),
            revision=_revision(connection),
            created=datetime.now(UTC),
            tables=tables,
        )
        archive.writestr(MANIFEST, manifest.model_dump_json(indent=2))
    return manifest


def check(path: Path) -> BackupManifest:
    """What a backup holds. Raises Invalid if the file is none, or not as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = BackupManifest.model_validate_json(archive.read(MANIFEST))
            for name, table in manifest.tables.items():
                with archive.open(_member(name)) as member:
                    if _digest(member) != table:
                        raise Invalid(
                            f"The backup {path} is damaged: its table {name} is not what it was.",
                            "Use another backup.",
                        )
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise Invalid(f"{path} is no backup that can be read: {error}.", "Use another one.") from error
    return manifest


def used(connection: Connection) -> bool:
    """Whether there is anything in the database."""
    return any(connection.scalar(select(func.count()).select_from(table)) for table in _tables(connection))


def clear(connection: Connection) -> None:
    """Removes all tables and what is in them."""
    metadata = MetaData()
    metadata.reflect(connection)
    metadata.drop_all(connection)


def fill(connection: Connection, path: Path, manifest: BackupManifest) -> None:
    """Puts what the backup holds into empty tables of its revision, and compares. Raises BeamhubError where
    they differ."""
    with zipfile.ZipFile(path) as archive:
        for table in _tables(connection):
            with archive.open(_member(table.name)) as member:
                _insert(connection, table, member)
            if _digest(_lines(connection, table)) != manifest.tables[table.name]:
                raise BeamhubError(
                    f"After the restore the table {table.name} was not what the backup holds: nothing has "
                    "been changed.",
                    "Keep the backup, and tell the developers of beamhub.",
                )


def _insert(connection: Connection, table: Table, lines: IO[bytes]) -> None:
    statement = _raw(table).insert()
    moments = [column.name for column in table.columns if isinstance(column.type, DateTime)]
    rows: list[dict[str, Any]] = []
    for line in lines:
        row = json.loads(line)
        for name in moments:
            if row[name] is not None:
                row[name] = datetime.fromisoformat(row[name])
        rows.append(row)
        if len(rows) == ROWS:
            connection.execute(statement, rows)
            rows = []
    if rows:
        connection.execute(statement, rows)
    if connection.dialect.name == "postgresql" and (counter := table.autoincrement_column) is not None:
        # keys go on behind those that were restored
        last = connection.scalar(select(func.max(counter)))
        sequence = func.pg_get_serial_sequence(table.name, counter.name)
        if connection.scalar(select(sequence)) is not None:
            connection.execute(select(func.setval(sequence, last or 1, last is not None)))


def _raw(table: Table) -> Table:
    """The table with JSON columns as the text that they are: null in JSON is not NULL."""
    raw = table.to_metadata(MetaData())
    for column in raw.columns:
        if isinstance(column.type, JSON):
            column.type = NullType()
    return raw


def _tables(connection: Connection) -> list[Table]:
    """As they are in the database, those that others refer to first."""
    metadata = MetaData()
    metadata.reflect(connection)
    return [table for table in metadata.sorted_tables if table.name != REVISION]


def _lines(connection: Connection, table: Table) -> Iterator[bytes]:
    columns = [
        cast(column, Text).label(column.name) if isinstance(column.type, JSON) else column
        for column in table.columns
    ]
    query: Select[Any] = select(*columns).order_by(*table.primary_key.columns)
    for row in connection.execute(query.execution_options(yield_per=ROWS)).mappings():
        yield json.dumps({name: _plain(value) for name, value in row.items()}).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):  # SQLite's are UTC and do not say so
        moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return moment.isoformat()
    return value


def _digest(lines: Any, copy: IO[bytes] | None = None) -> BackupTable:
    digest, rows = hashlib.sha256(), 0
    for line in lines:
        digest.update(line)
        rows += 1
        if copy is not None:
            copy.write(line)
    return BackupTable(rows=rows, sha256=digest.hexdigest())


def _revision(connection: Connection) -> str:
    if not inspect(connection).has_table(REVISION):
        raise Conflict("The database has no tables: there is nothing to save.", "Check which one it is.")
    return str(connection.scalar(text(f"SELECT version_num FROM {REVISION}")))  # noqa: S608


def _member(table: str) -> str:
    return f"{table}.jsonl"
