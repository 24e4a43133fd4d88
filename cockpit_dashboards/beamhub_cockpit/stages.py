"""From the beamtime to the archive: which state an experiment goes to next, and what that means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from beamhub.client import ApiError, Client
from beamhub.schemas import (
    Experiment,
    ExperimentChange,
    ExperimentState,
    Finalisation,
    FinalisationState,
    Instrument,
    JobState,
    Upload,
    UploadState,
)

from beamhub_cockpit.format import plural, size
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import button, can
from beamhub_cockpit.question import Question, UnusableError, ask_reason

NAMED: Final = 5  # files that are on their way


@dataclass(frozen=True)
class Step:
    """What leads from one state to the next."""

    to: ExperimentState
    label: str
    title: str  # what the button says of it
    done: str  # what is said afterwards, behind the experiment's number


END: Final = Step(
    ExperimentState.PROCESSING,
    "End beamtime",
    "Nothing from the instrument goes here any more; jobs go on",
    "is processing now",
)
CLOSE: Final = Step(
    ExperimentState.CLOSED, "Close", "From then on it can be read, and nothing in it changes", "is closed"
)
REOPEN: Final = Step(
    ExperimentState.PROCESSING, "Reopen", "Jobs and shared files go on", "is open again, and processing"
)
NEXT: Final = {
    ExperimentState.PLANNED: CLOSE,
    ExperimentState.RUNNING: END,
    ExperimentState.PROCESSING: CLOSE,
    ExperimentState.CLOSED: REOPEN,
}


@dataclass(frozen=True)
class Standing:
    """How things are with an experiment that is to go on to another state."""

    experiment: Experiment
    instrument: Instrument
    arriving: Sequence[Upload]
    running: int  # jobs
    waiting: int
    finalisation: Finalisation | None

    @classmethod
    def of(cls, client: Client, experiment: str) -> Standing:
        """As the service knows it now."""
        seen = client.experiment(experiment)
        counts = {
            state: len(client.jobs(experiment, state=state))
            for state in (JobState.RUNNING, JobState.QUEUED, JobState.PENDING)
        }
        try:
            finalisation = client.finalisation(experiment)
        except ApiError as error:
            if error.status != 404:
                raise
            finalisation = None  # nobody has begun
        return cls(
            experiment=seen,
            instrument=client.instrument(seen.instrument),
            arriving=client.uploads(experiment, state=UploadState.RECEIVING),
            running=counts.pop(JobState.RUNNING),
            waiting=sum(counts.values()),
            finalisation=finalisation,
        )


def tool(experiment: Experiment, *, small: bool = False) -> Element | None:
    """The button for the next step, for those who may take it."""
    if not can(experiment, "experiment.edit"):
        return None
    step = NEXT[experiment.state]
    return button(
        f"{step.label} …",
        ["experiment.step", experiment.id],
        css="bh-experiment-step" + (" bh-small" if small else ""),
        title=step.title,
        said=f"{step.label} … {experiment.title}" if small else "",
        key="step",
    )


def ask(client: Client, experiment: str, then: Callable[[Experiment, Step], None]) -> Question:
    """The dialog that says what the next step means, with how things are now. `then` gets the experiment as
    it is afterwards."""
    seen = Standing.of(client, experiment)
    step = NEXT[seen.experiment.state]

    def take(fields: Mapping[str, str]) -> None:
        now = client.experiment(experiment).state
        if now is not seen.experiment.state:
            raise UnusableError(f"It is {now} meanwhile: somebody was faster. Close this, and look again.")
        change = ExperimentChange(state=step.to, reason=fields.get("reason", ""))
        then(client.change_experiment(experiment, change), step)

    title = seen.experiment.title
    questions = {END: f"End the beamtime of {title}?", CLOSE: f"Close {title}?", REOPEN: f"Reopen {title}?"}
    return Question(
        questions[step],
        "Close experiment" if step is CLOSE else step.label,
        take,
        (*meaning(step, seen), ask_reason("Why?", "If you like; it goes into the log.", required=False)),
        danger=step is CLOSE,
        name="bh-stepping",
        leave="Leave it open" if step is CLOSE else "Close",
    )


def meaning(step: Step, seen: Standing) -> list[Child]:
    """What the step means, as things are: for the instrument, for files on their way, for jobs."""
    return {END: _end, CLOSE: _close, REOPEN: _reopen}[step](seen)


def _end(seen: Standing) -> list[Child]:
    here, agent = seen.experiment, seen.instrument.agent
    said: list[Child] = [
        el(
            "p",
            f"What {here.instrument} begins to send from now on does not go to ",
            el("strong.bh-nowrap", here.id),
            " any more. Jobs, JupyterLab and shared files go on. “Make active …” takes it up again.",
        )
    ]
    if here.active:
        said.append(
            el(
                "p.bh-warn",
                "It is active now. Afterwards no experiment is: what the instrument writes waits there until "
                "one is made active.",
            )
        )
    if here.active and agent is not None and agent.queued_files:
        waits = plural(agent.queued_files, "file waits", "files wait")
        said.append(
            el(
                "p.bh-warn",
                f"{waits} at the instrument ({size(agent.queued_bytes)}), and would go to the experiment "
                "that is made active next. If they belong here, end the beamtime when they have arrived.",
            )
        )
    return [*said, *_arriving(seen, "is finished where it began:"), *_finalised(seen)]


def _close(seen: Standing) -> list[Child]:
    here = seen.experiment
    operate = can(here, "instrument.operate")
    back = "“Reopen …” takes it back." if operate else f"Only the staff of {here.instrument} can reopen it."
    said: list[Child] = [
        el(
            "p",
            "Its people can read everything as before, and change nothing: no job starts, no file comes in, "
            f"nobody is added, no JupyterLab is opened. {back}",
        ),
        el("p", "JupyterLab sessions that are open in it end within seconds, for everybody: save first."),
    ]
    if seen.running:
        said.append(el("p", f"{plural(seen.running, 'job runs', 'jobs run')} on to the end."))
    if seen.waiting:
        waits = plural(seen.waiting, "job waits", "jobs wait")
        said.append(el("p.bh-warn", f"{waits}, and would start only when it is open again."))
    said += _arriving(seen, "is refused from then on. Wait until it has arrived:", warn=True)
    if here.state is not ExperimentState.PLANNED:
        said += _finalised(seen)
    return said


def _reopen(seen: Standing) -> list[Child]:
    said: list[Child] = [
        el(
            "p",
            "It is processing then: its people run jobs, open JupyterLab and share files as before it was "
            "closed. Nothing comes from the instrument unless it is made active.",
        )
    ]
    if seen.waiting:
        waits = plural(seen.waiting, "job waits", "jobs wait")
        said.append(el("p.bh-warn", f"{waits} for this, and may start at once."))
    return [*said, *_finalised(seen)]


def _arriving(seen: Standing, what: str, *, warn: bool = False) -> list[Child]:
    """The files on their way, and what becomes of them."""
    if not seen.arriving:
        return []
    names = [upload.path.rsplit("/", 1)[-1] for upload in seen.arriving]
    more = len(names) - NAMED
    return [
        el("p", f"What is on its way {what}", class_="bh-warn" if warn else None),
        el(
            "ul.bh-flying",
            [el("li", el("strong", name)) for name in names[:NAMED]],
            el("li.bh-hint", f"and {plural(more, 'more', 'more')}") if more > 0 else None,
        ),
    ]


def _finalised(seen: Standing) -> list[Child]:
    """Whether somebody has checked that everything is there."""
    found = seen.finalisation
    by = found.created_by if found else ""
    match found.state if found else None:
        case FinalisationState.DONE:
            return [el("p.bh-hint", f"It is finalised, by {by}: everything has arrived.")]
        case FinalisationState.OUTDATED:
            return [el("p.bh-warn", f"It was finalised by {by}, and something has changed since.")]
        case FinalisationState.CHECKING | FinalisationState.HASHING:
            return [el("p.bh-warn", f"It is just being finalised by {by}.")]
        case _:
            return [
                el(
                    "p.bh-warn",
                    "It is not finalised: nobody has checked that everything has arrived. “Finalise …” does.",
                )
            ]
