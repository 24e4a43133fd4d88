"""`beamhub instrument`: beamlines and microscopes: their state, active experiment, agent token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected

if TYPE_CHECKING:
    from beamhub.client import Client


@click.group()
def instrument() -> None:
    """Beamlines and microscopes: their state, active experiment, agent token."""


@instrument.command("list")
@connected
def instrument_list(client: Client) -> Table:
    """The instruments that you may see."""
    columns: Columns = {
        "id": "id",
        "title": "title",
        "active experiment": "active_experiment",
        "automation": lambda i: "on" if i.automation else "paused",
        "agent": lambda i: "connected" if i.agent and i.agent.connected else "not connected",
    }
    return Table(client.instruments(), columns, "No instrument that you may see.")


@instrument.command("show")
@click.argument("instrument")
@connected
def instrument_show(client: Client, instrument: str) -> Any:
    """All about one instrument."""
    return client.instrument(instrument)


@instrument.command("create")
@click.argument("id")
@click.argument("title")
@click.option("--technique", default="macromolecular crystallography", show_default=True)
@click.option("--staff", multiple=True, help="A user who operates it; may be repeated.")
@connected
def instrument_create(client: Client, id: str, title: str, technique: str, staff: tuple[str, ...]) -> Any:  # noqa: A002
    """Add an instrument (operators of the facility)."""
    return client.create_instrument(id, title, technique=technique, staff=list(staff))


@instrument.command("activate")
@click.argument("instrument")
@click.argument("experiment", required=False)
@connected
def instrument_activate(client: Client, instrument: str, experiment: str | None) -> Any:
    """Make EXPERIMENT the active one; without EXPERIMENT, none is."""
    return client.activate(instrument, experiment)


@instrument.command("pause")
@click.argument("instrument")
@connected
def instrument_pause(client: Client, instrument: str) -> Any:
    """Stop trigger rules from starting jobs."""
    return _automation(client, instrument, on=False)


@instrument.command("resume")
@click.argument("instrument")
@connected
def instrument_resume(client: Client, instrument: str) -> Any:
    """Let trigger rules start jobs again."""
    return _automation(client, instrument, on=True)


def _automation(client: Client, instrument: str, *, on: bool) -> Any:
    from beamhub.schemas import InstrumentChange

    return client.change_instrument(instrument, InstrumentChange(automation=on))


@instrument.command("staff")
@click.argument("instrument")
@click.argument("users", nargs=-1)
@connected
def instrument_staff(client: Client, instrument: str, users: tuple[str, ...]) -> Any:
    """Make USERS the instrument's staff, in place of those it has."""
    from beamhub.schemas import InstrumentChange

    return client.change_instrument(instrument, InstrumentChange(staff=list(users)))


@instrument.command("token")
@click.argument("instrument")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, for you alone to read, and show nothing of it.",
)
@connected
def instrument_token(client: Client, instrument: str, save: Path | None) -> Any:
    """A new token for the agent. It is shown once; older ones stop working."""
    if save is None:
        return client.new_instrument_token(instrument)
    # opened before: a token that could not be kept would be lost, and the older ones with it
    with save.open("a") as file:
        save.chmod(0o600)
        token = client.new_instrument_token(instrument).token
        file.truncate(0)
        file.write(f"{token}\n")
    return f"The agent's token is in {save}; older ones stop working."
