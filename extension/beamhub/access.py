"""Who may do what: one table of permissions, and the only functions that answer the question.

Somebody who may not even read an experiment is told that there is none: its existence is hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from beamhub.errors import Forbidden, NotFound
from beamhub.events import Scope
from beamhub.schemas import Dataset, Experiment, ExperimentState, Instrument, Job, Role
from beamhub.store import Transaction


@dataclass(frozen=True)
class Principal:
    """Who asks: a user of the hub, a service of the facility, or an instrument's agent."""

    name: str
    kind: Literal["user", "service", "instrument"]
    operator: bool = False  # a hub administrator or a service of the facility
    instrument: str | None = None  # whose agent it is


SYSTEM = Principal(name="beamhub", kind="service", operator=True)  # the service itself


METRICS = Principal(name="metrics", kind="service")  # whoever has the metrics token; may do nothing else


class Action(StrEnum):
    READ = "experiment.read"
    RUN_JOB = "job.run"
    CANCEL_JOB = "job.cancel"
    MANAGE_MEMBERS = "members.manage"
    EDIT = "experiment.edit"
    TUNE_RULES = "rules.tune"
    EDIT_RULES = "rules.edit"
    UPLOAD_SHARED = "files.upload"
    OPEN_SESSION = "session.open"
    UPLOAD_RAW = "raw.upload"
    OPERATE = "instrument.operate"
    SEE_LAB_LICENCES = "licences.read"
    SET_TERMS = "licences.terms"
    TOP_UP = "licences.grant"
    MANAGE_LICENCES = "licences.manage"
    ADMINISTER = "facility.administer"


Standing = Role | Literal["operator", "instrument"]

_VIEW = frozenset({Action.READ})
_WORK = _VIEW | {Action.RUN_JOB, Action.CANCEL_JOB, Action.UPLOAD_SHARED, Action.OPEN_SESSION}
_LEAD = _WORK | {Action.MANAGE_MEMBERS, Action.EDIT, Action.TUNE_RULES}
_STAFF = _LEAD | {Action.EDIT_RULES, Action.OPERATE, Action.SEE_LAB_LICENCES, Action.SET_TERMS, Action.TOP_UP}

PERMISSIONS: Mapping[Standing, frozenset[Action]] = {
    Role.VIEWER: _VIEW,
    Role.COLLABORATOR: _WORK,
    Role.PI: _LEAD,
    Role.STAFF: _STAFF,
    "operator": frozenset(Action) - {Action.UPLOAD_RAW},
    "instrument": frozenset({Action.UPLOAD_RAW}),
}

# What may be changed, for one experiment, of the rules of its instrument. Who may tune them may also add
# rules for this experiment alone: they start nothing that its people could not start by hand.
RULE_FIELDS: Mapping[Action, frozenset[str]] = {
    Action.TUNE_RULES: frozenset({"enabled", "parameters", "sponsor"}),
    Action.EDIT_RULES: frozenset({"enabled", "parameters", "sponsor", "template", "profile", "priority"}),
}

# A closed experiment is read-only; those who look after the instrument can still mend and reopen it.
_WHEN_CLOSED = {
    Action.READ,
    Action.OPERATE,
    Action.SEE_LAB_LICENCES,
    Action.SET_TERMS,
    Action.TOP_UP,
    Action.MANAGE_LICENCES,
    Action.ADMINISTER,
}
_MENDING = {Action.EDIT, Action.MANAGE_MEMBERS}


def role_in(tx: Transaction, principal: Principal, experiment_id: str) -> Role | None:
    """STAFF for staff of the experiment's instrument, a member's role, or None."""
    experiment = tx.experiments.get(experiment_id)
    return _role(tx, principal, experiment) if experiment else None


def require(tx: Transaction, principal: Principal, experiment_id: str, action: Action) -> Experiment:
    """The experiment, if the principal may do this there; `role` and `actions` are the principal's.

    Raises NotFound for somebody who may not even know of it, Forbidden for somebody who may.
    """
    experiment = tx.experiments.get(experiment_id)
    shown = as_seen(tx, principal, experiment) if experiment else None
    if shown is None or not {Action.READ, action} & set(shown.actions):
        raise NotFound(
            f"There is no experiment {experiment_id!r} here.", "Check its id, or ask its PI to invite you."
        )
    if action not in shown.actions:
        raise _forbidden(principal, shown, action)
    return shown


def require_dataset(tx: Transaction, principal: Principal, id_: int) -> Dataset:
    """The dataset, if the principal may see it. Raises NotFound."""
    dataset = tx.datasets.get(id_)
    try:
        if dataset is not None:
            require(tx, principal, dataset.experiment, Action.READ)
            return dataset
    except NotFound:
        pass
    raise NotFound(f"There is no dataset {id_} here.", "Look for it in the experiment's list of datasets.")


