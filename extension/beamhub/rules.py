"""Trigger rules as people manage them: the staff those of their instrument, a PI what is different in an
experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beamhub import access, templates
from beamhub.access import Action, Principal
from beamhub.catalogue import Catalogue
from beamhub.errors import Conflict, Invalid, NotFound
from beamhub.events import emit
from beamhub.expressions import Expression, ExpressionError, expression_of
from beamhub.inputs import NEEDS
from beamhub.occasions import past, require_rule, trials, visible_rule
from beamhub.schemas import (
    Event,
    Experiment,
    Page,
    Profile,
    Template,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCreate,
    TriggerEvent,
    TriggerOverride,
    TriggerTrial,
    TriggerTryOut,
    TriggerVersion,
)
from beamhub.sponsors import require_usable
from beamhub.store import Store, Transaction


class Rules:
    """A rule is checked when it is written: its template is installed and takes these parameters, there is
    such a profile, and the sponsor may pay on this instrument for jobs of whoever writes it."""

    def __init__(self, store: Store, catalogue: Catalogue, profiles: Sequence[Profile]) -> None:
        self._store = store
        self._catalogue = catalogue
        self._profiles = [profile.name for profile in profiles]

    async def list(
        self, principal: Principal, instrument: str, *, after: str | None = None, limit: int = 100
    ) -> Page[Trigger]:
        """Those for all experiments, oldest first; for all who may know of the instrument."""

        def work(tx: Transaction) -> Page[Trigger]:
            access.require_instrument(tx, principal, instrument)
            return tx.triggers.list(instrument, after=after, limit=limit)

        return await self._store.read(work)

    async def applying(self, principal: Principal, experiment_id: str) -> Sequence[Trigger]:
        """The rules as they apply in an experiment: its instrument's, with what is different here, and its
        own."""

        def work(tx: Transaction) -> Sequence[Trigger]:
            experiment = access.require(tx, principal, experiment_id, Action.READ)
            return tx.triggers.applying(experiment.instrument, experiment.id)

        return await self._store.read(work)

    async def versions(
        self, principal: Principal, rule_id: int, *, after: str | None = None, limit: int = 100
    ) -> Page[TriggerVersion]:
        """All that the rule was, newest first, and what the experiments that the principal may see have had
        different."""

        def work(tx: Transaction) -> Page[TriggerVersion]:
            visible_rule(tx, principal, rule_id)
            only = access.visible_experiments(tx, principal)
            return tx.triggers.versions(rule_id, only=only, after=after, limit=limit)

        return await self._store.read(work)

    async def create(self, principal: Principal, instrument: str, request: TriggerCreate) -> Trigger:
        def work(tx: Transaction) -> Trigger:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            return self.add(tx, principal, instrument, None, request)

        return await self._store.write(work)

    async def create_for(self, principal: Principal, experiment_id: str, request: TriggerCreate) -> Trigger:
        """A rule for one experiment alone."""

        def work(tx: Transaction) -> Trigger:
            experiment = access.require_tuning(tx, principal, experiment_id, priority=request.priority)
            return self.add(tx, principal, experiment.instrument, experiment.id, request)

        return await self._store.write(work)

    def add(
        self,
        tx: Transaction,
        principal: Principal,
        instrument: str,
        experiment: str | None,
        request: TriggerCreate,
    ) -> Trigger:
        """A new rule, checked, for a principal who may have it. Raises Invalid, NotFound."""
        self._check(request)
        require_usable(tx, principal, instrument, request.sponsor)
        rule = tx.triggers.create(instrument, experiment, request, author=principal.name)
        _tell(tx, "trigger.created", rule, principal)
        return rule

    async def change(self, principal: Principal, rule_id: int, request: TriggerChange) -> Trigger:
        """Changes what is given. The rule's version grows."""
        return await self._store.write(lambda tx: self.edit(tx, principal, rule_id, request))

    def edit(self, tx: Transaction, principal: Principal, rule_id: int, request: TriggerChange) -> Trigger:
        """As `change`, within a transaction."""
        given = request.model_dump(mode="json", exclude_unset=True)
        changes = {name: value for name, value in given.items() if value is not None or name == "group"}
        rule = require_rule(tx, principal, rule_id)
        if rule.experiment is not None:
            access.require_tuning(tx, principal, rule.experiment, priority=changes.get("priority", 0))
        self._check(_written(rule, changes))
        if "sponsor" in changes:
            require_usable(tx, principal, rule.instrument, changes["sponsor"])
        if not changes:
            return rule
        changed = tx.triggers.change(rule_id, author=principal.name, **changes)
        _tell(tx, "trigger.changed", changed, principal)
        return changed

    async def override(
        self, principal: Principal, experiment_id: str, rule_id: int, request: TriggerOverride
    ) -> Trigger:
        """Has a rule of the instrument differ in an experiment; null is again as on the instrument."""
        given = request.model_dump(mode="json", exclude_unset=True)

        def work(tx: Transaction) -> Trigger:
            access.require(tx, principal, experiment_id, Action.READ)
            experiment = access.require_tuning(tx, principal, experiment_id)
            rule = _of_instrument(tx, experiment, rule_id)
            before = tx.triggers.override(rule_id, experiment.id).model_dump(mode="json", exclude_none=True)
            changes = {name: value for name, value in (before | given).items() if value is not None}
            touched = {name for name in given if before.get(name) != changes.get(name)}
            access.require_tuning(tx, principal, experiment_id, touched)
            if changes == before:
                return tx.triggers.get(rule_id, experiment.id) or rule
            self._check(_written(rule, changes))
            if given.get("sponsor") is not None:
                require_usable(tx, principal, experiment.instrument, given["sponsor"])
            changed = tx.triggers.change_for(rule_id, experiment.id, changes, author=principal.name)
            _tell(tx, "trigger.overridden", changed, principal, experiment.id)
            return changed

        return await self._store.write(work)

    async def delete(self, principal: Principal, rule_id: int) -> None:
        """The rule starts no more jobs; those that it has started stay."""

        def work(tx: Transaction) -> None:
            rule = require_rule(tx, principal, rule_id)
            tx.triggers.change(rule_id, author=principal.name, deleted=True)
            _tell(tx, "trigger.deleted", rule, principal)

        await self._store.write(work)

    async def try_out(
        self, principal: Principal, instrument: str, request: TriggerTryOut
    ) -> Page[TriggerTrial]:
        """What the rule would have made of all that has happened to the last datasets, newest first. Nothing
        is started."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            return self._try_out(tx, instrument, None, request)

        return await self._store.read(work)

    async def try_out_for(
        self, principal: Principal, experiment_id: str, request: TriggerTryOut
    ) -> Page[TriggerTrial]:
        """As `try_out`, in one experiment."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            experiment = access.require_tuning(tx, principal, experiment_id)
            return self._try_out(tx, experiment.instrument, experiment.id, request)

        return await self._store.read(work)

    def _try_out(
        self, tx: Transaction, instrument: str, experiment: str | None, request: TriggerTryOut
    ) -> Page[TriggerTrial]:
        self._check(request.rule)
        rule = Trigger(
            id=0, instrument=instrument, experiment=experiment, version=0, **request.rule.model_dump()
        )
        occasions = past(tx, rule.event, instrument, experiment, last=request.datasets)
        return Page(items=trials(tx, rule, occasions)[::-1])

    async def call(self, principal: Principal, instrument: str, request: TriggerCall) -> Event:
        """Something outside has happened to a dataset: rules that wait for it start their jobs."""

        def work(tx: Transaction) -> Event:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            dataset = tx.datasets.get(request.dataset)
            experiment = tx.experiments.get(dataset.experiment) if dataset else None
            if dataset is None or experiment is None or experiment.instrument != instrument:
                raise NotFound(
                    f"There is no dataset {request.dataset} of {instrument}.",
                    "Look it up in the list of an experiment's datasets.",
                )
            return emit(
                tx,
                TriggerEvent.EXTERNAL,
                actor=principal.name,
                instrument=instrument,
                experiment=experiment.id,
                subject=str(dataset.id),
                data={"name": request.name, "values": request.values},
            )

        return await self._store.write(work)

    def _check(self, request: TriggerCreate) -> None:
        template = self._catalogue.get(request.template).template
        computed = {
            name: text for name, value in request.parameters.items() if (text := expression_of(value))
        }
        known: Any = template.parameters.get("properties", {})
        # what is computed is checked when it is known; a wrong name, or what is no expression, is wrong now
        literal = {
            name: value
            for name, value in request.parameters.items()
            if name not in computed or name not in known
        }
        templates.validate(template, literal)
        _check_inputs(template, request)
        by = request.group.by if request.group else ""
        for text in filter(None, [request.condition.expression, by, *computed.values()]):
            try:
                Expression.parse(text)
            except ExpressionError as error:
                raise Invalid(f"{text!r} can't be used: {error}.", "Correct the expression.") from error
        if request.profile not in self._profiles:
            raise Invalid(
                f"There is no profile {request.profile!r}.", f"Choose one of: {', '.join(self._profiles)}."
            )


