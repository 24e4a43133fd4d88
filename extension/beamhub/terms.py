"""Terms: for which jobs a lab's licence pays. Pure: the service decides by it, the Cockpit shows it first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from beamhub.schemas import Experiment, ExperimentState, Licence, Role, SponsorshipRule

ROLES = {
    Role.PI: "the PI",
    Role.COLLABORATOR: "collaborators",
    Role.VIEWER: "viewers",
    Role.STAFF: "the staff",
}


@dataclass(frozen=True)
class Case:
    """A job that somebody wants to be paid for."""

    instrument: str
    experiment: str | None  # None: any of the instrument's
    state: ExperimentState | None  # None: any
    template: str | None  # None: not chosen yet
    role: Role | None  # None: of no member; a trigger rule or an operator starts it

    @classmethod
    def of(cls, experiment: Experiment, template: str | None) -> Case:
        """What its `role` in an experiment wants to run there."""
        return cls(experiment.instrument, experiment.id, experiment.state, template, experiment.role)


def refusal(licence: Licence, case: Case, now: datetime) -> str:
    """Why the licence does not pay for this, in one sentence; "" if it does."""
    if licence.valid_until is not None and licence.valid_until <= now:
        return f"The licence {licence.id} expired on {licence.valid_until:%Y-%m-%d}."
    here = [rule for rule in licence.terms if not rule.instruments or case.instrument in rule.instruments]
    if licence.terms and not here:
        return f"The licence {licence.id} does not pay on {case.instrument}."
    unmet = [" ".join(_unmet(rule, case, now)) for rule in here]
    if not unmet or "" in unmet:
        return ""
    return f"The licence {licence.id} pays on {case.instrument} only {', or '.join(dict.fromkeys(unmet))}."


def describe(rule: SponsorshipRule) -> str:
    """The whole rule in words."""
    parts = [f"on {_either(rule.instruments)}"] if rule.instruments else []
    parts += _conditions(rule)
    return " ".join(parts) or "always"


def _unmet(rule: SponsorshipRule, case: Case, now: datetime) -> Iterator[str]:
    """What would have to be so, and is not."""
    if rule.experiments and case.experiment is not None and case.experiment not in rule.experiments:
        yield _in(rule)
    if rule.templates and case.template is not None and case.template not in rule.templates:
        yield _for_templates(rule)
    if rule.roles and case.role is not None and case.role not in rule.roles:
        yield _for_roles(rule)
    if rule.states and case.state is not None and case.state not in rule.states:
        yield _while(rule)
    if rule.valid_from is not None and now < rule.valid_from:
        yield _from(rule.valid_from)
    if rule.valid_until is not None and now >= rule.valid_until:
        yield _until(rule.valid_until)


def _conditions(rule: SponsorshipRule) -> Iterator[str]:
    if rule.experiments:
        yield _in(rule)
    if rule.templates:
        yield _for_templates(rule)
    if rule.roles:
        yield _for_roles(rule)
    if rule.states:
        yield _while(rule)
    if rule.valid_from is not None:
        yield _from(rule.valid_from)
    if rule.valid_until is not None:
        yield _until(rule.valid_until)


def _in(rule: SponsorshipRule) -> str:
    return f"in {_either(rule.experiments)}"


def _for_templates(rule: SponsorshipRule) -> str:
    return f"for the template {_either(rule.templates)}"


def _for_roles(rule: SponsorshipRule) -> str:
    return f"for {_either([ROLES[role] for role in rule.roles])}"


def _while(rule: SponsorshipRule) -> str:
    return f"while the experiment is {_either(rule.states)}"


def _from(moment: datetime) -> str:
    return f"from {moment:%Y-%m-%d %H:%M} UTC on"


def _until(moment: datetime) -> str:
    return f"until {moment:%Y-%m-%d %H:%M} UTC"


def _either(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else str(last)
