"""`beamhub licence`: licences: allowances of CPU-hours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected, hours

if TYPE_CHECKING:
    from beamhub.client import Client


@click.group()
def licence() -> None:
    """Licences: allowances of CPU-hours."""


_LICENCE_COLUMNS: Columns = {
    "id": "id",
    "title": "title",
    "kind": "kind",
    "for": lambda x: x.owner or x.instruments,
    "available, CPU-h": lambda x: hours(x.available),
    "held": lambda x: hours(x.held),
    "charged": lambda x: hours(x.charged),
    "granted": lambda x: hours(x.granted),
    "valid until": "valid_until",
}


@licence.command("list")
@connected
def licence_list(client: Client) -> Table:
    """The licences that you may see."""
    return Table(client.licences(), _LICENCE_COLUMNS, "No licence that you may see.")


@licence.command("sponsors")
@click.argument("experiment")
@connected
def licence_sponsors(client: Client, experiment: str) -> Table:
    """The licences that may pay for your jobs in EXPERIMENT."""
    return Table(client.sponsors(experiment), _LICENCE_COLUMNS, "No licence may pay for your jobs here.")


@licence.command("show")
@click.argument("licence")
@connected
def licence_show(client: Client, licence: str) -> Any:
    """One licence."""
    return client.licence(licence)


@licence.command("create")
@click.argument("id")
@click.argument("title")
@click.option("--owner", default=None, help="Makes it this user's own licence.")
@click.option("--instrument", "instruments", multiple=True, help="Makes it a lab licence; may be repeated.")
@click.option("--cpu-hours", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--valid-until", type=click.DateTime(), default=None, help="UTC")
@connected
def licence_create(
    client: Client,
    id: str,  # noqa: A002
    title: str,
    owner: str | None,
    instruments: tuple[str, ...],
    cpu_hours: float,
    valid_until: Any,
) -> Any:
    """Add a licence (operators of the facility)."""
    from datetime import UTC

    from beamhub.schemas import LicenceCreate

    body = LicenceCreate(
        id=id,
        title=title,
        kind="user" if owner else "lab",
        owner=owner,
        instruments=list(instruments),
        cpu_hours=cpu_hours,
        valid_until=valid_until.replace(tzinfo=UTC) if valid_until else None,
    )
    return client.create_licence(body)


@licence.command("grant")
@click.argument("licence")
@click.argument("cpu_hours", type=click.FloatRange(0, min_open=True))
@click.option("--note", default="")
@connected
def licence_grant(client: Client, licence: str, cpu_hours: float, note: str) -> Any:
    """Add CPU_HOURS to a licence (operators of the facility)."""
    return client.grant(licence, cpu_hours, note)


@licence.command("ledger")
@click.argument("licence")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@connected
def licence_ledger(client: Client, licence: str, limit: int) -> Table:
    """What was granted, held, charged and released, newest first."""
    columns: Columns = {
        "time": "time",
        "kind": "kind",
        "CPU-h": lambda line: f"{line.cpu_seconds / 3600:.4f}",
        "job": "job",
        "by": "actor",
        "note": "note",
    }
    return Table(client.ledger(licence, limit=limit), columns, "Nothing yet.")