def _check_inputs(template: Template, request: TriggerCreate) -> None:
    """Whether what happens has something that the template can work on."""
    event = request.event
    if event is TriggerEvent.FILE_COMPLETE:
        possible = {"file"}
    elif event is TriggerEvent.EXPERIMENT_ACTIVATED:
        possible = set()
    else:
        possible = {"dataset", "datasets"} | (
            {"job", "jobs"} if event is TriggerEvent.JOB_FINISHED else set()
        )
    if template.inputs not in possible | {"none"}:
        raise Invalid(
            f"{template.title} works on {NEEDS[template.inputs]}, which {event} does not bring.",
            "Choose another event or another template.",
        )
    if request.group is not None and template.inputs not in possible & {"datasets", "jobs"}:
        raise Invalid(
            f"{template.title} works on {NEEDS[template.inputs]}: nothing can be gathered for it.",
            "Choose a template that takes several datasets or jobs, or have each start a job.",
        )


def _written(rule: Trigger, changes: dict[str, Any]) -> TriggerCreate:
    """What somebody would write who wanted the rule with these changes."""
    whole = rule.model_dump(mode="json") | changes
    return TriggerCreate.model_validate({name: whole[name] for name in TriggerCreate.model_fields})


def _of_instrument(tx: Transaction, experiment: Experiment, rule_id: int) -> Trigger:
    rule = tx.triggers.get(rule_id)
    if (
        rule is None
        or rule.instrument != experiment.instrument
        or rule.experiment not in (None, experiment.id)
    ):
        raise NotFound(
            f"There is no trigger rule {rule_id} in {experiment.id}.",
            "Look it up in the experiment's list of rules.",
        )
    if rule.experiment is not None:
        raise Conflict(f"Rule {rule_id} is the experiment's own.", "Change the rule itself.")
    return rule


def _tell(
    tx: Transaction, kind: str, rule: Trigger, principal: Principal, experiment: str | None = None
) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=rule.instrument,
        experiment=experiment or rule.experiment,
        subject=str(rule.id),
        data=rule.model_dump(mode="json", exclude={"id", "instrument"}),
    )
