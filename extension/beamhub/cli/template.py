"""`beamhub template`: template notebooks that jobs are made from."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected

if TYPE_CHECKING:
    from beamhub.client import Client


@click.group()
def template() -> None:
    """Template notebooks that jobs are made from."""


@template.command("list")
@connected
def template_list(client: Client) -> Table:
    """The templates of this facility."""
    columns: Columns = {
        "name": "name",
        "title": "title",
        "technique": "technique",
        "profile": "profile",
        "missing here": "missing",
    }
    return Table(client.templates(), columns, "No templates.")


@template.command("show")
@click.argument("name")
@connected
def template_show(client: Client, name: str) -> Any:
    """One template, with its parameters."""
    return client.template(name)


@template.command("check")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def template_check(notebook: Path, as_json: bool) -> None:
    """Check a NOTEBOOK on this machine: may it be a template?"""
    from beamhub.templates import check

    complaints = list(check(notebook))
    if as_json:
        click.echo(jsonlib.dumps(complaints, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(complaints) or f"{notebook} may be a template.")
    if complaints:
        sys.exit(1)
