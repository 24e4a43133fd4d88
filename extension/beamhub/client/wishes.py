"""What is asked of jobs: to be made, made again, changed, cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from beamhub.client.wire import Wire, quoted
from beamhub.schemas import (
    Estimate,
    Job,
    JobCancel,
    JobChange,
    JobCreate,
    JobOutcome,
    JobRerun,
    JobRule,
    JobRuleMade,
    JobsCancel,
    JobsOnEach,
    JobsRerun,
    Page,
)


class Wishes(Wire):
    def set_priority(self, job: int, priority: int) -> Job:
        """Jobs of higher priority go first. A member may lower that of own jobs; staff may set any."""
        return self._send(Job, "PATCH", f"jobs/{job}", JobChange(priority=priority))

    def submit(
        self,
        experiment: str,
        template: str,
        inputs: int | str | Sequence[int | str] = (),
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> Job:
        """Start a job. If an identical one has a result already, that one is returned (its `repeats` is its
        own id), unless you `force` another. With the same `key` (any text of the caller's) the same call
        starts only one.

        Args:
            template: its name, or the path of a member's own notebook, such as shared/mine.ipynb.
            inputs: what it works on: ids of datasets, or of jobs, or a file's path.
        """
        body = _creation(template, inputs, sponsor, parameters, profile, force=force)
        return self._send(Job, "POST", f"experiments/{quoted(experiment)}/jobs", body, key=key)

    def submit_on_each(
        self,
        experiment: str,
        template: str,
        datasets: Sequence[int] | None = None,
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> list[Job]:
        """Start a job on each of these datasets, at most 500; None: on all that the experiment has."""
        body = JobsOnEach(
            **_runs(template),
            parameters=parameters or {},
            datasets=None if datasets is None else list(datasets),
            profile=profile,
            sponsor=sponsor,
            force=force,
        )
        path = f"experiments/{quoted(experiment)}/jobs-on-each"
        return self._send(Page[Job], "POST", path, body, key=key).items

    def rerun(
        self,
        job: int,
        *,
        template: str | None = None,
        parameters: dict[str, JsonValue] | None = None,
        inputs: Sequence[int | str] | None = None,
        profile: str | None = None,
        sponsor: str | None = None,
        force: bool = False,
        key: str | None = None,
    ) -> Job:
        """Start a job like this one; what is left out is as it was there. `template` may be the path of a
        member's own notebook. If an identical one has a result already, that one is returned (its `repeats`
        is its own id), unless you `force` another."""
        body = _repetition(template, inputs, sponsor, parameters, profile, force=force)
        return self._send(Job, "POST", f"jobs/{job}/rerun", body, key=key)

    def estimate(
        self,
        experiment: str,
        template: str,
        inputs: int | str | Sequence[int | str],
        *,
        sponsor: str,
        parameters: dict[str, JsonValue] | None = None,
        profile: str | None = None,
    ) -> Estimate:
        """What a job that `submit` would start will probably take."""
        body = _creation(template, inputs, sponsor, parameters, profile)
        return self._send(Estimate, "POST", f"experiments/{quoted(experiment)}/jobs/estimate", body)

    def estimate_rerun(
        self,
        job: int,
        *,
        template: str | None = None,
        parameters: dict[str, JsonValue] | None = None,
        inputs: Sequence[int | str] | None = None,
        profile: str | None = None,
        sponsor: str | None = None,
    ) -> Estimate:
        """What the job that `rerun` would start will probably take."""
        body = _repetition(template, inputs, sponsor, parameters, profile)
        return self._send(Estimate, "POST", f"jobs/{job}/estimate", body)

    def rerun_all(self, request: JobsRerun) -> list[JobOutcome]:
        """Run several jobs again, each for itself."""
        return self._send(Page[JobOutcome], "POST", "jobs/rerun", request).items

    def cancel_all(self, jobs: Sequence[int], reason: str = "") -> list[JobOutcome]:
        """Stop several jobs, each for itself."""
        request = JobsCancel(jobs=list(jobs), reason=reason)
        return self._send(Page[JobOutcome], "POST", "jobs/cancel", request).items

    def make_rule(self, job: int, rule: JobRule) -> JobRuleMade:
        """Make a job the rule of its instrument, and follow that on the datasets of `rule.backfill`."""
        return self._send(JobRuleMade, "POST", f"jobs/{job}/rule", rule)

    def cancel(self, job: int, reason: str = "") -> Job:
        return self._send(Job, "POST", f"jobs/{job}/cancel", JobCancel(reason=reason))


def _creation(
    template: str,
    inputs: int | str | Sequence[int | str],
    sponsor: str,
    parameters: dict[str, JsonValue] | None,
    profile: str | None,
    *,
    force: bool = False,
) -> JobCreate:
    return JobCreate(
        **_runs(template),
        parameters=parameters or {},
        inputs=[inputs] if isinstance(inputs, int | str) else list(inputs),
        profile=profile,
        sponsor=sponsor,
        force=force,
    )


def _repetition(
    template: str | None,
    inputs: Sequence[int | str] | None,
    sponsor: str | None,
    parameters: dict[str, JsonValue] | None,
    profile: str | None,
    *,
    force: bool = False,
) -> JobRerun:
    return JobRerun(
        **_runs(template),
        parameters=parameters,
        inputs=None if inputs is None else list(inputs),
        profile=profile,
        sponsor=sponsor,
        force=force,
    )


def _runs(template: str | None) -> dict[str, Any]:
    """A template by its name, or a member's notebook by its path."""
    return {"notebook" if template and template.endswith(".ipynb") else "template": template}
