"""Sponsors: which licences may pay for a job, why one does not now, and what to choose instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from beamhub import access, terms
from beamhub.access import Principal
from beamhub.errors import Invalid
from beamhub.schemas import Experiment, Job, Licence
from beamhub.store import Transaction
from beamhub.terms import Case


def usable(tx: Transaction, principal: Principal, instrument: str) -> Sequence[Licence]:
    """The licences that may pay for what this principal starts on this instrument's data: its own, and the
    lab licences of the instrument. Expired ones are left out, empty ones are not: they may get a grant."""
    now = datetime.now(UTC)
    own = tx.licences.of_owner(principal.name) if principal.kind == "user" else []
    labs = tx.licences.of_labs(frozenset({instrument}))
    return [one for one in (*own, *labs) if one.valid_until is None or one.valid_until > now]


def require_usable(tx: Transaction, principal: Principal, instrument: str, sponsor: str) -> None:
    """Raises Invalid if this licence may not pay here at all, naming those that may."""
    choices = [licence.id for licence in usable(tx, principal, instrument)]
    if sponsor not in choices:
        raise Invalid(
            f"The licence {sponsor!r} cannot pay for jobs of {principal.name} on {instrument}.",
            f"Choose one of: {', '.join(choices)}."
            if choices
            else "There is none that could: ask an operator for a licence.",
        )


def require_sponsor(
    tx: Transaction, principal: Principal, experiment: Experiment, template: str, sponsor: str
) -> None:
    """Raises Invalid if this licence does not pay for a job of this template that the principal, whose role
    the experiment tells, starts there now: it says why, and what to choose instead."""
    require_usable(tx, principal, experiment.instrument, sponsor)
    now, case = datetime.now(UTC), Case.of(experiment, template)
    found = usable(tx, principal, experiment.instrument)
    refusals = {one.id: terms.refusal(one, case, now) for one in found}
    if why := refusals[sponsor]:
        raise Invalid(why, _instead([one for one in found if not refusals[one.id]]))


def require_terms(tx: Transaction, experiment: Experiment, template: str, sponsor: str) -> None:
    """The same for what starts by itself."""
    licence = tx.licences.get(sponsor)
    case = Case.of(experiment.model_copy(update={"role": None}), template)
    if licence is None:
        return
    if why := _left(tx, licence, experiment) or terms.refusal(licence, case, datetime.now(UTC)):
        raise Invalid(why, "Rerun it with another licence, or let the staff change the rule.")


def refusal(tx: Transaction, job: Job) -> str:
    """Why the job's sponsor does not pay for it as things are now, in one sentence; "" if it does, as far as
    it has credit. A job may have waited, or be tried again, since its sponsor agreed: each hold asks anew."""
    licence, experiment = tx.licences.get(job.sponsor), tx.experiments.get(job.experiment)
    if licence is None or experiment is None:
        return f"There is no licence {job.sponsor}."
    role = access.role_in(tx, Principal(job.launched_by, "user"), experiment.id)
    case = Case.of(experiment.model_copy(update={"role": role}), job.notebook or job.template)
    left = "" if licence.owner == job.launched_by else _left(tx, licence, experiment)
    why = left or terms.refusal(licence, case, datetime.now(UTC))
    return f"{why.removesuffix('.')}: rerun the job with another sponsor." if why else ""


def _left(tx: Transaction, licence: Licence, experiment: Experiment) -> str:
    """Why a user's own licence does not pay there for what others or rules start; "" if it does."""
    if licence.owner is None or access.role_in(tx, Principal(licence.owner, "user"), experiment.id):
        return ""
    owner = f"{licence.owner}, who does not belong to {experiment.id}"
    return f"The licence {licence.id} is of {owner}."


def _instead(choices: Sequence[Licence]) -> str:
    own = [one.id for one in choices if one.kind == "user"]
    if own:
        return f"Choose your own licence {' or '.join(own)}."
    if choices:
        return f"Choose one of: {', '.join(one.id for one in choices)}."
    return "Ask the instrument's staff to change its terms, or an operator for a licence of your own."
