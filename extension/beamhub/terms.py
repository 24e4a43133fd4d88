"""Terms: for which jobs a lab's licence pays. Pure: the service decides by it, the Cockpit shows it first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    unmet = [_unmet(rule, case, now) for rule in here]
    if not unmet or "" in unmet:
        return ""
    return f"The licence {licence.id} pays on {case.instrument} only {', or '.join(dict.fromkeys(unmet))}."


def describe(rule: SponsorshipRule) -> str:
    """The whole rule in words."""
    parts = [f"on {_either(rule.instruments)}"] if rule.instruments else []
    parts += [words for words, _ in _conditions(rule)]
    return " ".join(parts) or "always"


def _unmet(rule: SponsorshipRule, case: Case, now: datetime) -> str:
    """What would have to be so, and is not."""
    return " ".join(words for words, holds in _conditions(rule) if not holds(case, now))


def _conditions(rule: SponsorshipRule) -> Iterator[tuple[str, Callable[[Case, datetime], bool]]]:
    """Each in words, and whether it holds. Whatever a case leaves open may be as the rule wants it."""
    if rule.experiments:
        yield (
            f"in {_either(rule.experiments)}",
            lambda case, _: case.experiment is None or case.experiment in rule.experiments,
        )
    if rule.templates:
        yield (
            f"for the template {_either(rule.templates)}",
            lambda case, _: case.template is None or case.template in rule.templates,
        )
    if rule.roles:
        yield (
            f"for {_either([ROLES[role] for role in rule.roles])}",
            lambda case, _: case.role is None or case.role in rule.roles,
        )
    if rule.states:
        yield (
            f"while the experiment is {_either(rule.states)}",
            lambda case, _: case.state is None or case.state in rule.states,
        )
    if (begin := rule.valid_from) is not None:
        yield f"from {begin:%Y-%m-%d %H:%M} UTC on", lambda _, now: now >= begin
    if (end := rule.valid_until) is not None:
        yield f"until {end:%Y-%m-%d %H:%M} UTC", lambda _, now: now < end


def _either(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else str(last)
