"""Rows of trigger rules: as they are, as experiments have changed them, and all that they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update

from beamhub.schemas import Page, Trigger, TriggerCreate, TriggerOverride, TriggerVersion
from beamhub.store.pages import paginate
from beamhub.store.tables import trigger_overrides, trigger_versions, triggers


class Triggers:
    """A rule that has been deleted stays in the table, for the jobs that it started, and is found nowhere.

    The versions of a rule are numbered, be they of the rule itself or of what an experiment has changed of
    it: as it applies in an experiment, its version is the newer one of the two.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, rule: int, experiment: str | None = None) -> Trigger | None:
        """As it is, or as it applies in an experiment."""
        query = select(triggers).where(triggers.c.id == rule, triggers.c.deleted.is_(False))
        row = self._connection.execute(query).first()
        if row is None:
            return None
        return _applied([_trigger(row)], self._overrides(row.instrument, experiment))[0]

    def list(self, instrument: str, *, after: str | None, limit: int) -> Page[Trigger]:
        """The rules for all experiments of an instrument, oldest first."""
        query = select(triggers).where(
            triggers.c.instrument == instrument,
            triggers.c.experiment.is_(None),
            triggers.c.deleted.is_(False),
        )
        return paginate(self._connection, query, [triggers.c.id], _trigger, after=after, limit=limit)

    def applying(self, instrument: str, experiment: str | None) -> Sequence[Trigger]:
        """The rules as they apply in an experiment of an instrument, also those that are switched off, oldest
        first."""
        query = select(triggers).where(
            triggers.c.instrument == instrument,
            or_(triggers.c.experiment.is_(None), triggers.c.experiment == experiment),
            triggers.c.deleted.is_(False),
        )
        rules = [_trigger(row) for row in self._connection.execute(query.order_by(triggers.c.id))]
        return _applied(rules, self._overrides(instrument, experiment))

    def override(self, rule: int, experiment: str) -> TriggerOverride:
        """What the experiment has changed of this rule."""
        changes = self._connection.scalar(
            select(trigger_overrides.c.changes).where(
                trigger_overrides.c.trigger == rule, trigger_overrides.c.experiment == experiment
            )
        )
        return TriggerOverride.model_validate(changes or {})

    def versions(
        self, rule: int, *, only: frozenset[str] | None, after: str | None, limit: int
    ) -> Page[TriggerVersion]:
        """All that the rule was, newest first; `only` restricts to what these experiments have changed for
        themselves (None: all)."""
        table = trigger_versions
        query = select(table).where(table.c.trigger == rule)
        if only is not None:
            query = query.where(or_(table.c.experiment.is_(None), table.c.experiment.in_(only)))
        order = [table.c.version]
        return paginate(self._connection, query, order, _version, after=after, limit=limit, descending=True)

    def stamp(self) -> tuple[int, datetime] | None:
        """Another one whenever any rule has been changed."""
        query = select(trigger_versions.c.id, trigger_versions.c.time)
        row = self._connection.execute(query.order_by(trigger_versions.c.id.desc()).limit(1)).first()
        return (row.id, row.time) if row else None

    def create(
        self, instrument: str, experiment: str | None, request: TriggerCreate, *, author: str
    ) -> Trigger:
        values = request.model_dump(mode="json")
        row = self._connection.execute(
            insert(triggers)
            .values(instrument=instrument, experiment=experiment, version=1, deleted=False, **values)
            .returning(triggers)
        ).one()
        self._keep(row.id, 1, author, None, "created", values)
        return _trigger(row)

    def change(self, rule: int, *, author: str, **values: Any) -> Trigger:
        """Sets columns, which makes a new version."""
        row = self._connection.execute(
            update(triggers)
            .where(triggers.c.id == rule)
            .values(version=self._next(rule), **values)
            .returning(triggers)
        ).one()
        changed = _trigger(row)
        data = changed.model_dump(mode="json", include=set(TriggerCreate.model_fields))
        change = "deleted" if row.deleted else "changed"
        self._keep(rule, row.version, author, None, change, data)
        return changed

    def change_for(
        self, rule: int, experiment: str, changes: Mapping[str, JsonValue], *, author: str
    ) -> Trigger:
        """Has the rule differ in this experiment in just this, which makes a new version."""
        table = trigger_overrides
        version = self._next(rule)
        self._connection.execute(
            delete(table).where(table.c.trigger == rule, table.c.experiment == experiment)
        )
        # also without a change any more: what the rule has started before is of an older version
        self._connection.execute(
            insert(table).values(trigger=rule, experiment=experiment, version=version, changes=dict(changes))
        )
        self._keep(rule, version, author, experiment, "changed", changes)
        changed = self.get(rule, experiment)
        assert changed is not None  # noqa: S101 (its override has just been written)
        return changed

    def _overrides(self, instrument: str, experiment: str | None) -> Mapping[int, Row[Any]]:
        if experiment is None:
            return {}
        query = (
            select(trigger_overrides)
            .join(triggers, triggers.c.id == trigger_overrides.c.trigger)
            .where(triggers.c.instrument == instrument, trigger_overrides.c.experiment == experiment)
        )
        return {row.trigger: row for row in self._connection.execute(query)}

    def _next(self, rule: int) -> int:
        newest = select(func.max(trigger_versions.c.version)).where(trigger_versions.c.trigger == rule)
        return (self._connection.scalar(newest) or 0) + 1

    def _keep(
        self,
        rule: int,
        version: int,
        author: str,
        experiment: str | None,
        change: str,
        data: Mapping[str, JsonValue],
    ) -> None:
        self._connection.execute(
            insert(trigger_versions).values(
                trigger=rule,
                version=version,
                time=datetime.now(UTC),
                author=author,
                experiment=experiment,
                change=change,
                data=dict(data),
            )
        )


def _applied(rules: Sequence[Trigger], overrides: Mapping[int, Row[Any]]) -> list[Trigger]:
    """The rules with what an experiment has changed of them."""
    return [
        rule.model_copy(
            update={
                **overrides[rule.id].changes,
                "version": max(rule.version, overrides[rule.id].version),
                "changed": sorted(overrides[rule.id].changes),
            }
        )
        if rule.id in overrides
        else rule
        for rule in rules
    ]


def _trigger(row: Row[Any]) -> Trigger:
    return Trigger.model_validate(row._mapping)


def _version(row: Row[Any]) -> TriggerVersion:
    return TriggerVersion.model_validate({**row._mapping, "rule": row.trigger})