def as_seen(tx: Transaction, principal: Principal, experiment: Experiment) -> Experiment:
    """The experiment with the principal's `role` and all `actions` that are possible as things are now."""
    role = _role(tx, principal, experiment)
    standing = _standing(principal, experiment, role)
    allowed = PERMISSIONS[standing] if standing else frozenset()
    if experiment.state is ExperimentState.CLOSED:
        allowed &= _WHEN_CLOSED | (_MENDING if standing in ("operator", Role.STAFF) else set())
    return experiment.model_copy(update={"role": role, "actions": sorted(allowed)})


def visible_experiments(tx: Transaction, principal: Principal) -> frozenset[str] | None:
    """Ids of the experiments that this principal may read; None: all."""
    if principal.operator:
        return None
    if principal.kind != "user":
        return frozenset()
    staffed = tx.experiments.of_instruments(tx.instruments.staffed_by(principal.name))
    return staffed | tx.members.experiments_of(principal.name)


def visible_instruments(tx: Transaction, principal: Principal) -> frozenset[str] | None:
    """Ids of the instruments that this principal may know of: those it staffs, is, or has experiments on."""
    if principal.operator:
        return None
    if principal.instrument is not None:
        return frozenset({principal.instrument})
    if principal.kind != "user":
        return frozenset()
    return staff_of(tx, principal) | tx.members.instruments_of(principal.name)


def staff_of(tx: Transaction, principal: Principal) -> frozenset[str]:
    """Ids of the instruments whose staff this principal belongs to."""
    return tx.instruments.staffed_by(principal.name) if principal.kind == "user" else frozenset()


def scope(tx: Transaction, principal: Principal) -> Scope:
    """Which events this principal may see now."""
    return Scope(visible_experiments(tx, principal), staff_of(tx, principal))


def may_rank(tx: Transaction, principal: Principal, job: Job, priority: int) -> bool:
    """Whether the principal may give a job of an experiment that it works in this priority: whoever started
    it may lower it, those who look after the instrument may do anything."""
    if principal.operator or role_in(tx, principal, job.experiment) is Role.STAFF:
        return True
    return job.launched_by == principal.name and priority <= job.priority


def require_instrument(
    tx: Transaction, principal: Principal, instrument_id: str, action: Action | None = None
) -> Instrument:
    """The instrument, if the principal may know of it and, where an action is given, may do this with it."""
    instrument = tx.instruments.get(instrument_id)
    visible = visible_instruments(tx, principal)
    if instrument is None or (visible is not None and instrument_id not in visible):
        raise NotFound(f"There is no instrument {instrument_id!r} here.", "Check its id.")
    if action is not None and action not in _instrument_actions(tx, principal, instrument):
        raise Forbidden(
            f"{principal.name} may not do this on {instrument.title} ({action}).",
            "Its staff and the facility's operators may: ask one of them.",
        )
    return instrument


def require_tuning(
    tx: Transaction, principal: Principal, experiment_id: str, fields: Collection[str] = (), priority: int = 0
) -> Experiment:
    """The experiment, if the principal may change these fields of trigger rules there, and have its jobs
    started with this priority."""
    experiment = require(tx, principal, experiment_id, Action.TUNE_RULES)
    if priority > 0 or not set(fields) <= RULE_FIELDS[Action.TUNE_RULES]:
        require(tx, principal, experiment_id, Action.EDIT_RULES)
    return experiment


def require_operator(principal: Principal, action: Action = Action.ADMINISTER) -> None:
    """Raises Forbidden for everybody but the facility's operators."""
    if not principal.operator or action not in PERMISSIONS["operator"]:
        raise Forbidden(
            f"{principal.name} may not do this ({action}).", "Ask an operator: an administrator of the hub."
        )


def require_metrics(principal: Principal) -> None:
    """Raises Forbidden for everybody but operators and whoever has the metrics token."""
    if principal != METRICS:
        require_operator(principal)


def _instrument_actions(tx: Transaction, principal: Principal, instrument: Instrument) -> frozenset[Action]:
    if principal.operator:
        return PERMISSIONS["operator"]
    if principal.instrument == instrument.id:
        return PERMISSIONS["instrument"]
    return PERMISSIONS[Role.STAFF] if instrument.id in staff_of(tx, principal) else frozenset()


def _role(tx: Transaction, principal: Principal, experiment: Experiment) -> Role | None:
    if principal.kind != "user":
        return None
    if experiment.instrument in staff_of(tx, principal):
        return Role.STAFF
    member = tx.members.get(experiment.id, principal.name)
    return member.role if member else None


def _standing(principal: Principal, experiment: Experiment, role: Role | None) -> Standing | None:
    """The line of the table that counts for a principal with this role."""
    if principal.operator:
        return "operator"
    if principal.instrument is not None:
        return "instrument" if principal.instrument == experiment.instrument else None
    return role


def _forbidden(principal: Principal, experiment: Experiment, action: Action) -> Forbidden:
    standing = _standing(principal, experiment, experiment.role)
    if standing is not None and action in PERMISSIONS[standing]:
        return Forbidden(
            f"The experiment {experiment.id} is closed, so this cannot be done ({action}).",
            "Ask the staff of its instrument to reopen it.",
        )
    return Forbidden(
        f"{principal.name} may not do this in {experiment.id} ({action}).", "Ask its PI for another role."
    )
