"""`beamhub experiment`: beamtimes: their members, state and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beamhub.cli.output import Columns, Table, connected, files_table

if TYPE_CHECKING:
    from beamhub.client import Client


@click.group()
def experiment() -> None:
    """Beamtimes: their members, state and files."""


@experiment.command("list")
@click.option("--instrument", default=None)
@connected
def experiment_list(client: Client, instrument: str | None) -> Table:
    """The experiments that you belong to, newest first."""
    columns: Columns = {
        "id": "id",
        "title": "title",
        "state": lambda e: f"{e.state} (active)" if e.active else e.state,
        "pi": "pi",
        "you are": "role",
        "created": "created",
    }
    return Table(client.experiments(instrument=instrument), columns, "No experiment that you belong to.")


@experiment.command("show")
@click.argument("experiment")
@connected
def experiment_show(client: Client, experiment: str) -> Any:
    """All about one experiment."""
    return client.experiment(experiment)


@experiment.command("create")
@click.argument("instrument")
@click.argument("title")
@click.option("--pi", required=True, help="The principal investigator's user name.")
@connected
def experiment_create(client: Client, instrument: str, title: str, pi: str) -> Any:
    """Add an experiment (staff of the instrument)."""
    return client.create_experiment(instrument, title, pi)


@experiment.command("state")
@click.argument("experiment")
@click.argument("state", type=click.Choice(["planned", "running", "processing", "closed"]))
@click.option("--reason", "-r", default="", help="Why; it goes on record.")
@connected
def experiment_state(client: Client, experiment: str, state: str, reason: str) -> Any:
    """Move an experiment on."""
    from beamhub.schemas import ExperimentChange, ExperimentState

    return client.change_experiment(experiment, ExperimentChange(state=ExperimentState(state), reason=reason))


@experiment.command("quota")
@click.argument("experiment")
@click.argument("gigabytes", type=click.FloatRange(0), required=False)
@connected
def experiment_quota(client: Client, experiment: str, gigabytes: float | None) -> Any:
    """Let an experiment take up to GIGABYTES (10^9 bytes) of data; without them, as many as the disk holds
    (staff of the instrument)."""
    from beamhub.schemas import ExperimentChange

    quota = None if gigabytes is None else round(gigabytes * 1e9)
    return client.change_experiment(experiment, ExperimentChange(quota=quota))


@experiment.command("members")
@click.argument("experiment")
@connected
def experiment_members(client: Client, experiment: str) -> Table:
    """Who belongs to an experiment."""
    columns: Columns = {
        "user": "user",
        "role": "role",
        "added": "added",
        "by": "added_by",
    }
    return Table(client.members(experiment), columns, "No members.")


@experiment.command("add")
@click.argument("experiment")
@click.argument("user")
@click.option(
    "--role", type=click.Choice(["pi", "collaborator", "viewer"]), default="collaborator", show_default=True
)
@connected
def experiment_add(client: Client, experiment: str, user: str, role: str) -> Any:
    """Add USER to an experiment, or change their role."""
    from beamhub.schemas import Role

    roles = {"pi": Role.PI, "collaborator": Role.COLLABORATOR, "viewer": Role.VIEWER}
    return client.add_member(experiment, user, roles[role])  # type: ignore[arg-type]


@experiment.command("remove")
@click.argument("experiment")
@click.argument("user")
@connected
def experiment_remove(client: Client, experiment: str, user: str) -> str:
    """Remove USER from an experiment."""
    client.remove_member(experiment, user)
    return f"{user} no longer belongs to {experiment}."


@experiment.command("datasets")
@click.argument("experiment")
@click.option("--name", default=None, help="Only those that have this in their name or path.")
@connected
def experiment_datasets(client: Client, experiment: str, name: str | None) -> Table:
    """An experiment's datasets, newest first."""
    columns: Columns = {
        "id": "id",
        "name": "name",
        "kind": "kind",
        "state": "state",
        "frames": lambda d: f"{d.frames_readable}/{d.frames_announced}",
        "created": "created",
    }
    return Table(client.datasets(experiment, name=name), columns, "No dataset yet.")


@experiment.command("end-dataset")
@click.argument("dataset", type=int)
@connected
def experiment_end_dataset(client: Client, dataset: int) -> str:
    """Say that no more frames will come of DATASET (its id): jobs that wait for its end start now."""
    ended = client.end_dataset(dataset)
    return f"{ended.name} is {ended.state}, with {ended.frames_readable} frames."


@experiment.command("files")
@click.argument("experiment")
@click.argument("prefix", default="")
@connected
def experiment_files(client: Client, experiment: str, prefix: str) -> Table:
    """An experiment's files, those whose path begins with PREFIX."""
    return files_table(client.files(experiment, prefix))


@experiment.command("get")
@click.argument("experiment")
@click.argument("path")
@click.argument("to", type=click.Path(path_type=Path), required=False)
@connected
def experiment_get(client: Client, experiment: str, path: str, to: Path | None) -> str:
    """Download the file PATH to TO (default: its own name, here)."""
    return str(client.download(experiment, path, to or Path(Path(path).name)))


@experiment.command("move-dataset")
@click.argument("dataset", type=int)
@click.argument("experiment")
@click.option("--reason", "-r", required=True, help="Why; it goes on record in both experiments.")
@connected
def experiment_move_dataset(client: Client, dataset: int, experiment: str, reason: str) -> str:
    """Move DATASET (its id) with its files to EXPERIMENT, of the same instrument (staff)."""
    moved = client.move_dataset(dataset, experiment, reason)
    return f"{moved.name} is now {moved.path} of {moved.experiment}."


@experiment.command("finalise")
@click.argument("experiment")
@click.option("--force", is_flag=True, help="Sign off in spite of differences; needs a reason.")
@click.option("--reason", "-r", default="", help="Why.")
@connected
def experiment_finalise(client: Client, experiment: str, force: bool, reason: str) -> Any:
    """Check that all raw data have arrived, and sign off the manifest sha256sums (staff)."""
    client.finalise(experiment, force=force, reason=reason)
    return client.finalised(experiment)
