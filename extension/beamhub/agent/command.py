"""`beamhub sync`: runs the agent, or tells what it would do."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import click

from .config import Config, ConfigError, load
from .file import printable
from .journal import JournalError, Snapshot
from .service import Service, UnavailableError
from .sync import Agent
from .watch import LostError, Tree


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--check", is_flag=True, help="Test the configuration and the way to the service, then stop.")
@click.option("--once", is_flag=True, help="Send what is there, then stop.")
@click.option("--dry-run", is_flag=True, help="List what would be sent; send nothing.")
def sync(config: Path, *, check: bool, once: bool, dry_run: bool) -> None:
    """Send an instrument's files to beamhub, live.

    CONFIG is a TOML file that names the directories to watch, the instrument and its token.
    """
    if check + once + dry_run > 1:
        raise click.UsageError("--check, --once and --dry-run exclude each other")
    try:
        settings = load(config)
        if check:
            done = asyncio.run(_check(settings))
        elif dry_run:
            done = _dry_run(settings)
        else:
            _log_to_stderr()
            done = asyncio.run(_run(settings, once=once)) or not once
    except (ConfigError, JournalError, LostError) as error:
        raise click.ClickException(str(error)) from error
    if not done:
        sys.exit(1)


def _log_to_stderr() -> None:
    # systemd's journal adds the time itself
    time = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{time}%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


async def _run(config: Config, *, once: bool) -> bool:
    agent = Agent(config, once=once)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    return await agent.run()


async def _check(config: Config) -> bool:
    """One line for each thing that has to be right."""
    good = True

    def tell(fine: bool, text: str) -> None:
        nonlocal good
        good = good and fine
        click.echo(f"{'✓' if fine else '✗'} {text}")

    for watch in config.watch:
        how = f"looked at every {watch.pause:g} s" if watch.polls else "watched"
        tell(True, f"{watch.path} is {how}; a file is ready {watch.settle:g} s after its last change")
        if not watch.polls:
            click.echo("  or as soon as it is renamed to its final name")
    state = config.journal.path
    folder = next(parent for parent in state.parents if parent.exists())
    tell(os.access(folder, os.W_OK | os.X_OK), f"the journal {state} can be written")
    if config.service.exposed:
        tell(False, f"{config.service.url} is not https: the token and the data travel unencrypted")
    if not config.service.verify:
        click.echo("! verify = false: anybody on the network may pretend to be the service")
    service = Service(config)
    try:
        instrument = await service.instrument()
    except UnavailableError as error:
        tell(False, str(error))
    else:
        tell(True, f"{config.service.url} accepts the token of instrument {instrument.id}")
        if instrument.active_experiment:
            tell(True, f"files go to experiment {instrument.active_experiment}")
        else:
            click.echo("! no experiment is active on it: files wait until one is")
    finally:
        await service.close()
    return good


def _dry_run(config: Config) -> bool:
    journal = Snapshot(config.journal.path)
    files = size = 0
    for watch in config.watch:
        tree = Tree(watch, journal.settled, lambda _: None)
        for sightings in tree.look():
            for sighting in sightings:
                files += 1
                size += sighting.stamp.size
                click.echo(f"{sighting.stamp.size:>15,}  {printable(watch.destination(sighting.name))}")
        for path, problem in tree.odd.items():
            click.echo(f"{'—':>15}  {printable(path)} {problem}")
    journal.close()
    click.echo(f"{files:,} files with {size:,} bytes would be sent")
    return True
