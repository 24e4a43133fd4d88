"""Trigger rules as the staff of an instrument manage them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beamhub import access, templates
from beamhub.access import Action, Principal
from beamhub.credits import require_usable
from beamhub.errors import Invalid, NotFound
from beamhub.events import emit
from beamhub.expressions import Expression, ExpressionError
from beamhub.occasions import past, require_rule, trial
from beamhub.schemas import (
    Event,
    Page,
    Profile,
    Trigger,
    TriggerCall,
    TriggerChange,
    TriggerCreate,
    TriggerEvent,
    TriggerTrial,
    TriggerTryOut,
)
from beamhub.store import Store, Transaction
from beamhub.templates import Catalogue
from beamhub.triggers import JobRequest, Occasion, expression_of, judge


class Rules:
    """A rule is checked when it is written: its template is installed and takes these parameters, there is
    such a profile, and the sponsor may pay on this instrument."""

    def __init__(self, store: Store, catalogue: Catalogue, profiles: Sequence[Profile]) -> None:
        self._store = store
        self._catalogue = catalogue
        self._profiles = [profile.name for profile in profiles]

    async def list(
        self, principal: Principal, instrument: str, *, after: str | None = None, limit: int = 100
    ) -> Page[Trigger]:
        """Oldest first; for all who may know of the instrument."""

        def work(tx: Transaction) -> Page[Trigger]:
            access.require_instrument(tx, principal, instrument)
            return tx.triggers.list(instrument, after=after, limit=limit)

        return await self._store.read(work)

    async def create(self, principal: Principal, instrument: str, request: TriggerCreate) -> Trigger:
        def work(tx: Transaction) -> Trigger:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            self._check(request)
            require_usable(tx, principal, instrument, request.sponsor)
            rule = tx.triggers.create(instrument, request)
            _tell(tx, "trigger.created", rule, principal)
            return rule

        return await self._store.write(work)

    async def change(self, principal: Principal, rule_id: int, request: TriggerChange) -> Trigger:
        """Changes what is given. The rule's version grows."""
        changes = {
            name: value for name, value in request.model_dump(mode="json").items() if value is not None
        }

        def work(tx: Transaction) -> Trigger:
            rule = require_rule(tx, principal, rule_id)
            whole = rule.model_dump(mode="json") | changes
            self._check(
                TriggerCreate.model_validate({name: whole[name] for name in TriggerCreate.model_fields})
            )
            if "sponsor" in changes:
                require_usable(tx, principal, rule.instrument, changes["sponsor"])
            if not changes:
                return rule
            changed = tx.triggers.change(rule_id, **changes)
            _tell(tx, "trigger.changed", changed, principal)
            return changed

        return await self._store.write(work)

    async def delete(self, principal: Principal, rule_id: int) -> None:
        """The rule starts no more jobs; those that it has started stay."""

        def work(tx: Transaction) -> None:
            rule = require_rule(tx, principal, rule_id)
            tx.triggers.change(rule_id, deleted=True)
            _tell(tx, "trigger.deleted", rule, principal)

        await self._store.write(work)

    async def try_out(
        self, principal: Principal, instrument: str, request: TriggerTryOut
    ) -> Page[TriggerTrial]:
        """What the rule would have made of all that has happened to the last datasets, newest first. Nothing
        is started."""

        def work(tx: Transaction) -> Page[TriggerTrial]:
            access.require_instrument(tx, principal, instrument, Action.OPERATE)
            self._check(request.rule)
            rule = Trigger(id=0, instrument=instrument, version=0, **request.rule.model_dump(mode="json"))
            occasions = past(tx, instrument, rule.event, datasets=request.datasets)
            trials = {_occasion(rule, one): trial(tx, rule, one) for one in reversed(occasions)}
            return Page(items=[*reversed(trials.values())])

        return await self._store.read(work)

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
        for text in filter(None, [request.condition.expression, *computed.values()]):
            try:
                Expression.parse(text)
            except ExpressionError as error:
                raise Invalid(f"{text!r} can't be used: {error}.", "Correct the expression.") from error
        if request.profile not in self._profiles:
            raise Invalid(
                f"There is no profile {request.profile!r}.", f"Choose one of: {', '.join(self._profiles)}."
            )


def _occasion(rule: Trigger, one: Occasion) -> str:
    """Tells occasions apart: what is told twice starts one job."""
    judged = judge(one, rule)
    return judged.key if isinstance(judged, JobRequest) else f"{one.dataset.id} {judged}"


def _tell(tx: Transaction, kind: str, rule: Trigger, principal: Principal) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=rule.instrument,
        subject=str(rule.id),
        data=rule.model_dump(mode="json", exclude={"id", "instrument"}),
    )
