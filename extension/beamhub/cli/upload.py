"""`beamhub upload`: uploads: send files into an experiment, see what is on its way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected, size, why

if TYPE_CHECKING:
    from beamhub.client import Client


def _of_some_files(function: Callable[..., Any]) -> Callable[..., Any]:
    """For commands about files that an instrument's agent has not sent."""
    function = click.option("--pattern", help="Files whose name fits this glob.")(function)
    return click.argument("instrument")(click.argument("names", nargs=-1)(function))


@click.group()
def upload() -> None:
    """Uploads: send files into an experiment, see what is on its way."""


@upload.command("send")
@click.argument("experiment")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default=None, help="Its name there, which may have folders. Default: its own.")
@connected
def upload_send(client: Client, experiment: str, file: Path, name: str | None) -> Any:
    """Send FILE into the experiment's folder shared/. Interrupted? Call it again."""
    if not sys.stderr.isatty():
        return client.upload(file, experiment, name=name)
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(escape(file.name), total=file.stat().st_size)
        return client.upload(
            file,
            experiment,
            name=name,
            progress=lambda sent, _: bar.update(task, completed=sent),
        )


@upload.command("send-small")
@click.argument("experiment")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@connected
def upload_send_small(client: Client, experiment: str, files: Sequence[Path]) -> Table:
    """Send many small FILES (of up to 1 MiB) into the experiment's folder shared/, together."""
    columns: Columns = {
        "path": lambda told: told.upload.path if told.upload else "",
        "state": lambda told: told.upload.state if told.upload else "refused",
        "why": lambda told: told.problem.detail if told.problem else "",
    }
    return Table(client.upload_together(files, experiment), columns, "No files.")


@upload.command("list")
@click.argument("experiment")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@connected
def upload_list(client: Client, experiment: str, limit: int) -> Table:
    """An experiment's uploads, newest first."""
    columns: Columns = {
        "id": "id",
        "path": "path",
        "state": lambda u: f"{u.state}: {u.error}" if u.error else u.state,
        "sent": lambda u: size(u.offset),
        "of": lambda u: size(u.size),
        "by": "created_by",
        "created": "created",
    }
    return Table(client.uploads(experiment, limit=limit), columns, "No uploads.")


@upload.command("cancel")
@click.argument("upload")
@connected
def upload_cancel(client: Client, upload: str) -> str:
    """Stop an upload that is on its way, and forget what has arrived of it."""
    client.cancel_upload(upload)
    return f"Upload {upload} is cancelled."


@upload.command("pause")
@click.argument("instrument")
@why
@connected
def upload_pause(client: Client, instrument: str, reason: str) -> str:
    """Let INSTRUMENT begin no upload; those on their way are finished (staff)."""
    client.pause_uploads(instrument, reason)
    return f"Uploads of {instrument} are paused."


@upload.command("resume")
@click.argument("instrument")
@connected
def upload_resume(client: Client, instrument: str) -> str:
    """Let INSTRUMENT begin uploads again (staff)."""
    client.resume_uploads(instrument)
    return f"Uploads of {instrument} go on."


@upload.command("retry")
@_of_some_files
@connected
def upload_retry(client: Client, instrument: str, names: tuple[str, ...], pattern: str | None) -> Any:
    """Have the agent send again what has failed: NAMES (below raw/), those of a pattern, or all (staff)."""
    return client.retry_uploads(instrument, names, pattern=pattern)


@upload.command("skip")
@_of_some_files
@why
@connected
def upload_skip(
    client: Client, instrument: str, names: tuple[str, ...], pattern: str | None, reason: str
) -> Any:
    """Have the agent leave out what has not arrived: NAMES (below raw/), those of a pattern (staff)."""
    return client.skip_uploads(instrument, names, pattern=pattern, reason=reason)


@upload.command("unskip")
@_of_some_files
@connected
def upload_unskip(client: Client, instrument: str, names: tuple[str, ...], pattern: str | None) -> Any:
    """Have the agent send after all what was to be skipped: NAMES, those of a pattern, or all (staff)."""
    return client.unskip_uploads(instrument, names, pattern=pattern)


@upload.command("unsent")
@click.argument("instrument")
@click.option("--state", type=click.Choice(["failed", "skipped"]))
@connected
def upload_unsent(client: Client, instrument: str, state: Any) -> Table:
    """What the agent of INSTRUMENT has not sent, and why (staff)."""
    columns: Columns = {"name": "name", "state": "state", "reason": "reason"}
    return Table(client.agent_files(instrument, state=state), columns, "All has been sent.")


@upload.command("quarantine")
@click.argument("instrument")
@connected
def upload_quarantine(client: Client, instrument: str) -> Table:
    """Files of INSTRUMENT that nobody gets because they are built to mislead their readers (staff)."""
    columns: Columns = {
        "upload": "id",
        "experiment": "experiment",
        "path": "path",
        "size": lambda u: size(u.size),
        "reason": "error",
    }
    return Table(client.quarantine(instrument), columns, "Nothing is in quarantine.")


@upload.command("release")
@click.argument("upload")
@why
@connected
def upload_release(client: Client, upload: str, reason: str) -> str:
    """Publish a quarantined file after all; no dataset is made of it (staff)."""
    return f"It is published as {client.release_upload(upload, reason).path}."


@upload.command("discard")
@click.argument("upload")
@why
@connected
def upload_discard(client: Client, upload: str, reason: str) -> str:
    """Delete a quarantined file; its upload stays on record (staff)."""
    return f"{client.discard_upload(upload, reason).path} is deleted."
