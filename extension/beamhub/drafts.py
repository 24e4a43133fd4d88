"""Jobs in the making: what somebody asks for, or a rule wants, put down in full and entered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beamhub.errors import Invalid
from beamhub.fingerprints import fingerprint
from beamhub.inputs import choose, kind
from beamhub.jobstate import admit_all, sure, tell_all
from beamhub.plans import Plan, Plans
from beamhub.schemas import Experiment, Job, JobInput
from beamhub.sponsors import require_terms
from beamhub.store import Transaction
from beamhub.store.jobs import Draft
from beamhub.templates import Entry
from beamhub.triggers import JobRequest


def draft_of(
    tx: Transaction,
    experiment: Experiment,
    plan: Plan,
    inputs: Sequence[JobInput],
    launched_by: str,
    **more: Any,
) -> Draft:
    """A job to be made, and which identical one there is already. `more`: what else a `Draft` has."""
    template = plan.entry.template
    mark = fingerprint(tx, experiment, template, plan.parameters, inputs)
    earlier = tx.jobs.identical(experiment.id, mark) if mark else None
    return Draft(
        experiment=experiment.id,
        template=template.name,
        template_version=template.version,
        title=template.title,
        parameters=plan.parameters,
        inputs=inputs,
        profile=plan.profile,
        sponsor=plan.sponsor,
        launched_by=launched_by,
        live=template.live,
        notebook=template.notebook,
        fingerprint=mark,
        repeats=earlier.id if earlier else None,
        **more,
    )


def enter(tx: Transaction, drafts: Sequence[Draft]) -> Sequence[Job]:
    """The new jobs, in this order; each that is identical to one before it is linked with that one."""
    made = tx.jobs.create_all(drafts)
    first: dict[tuple[str, str], int] = {}
    repeats: dict[int, int] = {}
    for job, draft in zip(made, drafts, strict=True):
        if draft.fingerprint is not None and draft.repeats is None:
            earlier = first.setdefault((draft.experiment, draft.fingerprint), job.id)
            if earlier != job.id:
                repeats[job.id] = earlier
    tx.jobs.link(repeats)
    made = [job.model_copy(update={"repeats": repeats.get(job.id, job.repeats)}) for job in made]
    tell_all(tx, "job.created", made)
    return made


def make(tx: Transaction, drafts: Sequence[Draft], *, force: bool) -> list[Job]:
    """The jobs that somebody asks for, queued if their sponsor can pay. An identical one that has a result,
    or will have one, is the answer instead, unless another is forced."""
    earlier = [None if force else draft.repeats for draft in drafts]
    wanted = [draft for draft, known in zip(drafts, earlier, strict=True) if known is None]
    made = iter(admit_all(tx, enter(tx, wanted)))
    return [next(made) if known is None else _known(tx, known) for known in earlier]


def _known(tx: Transaction, job_id: int) -> Job:
    """A job that is the answer to whoever wants an identical one."""
    return sure(tx.jobs.get(job_id)).model_copy(update={"repeats": job_id})


def draft_for_rule(
    tx: Transaction,
    request: JobRequest,
    experiment: Experiment,
    plans: Plans,
    entry: Callable[[str], Entry],
    checked: set[tuple[str, str, str]],
) -> Draft:
    """The job that a rule wants. Raises NotFound, Invalid. `checked` are experiment, template and sponsor
    that are known to go together."""
    if request.problem:
        raise Invalid(request.problem, "Correct the rule.")
    plan = plans.of(entry(request.template), request.parameters, request.profile, request.sponsor)
    case = experiment.id, request.template, request.sponsor
    if case not in checked:
        require_terms(tx, experiment, request.template, request.sponsor)
        checked.add(case)
    template = plan.entry.template
    offered: Mapping[str | None, Sequence[int | str]] = {
        "dataset": request.datasets,
        "job": request.jobs,
        "file": request.files,
    }
    inputs = choose(tx, experiment, template, offered.get(kind(template), ()))
    return draft_of(
        tx,
        experiment,
        plan,
        inputs,
        f"trigger:{request.rule}",
        parent=request.parent,
        trigger_key=request.key,
        rule_version=request.version,
        priority=request.priority,
    )


def draft_of_broken_rule(tx: Transaction, request: JobRequest, experiment: Experiment, plans: Plans) -> Draft:
    """As far as it is known what a rule wants that can't be followed."""
    return Draft(
        experiment=experiment.id,
        template=request.template,
        template_version="",
        title=request.template,
        parameters=request.parameters,
        inputs=_offered(tx, request),
        profile=plans.profile(None, request.profile),
        sponsor=request.sponsor,
        launched_by=f"trigger:{request.rule}",
        parent=request.parent,
        trigger_key=request.key,
        rule_version=request.version,
        priority=request.priority,
    )


def _offered(tx: Transaction, request: JobRequest) -> list[JobInput]:
    """What a job was to work on that has never been planned."""
    datasets = [(id_, tx.datasets.get(id_)) for id_ in request.datasets]
    return [
        *(JobInput(id=id_, name=dataset.name if dataset else "") for id_, dataset in datasets),
        *(JobInput(kind="file", id=None, name=path) for path in request.files),
    ]
