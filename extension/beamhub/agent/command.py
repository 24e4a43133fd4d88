"""`beamhub sync`: runs the agent, or tells what it would do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from pathlib import Path

import click

from .config import Config, ConfigError, load, parse
from .disk import Disk
from .done import tell
from .file import printable
from .journal import JournalError, Snapshot
from .service import Service, UnavailableError
from .sync import Agent
from .watch import LostError, Tree

log = logging.getLogger("beamhub.agent")


@click.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--check", is_flag=True, help="Test the configuration and the way to the service, then stop.")
@click.option("--once", is_flag=True, help="Send what is there, then stop.")
@click.option("--dry-run", is_flag=True, help="List what would be sent; send nothing.")
@click.option("--done", is_flag=True, help="Tell the running agent that FILES are finished.")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1)
def sync(
    config: Path, *, check: bool, once: bool, dry_run: bool, done: bool, files: tuple[Path, ...]
) -> None:
    """Send an instrument's files to beamhub, live.

    CONFIG is a TOML file that names the directories to watch, the instrument and its token. The running agent
    reads it again, for the limit under [upload], at a SIGHUP.
    """
    if check + once + dry_run + done > 1:
        raise click.UsageError("--check, --once, --dry-run and --done exclude each other")
    if done != bool(files):
        raise click.UsageError("--done and FILES belong together")
    try:
        if done:
            sys.exit(0 if _tell(parse(config), files) else 1)
        settings = load(config)
        if check:
            good = asyncio.run(_check(settings))
        elif dry_run:
            good = _dry_run(settings)
        else:
            _log_to_stderr()
            good = _run(config, settings, once=once) or not once
    except (ConfigError, JournalError, LostError) as error:
        raise click.ClickException(str(error)) from error
    if not good:
        sys.exit(1)


def _log_to_stderr() -> None:
    # systemd's journal adds the time itself
    time = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{time}%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _run(path: Path, config: Config, *, once: bool) -> bool:
    agent = Agent(config, once=once)
    good = asyncio.run(_until_stopped(agent, path))
    if agent.hangs:  # whoever waited for its threads would wait as long as they
        log.warning("ending without the answer of a disk that hangs")
        logging.shutdown()
        os._exit(0 if good or not once else 1)
    return good


async def _until_stopped(agent: Agent, path: Path) -> bool:
    disk, told = Disk(1), asyncio.Event()

    async def read_again() -> None:
        while True:
            await told.wait()
            told.clear()
            try:
                config = await disk.ask(load, path)  # which looks at the directories, and one may hang
            except ConfigError as error:
                log.error("nothing is changed: %s", error)
            else:
                agent.take(config)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    loop.add_signal_handler(signal.SIGHUP, told.set)
    reading = asyncio.create_task(read_again())
    try:
        return await agent.run()
    finally:
        reading.cancel()
        agent.hangs = not await disk.close() or agent.hangs


def _tell(config: Config, files: tuple[Path, ...]) -> bool:
    if config.done is None:
        raise ConfigError("there is no [done] in the configuration: the agent does not listen")
    heard = tell(config.done, files)
    for path, reason in heard.refused.items():
        click.echo(f"{printable(path)} {reason}", err=True)
    return not heard.refused


async def _check(config: Config) -> bool:
    """One line for each thing that has to be right."""
    good = True

    def say(fine: bool, text: str) -> None:
        nonlocal good
        good = good and fine
        click.echo(f"{'✓' if fine else '✗'} {text}")

    for one, other in itertools.combinations(config.watch, 2):
        if one.prefix == other.prefix and one.include == other.include:
            click.echo(
                f"! files of the same name in {one.path} and {other.path} become versions of each other: "
                "give one of them a prefix"
            )
    for watch in config.watch:
        how = f"looked at every {watch.pause:g} s" if watch.polls else "watched"
        say(True, f"{watch.path} is {how}; a file is ready {watch.settle:g} s after its last change")
        if not watch.polls:
            click.echo("  or as soon as it is renamed to its final name")
    if config.done:
        who = "somebody of the agent's group" if config.done.socket else "somebody with its token"
        say(True, f"a file is ready at once when {who} says so at {config.done.listen}")
    if config.upload.limit:
        say(True, f"at most {config.upload.limit / 1e6:g} MB/s are sent")
    state = config.journal.path
    folder = next(parent for parent in state.parents if parent.exists())
    say(os.access(folder, os.W_OK | os.X_OK), f"the journal {state} can be written")
    try:
        with contextlib.closing(Snapshot(state)) as journal:
            await asyncio.to_thread(journal.check, config.instrument.id)
    except JournalError as error:
        say(False, str(error))
    if config.service.exposed:
        say(False, f"{config.service.url} is not https: the token and the data travel unencrypted")
    if not config.service.verify:
        click.echo("! verify = false: anybody on the network may pretend to be the service")
    service = Service(config)
    try:
        instrument = await service.instrument()
    except UnavailableError as error:
        say(False, str(error))
    else:
        say(True, f"{config.service.url} accepts the token of instrument {instrument.id}")
        if instrument.active_experiment:
            say(True, f"files go to experiment {instrument.active_experiment}")
        else:
            click.echo("! no experiment is active on it: files wait until one is")
    finally:
        await service.close()
    return good


def _dry_run(config: Config) -> bool:
    journal = Snapshot(config.journal.path)
    files = size = 0
    for watch in config.watch:
        tree = Tree(watch, journal.settled, lambda _: None, Disk(1))
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
