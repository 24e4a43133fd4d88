"""Templates, licences and jobs as the pages' tests need them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from beamhub.schemas import (
    Dataset,
    Experiment,
    ExperimentState,
    Job,
    JobInput,
    JobProgress,
    JobState,
    Profile,
    Sponsor,
    Template,
)

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
EXPERIMENT = "mx-1-2026-00001"
ONE = Profile(name="cpu-1", title="1 CPU", cpus=1, memory=4 * 2**30, walltime=3600)
TWO = Profile(name="cpu-2", title="2 CPUs", cpus=2, memory=8 * 2**30, walltime=3600)


def experiment(**more: Any) -> Experiment:
    known = {
        "id": EXPERIMENT,
        "instrument": "mx-1",
        "title": "Lysozyme",
        "state": ExperimentState.RUNNING,
        "pi": "ada",
        "active": True,
        "created": NOW,
        "started": NOW,
        "ended": None,
        "folder": f"/data/{EXPERIMENT}",
    }
    return Experiment.model_validate(known | more)


def template(
    name: str, inputs: str = "dataset", more: dict[str, Any] | None = None, **parameters: dict[str, Any]
) -> Template:
    known = {
        "name": name,
        "version": "0" * 16,
        "title": name.title(),
        "technique": "mx",
        "description": "",
        "parameters": {"type": "object", "properties": parameters},
        "inputs": inputs,
        "metrics": {},
        "requires": {},
        "missing": [],
        "profile": "cpu-2",
        "source": "shipped",
    }
    return Template.model_validate(known | (more or {}))


def dataset(number: int, **more: Any) -> Dataset:
    known = {
        "id": number,
        "experiment": EXPERIMENT,
        "name": f"lyso_{number}",
        "path": f"raw/lyso_{number}_master.h5",
        "format": "nxmx",
        "kind": "rotation",
        "state": "complete",
        "open_ended": False,
        "frames_announced": 60,
        "frames_readable": 60,
        "shape": [10, 10],
        "metadata": {},
        "created": NOW,
        "ended": NOW,
    }
    return Dataset.model_validate(known | more)


def licence(name: str, **more: Any) -> Sponsor:
    known = {
        "id": name,
        "title": name,
        "kind": "lab",
        "owner": None,
        "instruments": ["mx-1"],
        "granted": 36_000,
        "charged": 0,
        "held": 0,
        "available": 36_000,
        "valid_from": NOW,
        "valid_until": None,
    }
    return Sponsor.model_validate(known | more)


def job(number: int, state: JobState = JobState.FINISHED, **more: Any) -> Job:
    known = {
        "id": number,
        "experiment": EXPERIMENT,
        "template": "dials",
        "template_version": "0" * 16,
        "title": "DIALS",
        "state": state,
        "reason": "",
        "parameters": {"limit": 2.1, "spots": 5},
        "inputs": [JobInput(id=7, name="lyso")],
        "profile": ONE,
        "live": False,
        "sponsor": "lab",
        "launched_by": "trigger:1",
        "parent": None,
        "created": NOW,
        "started": None if state in (JobState.PENDING, JobState.QUEUED) else NOW,
        "ended": NOW if state.ended else None,
        "cpu_seconds": 60,
        "progress": JobProgress(),
        "metrics": {},
        "artifacts": [],
        "folder": f"processed/{number}",
    }
    return Job.model_validate(known | more)
