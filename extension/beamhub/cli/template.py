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
@click.option("--experiment", default=None, help="Also those that its members keep, and their notebooks.")
@connected
def template_list(client: Client, experiment: str | None) -> Table:
    """The templates of this facility."""
    columns: Columns = {
        "name": lambda t: t.notebook or t.name,
        "title": "title",
        "technique": "technique",
        "works on": "inputs",
        "profile": "profile",
        "from": "source",
        "missing here": "missing",
    }
    found = client.templates(experiment)
    if experiment is not None:
        found += client.notebooks(experiment)
    return Table(found, columns, "No templates.")


@template.command("show")
@click.argument("name")
@click.option("--experiment", default=None, help="One that its members keep.")
@connected
def template_show(client: Client, name: str, experiment: str | None) -> Any:
    """One template, with its parameters."""
    return client.template(name, experiment)


@template.command("check")
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def template_check(notebook: Path, as_json: bool) -> None:
    """Check a NOTEBOOK on this machine: may it be a template? What is only advice does not fail."""
    from beamhub.templates import advice, check

    faults = check(notebook)
    hints = [] if faults else advice(notebook)
    if as_json:
        click.echo(jsonlib.dumps({"faults": faults, "advice": hints}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(faults) or f"{notebook} may be a template.")
        for hint in hints:
            click.echo(f"Advice: {hint}")
    if faults:
        sys.exit(1)
