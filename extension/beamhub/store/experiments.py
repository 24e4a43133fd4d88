"""Rows of experiments and of their members."""

from __future__ import annotations

import functools
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, select, update

from beamhub.schemas import Experiment, ExperimentState, Member, Page, Role
from beamhub.store.pages import paginate
from beamhub.store.tables import experiments, instruments, members


class Experiments:
    """Experiments come out with an empty `folder`: the store does not know where the data are."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, experiment: str) -> Experiment | None:
        row = self._connection.execute(_one(), {"id": experiment}).first()
        return _experiment(row) if row else None

    def list(
        self,
        *,
        only: frozenset[str] | None,
        instrument: str | None = None,
        state: ExperimentState | None = None,
        after: str | None,
        limit: int,
    ) -> Page[Experiment]:
        """Newest first; `only` restricts to these ids (None: all)."""
        query = _query()
        if only is not None:
            query = query.where(experiments.c.id.in_(only))
        if instrument is not None:
            query = query.where(experiments.c.instrument == instrument)
        if state is not None:
            query = query.where(experiments.c.state == state)
        order = [experiments.c.created, experiments.c.id]
        return paginate(
            self._connection, query, order, _experiment, after=after, limit=limit, descending=True
        )

    def of_instruments(self, ids: Collection[str]) -> frozenset[str]:
        """Ids of the experiments of these instruments."""
        query = select(experiments.c.id).where(experiments.c.instrument.in_(ids))
        return frozenset(self._connection.scalars(query))

    def create(self, instrument: str, title: str, pi: str) -> str:
        """A new planned experiment; returns its id `<instrument>-<year>-<5 digits>`, numbered by year."""
        now = datetime.now(UTC)
        prefix = f"{instrument}-{now.year}-"
        last = self._connection.scalar(
            select(func.max(experiments.c.id)).where(
                experiments.c.instrument == instrument, experiments.c.id.startswith(prefix, autoescape=True)
            )
        )
        id_ = f"{prefix}{int(last.removeprefix(prefix)) + 1 if last else 1:05d}"
        self._connection.execute(
            insert(experiments).values(
                id=id_, instrument=instrument, title=title, pi=pi, state=ExperimentState.PLANNED, created=now
            )
        )
        return id_

    def change(self, experiment: str, **values: Any) -> None:
        """Sets columns: title, state, started, ended, quota."""
        self._connection.execute(update(experiments).where(experiments.c.id == experiment).values(**values))


class Members:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, experiment: str, user: str) -> Member | None:
        query = select(members).where(members.c.experiment == experiment, members.c.user == user)
        row = self._connection.execute(query).first()
        return Member.model_validate(row._mapping) if row else None

    def list(self, experiment: str, *, after: str | None, limit: int) -> Page[Member]:
        """By name."""
        query = select(members).where(members.c.experiment == experiment)
        return paginate(self._connection, query, [members.c.user], _member, after=after, limit=limit)

    def experiments_of(self, user: str) -> frozenset[str]:
        return frozenset(self._connection.scalars(select(members.c.experiment).where(members.c.user == user)))

    def instruments_of(self, user: str) -> frozenset[str]:
        """Ids of the instruments that this user has an experiment on."""
        query = select(experiments.c.instrument).join(members, members.c.experiment == experiments.c.id)
        return frozenset(self._connection.scalars(query.where(members.c.user == user).distinct()))

    def add(self, experiment: str, user: str, role: Role, added_by: str) -> None:
        self._connection.execute(
            insert(members).values(
                experiment=experiment, user=user, role=role, added=datetime.now(UTC), added_by=added_by
            )
        )

    def change(self, experiment: str, user: str, role: Role) -> None:
        self._connection.execute(
            update(members)
            .where(members.c.experiment == experiment, members.c.user == user)
            .values(role=role)
        )

    def remove(self, experiment: str, user: str) -> None:
        self._connection.execute(
            delete(members).where(members.c.experiment == experiment, members.c.user == user)
        )


@functools.cache
def _one() -> Select[Any]:
    return _query().where(experiments.c.id == bindparam("id"))


def _query() -> Select[Any]:
    active = (instruments.c.active_experiment == experiments.c.id).label("active")
    return select(experiments, active).join(instruments, instruments.c.id == experiments.c.instrument)


def _experiment(row: Row[Any]) -> Experiment:
    values = row._mapping
    return Experiment.model_validate({**values, "active": bool(values["active"]), "folder": ""})


def _member(row: Row[Any]) -> Member:
    return Member.model_validate(row._mapping)
