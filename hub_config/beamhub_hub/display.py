"""What the demo shows in the terminal: what to open once, then what is happening, from the API."""

from __future__ import annotations

from beamhub.client import ApiError, Client, Unreachable
from beamhub.schemas import Dataset, Instrument, Job, JobState
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from beamhub_hub.credentials import PEOPLE, Credentials
from beamhub_hub.machine import Finding

COLOURS = {
    JobState.PENDING: "yellow",
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "cyan",
    JobState.FINISHED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "dim",
}
JOBS = 6  # shown at a time


def welcome(console: Console, credentials: Credentials, notes: list[Finding]) -> None:
    """What to open, as whom, and what is missing."""
    console.print(f"\n[bold]Open [link={credentials.url}]{credentials.url}[/link][/] and sign in as one of")
    people = Table(box=None, show_header=False, padding=(0, 2))
    for name, account in credentials.users.items():
        people.add_row(f"[bold]{name}[/]", escape(account.password), PEOPLE.get(name, ""))
    console.print(people)
    for note in notes:
        mark = "[green]✓[/]" if note.fine else "[yellow]![/]"
        console.print(f" {mark} {note.name}: {escape(note.message)}")
    console.print(" Ctrl-C ends everything.\n")


class Display:
    """The state of instrument, datasets and jobs: a live table in a terminal, else a line for each change."""

    def __init__(self, console: Console, client: Client, instrument: str, experiment: str) -> None:
        self._console = console
        self._client = client
        self._instrument = instrument
        self._experiment = experiment
        self._said: dict[str, str] = {}
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, detector: str) -> None:
        """Ask the service and show what it says; `detector` is what the virtual detector is doing."""
        try:
            instrument = self._client.instrument(self._instrument)
            datasets = self._client.datasets(self._experiment, limit=1)
            jobs = self._client.jobs(experiment=self._experiment, limit=JOBS)
        except (Unreachable, ApiError) as error:  # the hub starts it again; the next look may find it well
            self._say("service", str(error))
            return
        self._said.pop("service", None)
        if self._live:
            self._live.update(_table(instrument, datasets, jobs, detector), refresh=True)
        else:
            self._say("detector", detector)
            for dataset in datasets:
                self._say(f"dataset {dataset.name}", f"{dataset.state}, {_frames(dataset)}")
            for job in reversed(jobs):
                self._say(f"job {job.id} {job.title}", f"{job.state} {job.reason}".strip())

    def _say(self, subject: str, state: str) -> None:
        if self._said.get(subject) != state:
            self._said[subject] = state
            self._console.print(f"{subject}: {state}", highlight=False, markup=False, soft_wrap=True)


def _table(instrument: Instrument, datasets: list[Dataset], jobs: list[Job], detector: str) -> RenderableType:
    data = Table(box=None, show_header=False, padding=(0, 2))
    data.add_row("detector", detector, "")
    data.add_row("agent", escape(_agent(instrument)), "")
    for dataset in datasets:
        bar = ProgressBar(dataset.frames_announced, dataset.frames_readable, width=30)
        data.add_row("dataset", f"{escape(dataset.name)}  {_frames(dataset)}", bar)
    work = Table(box=None, show_header=False, padding=(0, 2))
    for job in jobs:
        running = job.state == JobState.RUNNING
        work.add_row(
            f"job {job.id}",
            escape(job.title),
            f"[{COLOURS[job.state]}]{job.state}[/]",
            ProgressBar(1.0, job.progress.fraction or 0.0, width=30) if running else "",
            escape(job.progress.step if running else job.reason or _result(job)),
        )
    return Group(data, work)


def _agent(instrument: Instrument) -> str:
    agent = instrument.agent
    if agent is None or not agent.connected:
        return "not connected"
    if not agent.current:
        return "connected, idle"
    return f"uploading {agent.current[0].name} at {agent.rate / 1e6:.1f} MB/s, {agent.queued_files} waiting"


def _frames(dataset: Dataset) -> str:
    return f"{dataset.frames_readable} of {dataset.frames_announced} frames readable"


def _result(job: Job) -> str:
    shown = list(job.metrics.items())[:4]
    return "  ".join(f"{name} {_number(metric.value)} {metric.unit}".strip() for name, metric in shown)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
