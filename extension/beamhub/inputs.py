"""What jobs work on: datasets, the results of earlier jobs, files, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from beamhub import folders
from beamhub.errors import Invalid, NotFound
from beamhub.notebooks import INPUTS, VARIABLES, Kind
from beamhub.schemas import Experiment, Job, JobInput, JobState, SpecInput, Template
from beamhub.store import Transaction

NEEDS = {
    "dataset": "one dataset",
    "datasets": "one or more datasets",
    "job": "one job",
    "jobs": "one or more jobs",
    "file": "one file",
    "none": "nothing",
}


def kind(template: Template) -> Kind | None:
    """What the template takes; None: nothing."""
    variable = VARIABLES.get(template.inputs)
    return INPUTS[variable][0] if variable else None


def choose(
    tx: Transaction, experiment: Experiment, template: Template, wanted: Sequence[int | str]
) -> list[JobInput]:
    """The inputs of a job: what is wanted, each once, if the template takes it. Raises Invalid, NotFound."""
    wanted = list(dict.fromkeys(wanted))
    taken = kind(template)
    several = template.inputs in ("datasets", "jobs")
    fits = not wanted if taken is None else len(wanted) == 1 or (several and wanted)
    if not fits or any(isinstance(one, str) != (taken == "file") for one in wanted):
        given = ", ".join(map(str, wanted[:10])) or "nothing"
        raise Invalid(
            f"{template.title} works on {NEEDS[template.inputs]}, and was given {given}.",
            "Choose what the template takes.",
        )
    return [_input(tx, experiment, taken, one) for one in wanted]


def inherit(parent: Job, template: Template) -> list[int | str]:
    """What a job made from `parent` works on where nobody says: on the same, or on the parent's results."""
    taken = kind(template)
    same = [one for one in parent.inputs if one.kind == taken]
    if taken == "job" and not same:
        return [parent.id]
    return [one.id if one.id is not None else one.name for one in same]


def located(tx: Transaction, job: Job, experiment: Path) -> list[SpecInput]:
    """The inputs of a job and where they lie. Raises FileNotFoundError for what is not known any more."""
    return [SpecInput(**one.model_dump(), path=str(_place(tx, one, experiment))) for one in job.inputs]


def datasets(inputs: Iterable[JobInput]) -> list[int]:
    """The ids of those that are datasets."""
    return [one.id for one in inputs if one.kind == "dataset" and one.id is not None]


def _input(tx: Transaction, experiment: Experiment, taken: Kind | None, one: int | str) -> JobInput:
    if isinstance(one, str):
        path = str(folders.parse(one))
        if path not in tx.uploads.published(experiment.id, [path]):
            raise NotFound(f"There is no file {path} in {experiment.id}.", "Choose one that has arrived.")
        return JobInput(kind="file", id=None, name=path)
    if taken == "job":
        job = tx.jobs.get(one)
        if job is None or job.experiment != experiment.id:
            raise NotFound(
                f"There is no job {one} in {experiment.id}.", "Choose one of the experiment's jobs."
            )
        if job.state is not JobState.FINISHED:
            raise Invalid(
                f"Job {one} ({job.title}) is {job.state}: it has no result to work on.",
                "Choose jobs that have finished.",
            )
        return JobInput(kind="job", id=job.id, name=job.title)
    dataset = tx.datasets.get(one)
    if dataset is None or dataset.experiment != experiment.id:
        raise NotFound(
            f"There is no dataset {one} in {experiment.id}.", "Choose one of the experiment's datasets."
        )
    return JobInput(kind="dataset", id=dataset.id, name=dataset.name)


def _place(tx: Transaction, one: JobInput, experiment: Path) -> Path:
    if one.id is None:
        return experiment / one.name
    if one.kind == "job":
        return experiment / folders.PROCESSED / str(one.id)
    dataset = tx.datasets.get(one.id)
    if dataset is None:
        raise FileNotFoundError(f"its dataset {one.id} is not known")
    return experiment / dataset.path
