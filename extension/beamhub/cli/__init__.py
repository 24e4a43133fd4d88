"""The command `beamhub`: everyday work on instruments, experiments, jobs and licences, through the REST API.

Each group of commands is a module here, named like the group; `demo`, `sync`, `simulate` and `doctor` belong
to other parts of beamhub. A module is imported when one of its commands is called: help stays quick. Every
command of the groups prints a table for people and, with `--json`, the service's own objects for programs.
"""

from __future__ import annotations

import importlib

import click

# name -> where it is, and what the help says of it
COMMANDS = {
    "backup": ("beamhub.cli.backup", "Save the service's database to one file."),
    "demo": ("beamhub_hub.demo", "Run a whole facility here and watch a beamtime happen."),
    "doctor": ("beamhub_hub.doctor", "Check this machine: what works, what is missing."),
    "experiment": ("beamhub.cli.experiment", "Beamtimes: their members, state and files."),
    "instrument": ("beamhub.cli.instrument", "Beamlines and microscopes: state, active experiment, token."),
    "job": ("beamhub.cli.job", "Jobs: start, watch, rerun, cancel, and what they made."),
    "licence": ("beamhub.cli.licence", "Licences: allowances of CPU-hours."),
    "restore": ("beamhub.cli.backup", "Make the service's database what a backup holds."),
    "simulate": ("beamhub.simulation.command", "Be a detector: write a dataset frame by frame."),
    "sync": ("beamhub.agent.command", "Be an instrument's agent: upload what it writes."),
    "template": ("beamhub.cli.template", "Template notebooks that jobs are made from."),
    "trigger": ("beamhub.cli.trigger", "Trigger rules: which jobs start by themselves."),
    "upload": ("beamhub.cli.upload", "Uploads: send files into an experiment, see what is on its way."),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        try:
            command = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"`beamhub {cmd_name}` needs the module {error.name}, which is not installed here. "
                "Install beamhub with all its parts: pip install beamhub"
            ) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{cmd_name} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="beamhub")
def main() -> None:
    """Collaborative analysis for experiments at beamlines and microscopes.

    BEAMHUB_URL (the hub's address) and BEAMHUB_TOKEN (from the hub's page Token) say where, and as whom.
    """
