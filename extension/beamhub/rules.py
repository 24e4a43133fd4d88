"""Trigger rules as the staff of an instrument manage them."""

from __future__ import annotations

from collections.abc import Sequence

from beamhub import access, templates
from beamhub.access import Action, Principal
from beamhub.credits import require_usable
from beamhub.errors import Invalid, NotFound
from beamhub.events import emit
from beamhub.schemas import Page, Profile, Trigger, TriggerChange, TriggerCreate
from beamhub.store import Store, Transaction
from beamhub.templates import Catalogue


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
            rule = _require(tx, principal, rule_id)
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
            rule = _require(tx, principal, rule_id)
            tx.triggers.change(rule_id, deleted=True)
            _tell(tx, "trigger.deleted", rule, principal)

        await self._store.write(work)

    def _check(self, request: TriggerCreate) -> None:
        template = self._catalogue.get(request.template).template
        templates.validate(template, request.parameters)
        if request.profile not in self._profiles:
            raise Invalid(
                f"There is no profile {request.profile!r}.", f"Choose one of: {', '.join(self._profiles)}."
            )


def _require(tx: Transaction, principal: Principal, rule_id: int) -> Trigger:
    """The rule, if the principal operates its instrument."""
    rule = tx.triggers.get(rule_id)
    visible = access.visible_instruments(tx, principal)
    if rule is None or (visible is not None and rule.instrument not in visible):
        raise NotFound(
            f"There is no trigger rule {rule_id} here.", "Look it up in the instrument's list of rules."
        )
    access.require_instrument(tx, principal, rule.instrument, Action.OPERATE)
    return rule


def _tell(tx: Transaction, kind: str, rule: Trigger, principal: Principal) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=rule.instrument,
        subject=str(rule.id),
        data=rule.model_dump(mode="json", exclude={"id", "instrument"}),
    )
