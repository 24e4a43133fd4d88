"""`beamhub doctor`: what works on this machine, what is missing, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from beamhub_hub.machine import findings
from beamhub_hub.site import Site


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="What people would open."
)
@click.option("--state", type=click.Path(path_type=Path), default=Path(".demo"), show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=None, envvar="BEAMHUB_DATA_DIR")
@click.option(
    "--database",
    default=None,
    envvar="BEAMHUB_DATABASE_URL",
    help="sqlite:////path or postgresql+psycopg://…  [env: BEAMHUB_DATABASE_URL; default: in --state]",
)
@click.option("--slurm-conf", type=click.Path(path_type=Path), default=None, envvar="SLURM_CONF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def doctor(
    port: int,
    state: Path,
    data: Path | None,
    database: str | None,
    slurm_conf: Path | None,
    *,
    as_json: bool,
) -> None:
    """Check this machine: what works, what is missing, and how the database, its backup, the disks and the
    cluster are.

    The exit code is 1 if something is missing that beamhub can't do without.
    """
    given = {"data": data, "database_url": database, "slurm": slurm_conf and {"conf": str(slurm_conf)}}
    site = _site(state).model_copy(update={name: value for name, value in given.items() if value})
    found = findings(site, port)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in found:
            verdict = (
                "[green]fine[/]"
                if finding.fine
                else "[red]missing[/]"
                if finding.needed
                else "[yellow]without[/]"
            )
            table.add_row(verdict, finding.name, finding.message)
        Console().print(table)
    sys.exit(any(finding.needed and not finding.fine for finding in found))


def _site(state: Path) -> Site:
    """What is kept in this folder, if a demo is; else what would be."""
    known = state / "site.json"
    if known.is_file():
        return Site.model_validate_json(known.read_bytes())
    return Site(state=state, data=state / "data")
