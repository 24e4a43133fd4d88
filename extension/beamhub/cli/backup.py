"""`beamhub backup` and `beamhub restore`: the service's database as one file. For operators, on the service's
machine; no service has to run."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from beamhub.schemas import BackupManifest


def _of_a_database(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tells the command which database is meant: as the service does, by its folders or its URL."""

    @click.option(
        "--database",
        envvar="BEAMHUB_DATABASE_URL",
        default=None,
        help="sqlite:////path or postgresql+psycopg://…  [env: BEAMHUB_DATABASE_URL; default: in --state]",
    )
    @click.option(
        "--state",
        envvar="BEAMHUB_STATE_DIR",
        type=click.Path(file_okay=False, path_type=Path),
        default=None,
        help="The service's own folder.  [env: BEAMHUB_STATE_DIR]",
    )
    @wraps(function)
    def command(database: str | None, state: Path | None, **options: Any) -> None:
        from sqlalchemy.exc import DBAPIError

        from beamhub import checkup
        from beamhub.errors import BeamhubError

        if state is None and database is None:
            raise click.UsageError("Say which database: --database, or --state (the service's own folder).")
        url = database or f"sqlite:///{state and state.absolute()}/beamhub.sqlite"
        beside = Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite") else None
        try:
            function(url, state or beside, **options)
        except BeamhubError as error:
            raise click.ClickException(str(error)) from error
        except DBAPIError as error:
            found = checkup.database(url)
            raise click.ClickException(str(error.orig) if found.fine else found.message) from error

    return command


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_of_a_database
def backup(url: str, state: Path | None, file: Path) -> None:
    """Save the service's database to a new FILE, as it is at one moment; the service may run meanwhile.

    Experiments' data and the other files in the service's folders are not in it.
    """
    from beamhub.checkup import note_backup
    from beamhub.store import Store

    _require(url)
    store = Store(url)
    try:
        manifest = store.save(file)
        if state is not None and state.is_dir():
            note_backup(state, file, manifest.created)
        _tell(manifest)
    finally:
        store.close()


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Also a database that has been used: what is in it is lost.")
@_of_a_database
def restore(url: str, state: Path | None, file: Path, replace: bool) -> None:
    """Make the service's database what the backup FILE holds. The service must not run.

    All of it or nothing is restored. The database may be of another kind than the one that was saved, and
    this beamhub newer.
    """
    with tempfile.TemporaryDirectory() as elsewhere:  # PostgreSQL's locks are its own: no folder is needed
        folder = state or Path(elsewhere)
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise click.ClickException(f"The folder {folder} can't be made ({error.strerror}).") from error
        asyncio.run(_restore(url, folder, file, replace))


async def _restore(url: str, state: Path, file: Path, replace: bool) -> None:
    from beamhub import checkup, duty
    from beamhub.errors import Conflict
    from beamhub.store import Store

    ours = duty.connect(url, state / "lock")
    try:
        if not await ours.take():
            found = await asyncio.to_thread(checkup.database, url)
            if not found.fine:
                raise click.ClickException(found.message)
            raise Conflict("A service runs on this database.", "Stop it first.")
        store = Store(url)
        try:
            _tell(await asyncio.to_thread(store.restore, file, replace=replace))
        finally:
            store.close()
    finally:
        await ours.give_up()


def _require(url: str) -> None:
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite") and not file.exists():
        raise click.ClickException(f"There is no database {file}.")


def _tell(manifest: BackupManifest) -> None:
    rows = sum(table.rows for table in manifest.tables.values())
    click.echo(
        f"{rows} rows of {len(manifest.tables)} tables, by beamhub {manifest.version} "
        f"(tables {manifest.revision}), of {manifest.created:%Y-%m-%d %H:%M:%S} UTC: compared, all the same."
    )
