"""Instruments and experiments: who works where, on what, with whom."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from beamhub import access, folders
from beamhub.access import Action, Principal
from beamhub.errors import Conflict, Invalid
from beamhub.events import emit
from beamhub.schemas import (
    Experiment,
    ExperimentChange,
    ExperimentCreate,
    ExperimentState,
    File,
    Instrument,
    InstrumentChange,
    InstrumentCreate,
    InstrumentToken,
    Me,
    Member,
    MemberCreate,
    Page,
    Role,
)
from beamhub.store import Store, Transaction

State = ExperimentState
TRANSITIONS = {
    State.PLANNED: {State.RUNNING, State.CLOSED},
    State.RUNNING: {State.PROCESSING, State.CLOSED},
    State.PROCESSING: {State.RUNNING, State.CLOSED},
    State.CLOSED: {State.PROCESSING},
}


class Experiments:
    """Instruments, experiments, their members and files. `data_dir` holds one folder for each experiment."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._store = store
        self._data_dir = data_dir

    async def me(self, principal: Principal) -> Me:
        """Who the caller is."""
        staffed = await self._store.read(lambda tx: access.staff_of(tx, principal))
        return Me(
            name=principal.name,
            kind=principal.kind,
            operator=principal.operator,
            staff_of=sorted(staffed),
        )

    # --- instruments ---

    async def create_instrument(self, principal: Principal, request: InstrumentCreate) -> Instrument:
        def work(tx: Transaction) -> Instrument:
            access.require_operator(principal)
            if tx.instruments.get(request.id):
                raise Conflict(
                    f"There is an instrument {request.id!r} already.", "Choose another id, or change it."
                )
            tx.instruments.create(request)
            emit(tx, "instrument.created", actor=principal.name, instrument=request.id, subject=request.id)
            return access.require_instrument(tx, principal, request.id)

        return await self._store.write(work)

    async def change_instrument(
        self, principal: Principal, id_: str, request: InstrumentChange
    ) -> Instrument:
        """Changes what is given. An experiment made active is running; only operators change staff."""
        given = request.model_dump(exclude_unset=True)

        def work(tx: Transaction) -> Instrument:
            instrument = access.require_instrument(tx, principal, id_, Action.OPERATE)
            if "staff" in given:
                access.require_operator(principal)
            for name in ("title", "staff", "automation"):
                if name in given and given[name] is None:
                    raise Invalid(f"{name} can't be null.", "Leave it out to keep it as it is.")
            if "active_experiment" in given:
                _activate(tx, principal, instrument, given["active_experiment"])
            values = {name: value for name, value in given.items() if name != "active_experiment"}
            changed = {name: value for name, value in values.items() if value != getattr(instrument, name)}
            if changed:
                tx.instruments.change(id_, **changed)
                emit(
                    tx, "instrument.changed", actor=principal.name, instrument=id_, subject=id_, data=changed
                )
            return access.require_instrument(tx, principal, id_)

        return await self._store.write(work)

    async def rotate_token(self, principal: Principal, id_: str) -> InstrumentToken:
        """A new token for the instrument's agent; the one before stops working. It can't be shown again."""
        token = f"bhi_{secrets.token_urlsafe(32)}"

        def work(tx: Transaction) -> None:
            access.require_instrument(tx, principal, id_, Action.OPERATE)
            tx.instruments.change(id_, token_digest=_digest(token))
            emit(
                tx,
                "instrument.changed",
                actor=principal.name,
                instrument=id_,
                subject=id_,
                data={"token": "new"},
            )

        await self._store.write(work)
        return InstrumentToken(instrument=id_, token=token)

    async def instrument_by_token(self, token: str) -> Principal | None:
        """The agent that this token belongs to, if it is one's."""
        found = await self._store.read(lambda tx: tx.instruments.by_token(_digest(token)))
        return Principal(f"instrument:{found}", "instrument", instrument=found) if found else None

    async def instruments(
        self, principal: Principal, *, after: str | None = None, limit: int = 100
    ) -> Page[Instrument]:
        def work(tx: Transaction) -> Page[Instrument]:
            page = tx.instruments.list(
                only=access.visible_instruments(tx, principal), after=after, limit=limit
            )
            return Page[Instrument](items=[_shown(tx, principal, i) for i in page.items], next=page.next)

        return await self._store.read(work)

    async def instrument(self, principal: Principal, id_: str) -> Instrument:
        return await self._store.read(
            lambda tx: _shown(tx, principal, access.require_instrument(tx, principal, id_))
        )

    # --- experiments ---

    async def create(self, principal: Principal, request: ExperimentCreate) -> Experiment:
        """A planned experiment with its folders and its PI."""

        def work(tx: Transaction) -> Experiment:
            access.require_instrument(tx, principal, request.instrument, Action.OPERATE)
            id_ = tx.experiments.create(request.instrument, request.title, request.pi)
            tx.members.add(id_, request.pi, Role.PI, principal.name)
            for area in (folders.RAW, folders.PROCESSED, folders.SHARED, folders.INCOMING):
                with folders.folder(self._data_dir, PurePosixPath(id_, area), create=True):
                    pass
            experiment = access.require(tx, principal, id_, Action.READ)
            _emit(tx, principal, experiment, "experiment.created", data={"title": request.title})
            _emit(tx, principal, experiment, "member.added", request.pi, {"role": Role.PI})
            return self._shown(experiment)

        return await self._store.write(work)

    async def list(
        self,
        principal: Principal,
        *,
        instrument: str | None = None,
        state: ExperimentState | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page[Experiment]:
        """Those the principal may read, newest first."""

        def work(tx: Transaction) -> Page[Experiment]:
            visible = access.visible_experiments(tx, principal)
            page = tx.experiments.list(
                only=visible, instrument=instrument, state=state, after=after, limit=limit
            )
            items = [self._shown(access.as_seen(tx, principal, found)) for found in page.items]
            return Page[Experiment](items=items, next=page.next)

        return await self._store.read(work)

    async def get(self, principal: Principal, id_: str) -> Experiment:
        return await self._store.read(lambda tx: self._shown(access.require(tx, principal, id_, Action.READ)))

    async def change(self, principal: Principal, id_: str, request: ExperimentChange) -> Experiment:
        """Changes what is given. One that stops running is no longer its instrument's active one."""
        given = request.model_dump(exclude_none=True, exclude={"reason"})
        why = {"reason": request.reason} if request.reason else {}
        if "quota" in request.model_fields_set:
            given["quota"] = request.quota

        def work(tx: Transaction) -> Experiment:
            experiment = access.require(tx, principal, id_, Action.EDIT)
            if "quota" in given:
                access.require(tx, principal, id_, Action.OPERATE)
            changed = {name: value for name, value in given.items() if value != getattr(experiment, name)}
            if state := changed.get("state"):
                _check_transition(experiment, state)
                if experiment.active and state is not State.RUNNING:
                    _deactivate(tx, principal, experiment)
                changed.update(_moments(experiment, state))
            if changed:
                tx.experiments.change(id_, **changed)
                _emit(
                    tx,
                    principal,
                    experiment,
                    "experiment.changed",
                    data={k: changed[k] for k in given if k in changed} | why,
                )
            return self._shown(access.require(tx, principal, id_, Action.READ))

        return await self._store.write(work)

    # --- members ---

    async def members(
        self, principal: Principal, id_: str, *, after: str | None = None, limit: int = 100
    ) -> Page[Member]:
        def work(tx: Transaction) -> Page[Member]:
            access.require(tx, principal, id_, Action.READ)
            return tx.members.list(id_, after=after, limit=limit)

        return await self._store.read(work)

    async def add_member(self, principal: Principal, id_: str, request: MemberCreate) -> Member:
        """Adds a member, or gives a member another role."""

        def work(tx: Transaction) -> Member:
            experiment = access.require(tx, principal, id_, Action.MANAGE_MEMBERS)
            member = tx.members.get(id_, request.user)
            if member and request.user == experiment.pi and request.role is not Role.PI:
                raise Conflict(
                    f"{request.user} is the PI of {id_}.", "An experiment keeps the PI it was made for."
                )
            if member is None:
                tx.members.add(id_, request.user, request.role, principal.name)
            elif member.role is not request.role:
                tx.members.change(id_, request.user, request.role)
            if member is None or member.role is not request.role:
                _emit(tx, principal, experiment, "member.added", request.user, {"role": request.role})
            added = tx.members.get(id_, request.user)
            assert added is not None  # noqa: S101 (the same transaction has just written it)
            return added

        return await self._store.write(work)

    async def remove_member(self, principal: Principal, id_: str, user: str) -> None:
        """Takes a membership away; everybody may take their own. Does nothing if there is none."""

        def work(tx: Transaction) -> None:
            own = principal.kind == "user" and principal.name == user
            experiment = access.require(tx, principal, id_, Action.READ if own else Action.MANAGE_MEMBERS)
            if user == experiment.pi:
                raise Conflict(f"{user} is the PI of {id_}.", "An experiment keeps the PI it was made for.")
            if tx.members.get(id_, user):
                tx.members.remove(id_, user)
                _emit(tx, principal, experiment, "member.removed", user)

        await self._store.write(work)

    # --- files ---

    async def files(
        self,
        principal: Principal,
        id_: str,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int = 1000,
    ) -> Page[File]:
        """Published files below the folder `prefix`, by path; `after` is the path of the last one seen."""
        await self._store.read(lambda tx: access.require(tx, principal, id_, Action.READ))
        below = folders.parse(prefix) if prefix else PurePosixPath()
        root = self._data_dir / id_

        def look() -> list[File]:
            found = sorted(folders.walk(root, below), key=lambda file: file.path)
            return [file for file in found if after is None or file.path > after]

        found = await asyncio.to_thread(look)
        page = found[: max(1, limit)]
        uploads = await self._store.read(lambda tx: tx.uploads.published(id_, [file.path for file in page]))
        items = [
            file.model_copy(update={"digest": uploads[file.path].digest}) if file.path in uploads else file
            for file in page
        ]
        return Page[File](items=items, next=page[-1].path if len(found) > len(page) else None)

    async def open_file(self, principal: Principal, id_: str, path: str) -> BufferedReader:
        """A file of the experiment, opened for reading; the caller closes it.

        Opened, and not named, because members' sessions could put a link in its place before it is read.
        """
        await self._store.read(lambda tx: access.require(tx, principal, id_, Action.READ))
        return await asyncio.to_thread(folders.open_file, self._data_dir / id_, folders.parse(path))

    def _shown(self, experiment: Experiment) -> Experiment:
        return experiment.model_copy(update={"folder": str(self._data_dir / experiment.id)})


def end_beamtime(tx: Transaction, principal: Principal, experiment: Experiment) -> None:
    """A running experiment is only processed from now on: nothing more arrives from its instrument."""
    if experiment.active:
        _deactivate(tx, principal, experiment)
    tx.experiments.change(experiment.id, state=State.PROCESSING, **_moments(experiment, State.PROCESSING))
    _emit(tx, principal, experiment, "experiment.changed", data={"state": State.PROCESSING})


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _shown(tx: Transaction, principal: Principal, instrument: Instrument) -> Instrument:
    """The instrument as this principal may see it: without what others measure there just now."""
    visible = access.visible_experiments(tx, principal)
    if (
        visible is None
        or instrument.id in access.staff_of(tx, principal)
        or principal.instrument == instrument.id
    ):
        return instrument
    agent, active = instrument.agent, instrument.active_experiment
    if active is not None and active in visible:
        return instrument.model_copy(update={"agent": agent.as_seen_in(active) if agent else None})
    nothing: dict[str, list[str]] = {"current": [], "errors": [], "file_errors": []}
    agent = agent.model_copy(update=nothing) if agent else None
    return instrument.model_copy(update={"active_experiment": None, "agent": agent, "uploads_paused": None})


def _activate(tx: Transaction, principal: Principal, instrument: Instrument, id_: str | None) -> None:
    if id_ == instrument.active_experiment:
        return
    experiment = access.require(tx, principal, id_, Action.READ) if id_ is not None else None
    if experiment and experiment.instrument != instrument.id:
        raise Conflict(
            f"{experiment.id} is an experiment of {experiment.instrument}, not of {instrument.id}.",
            f"Choose one of {instrument.id}, or create one.",
        )
    if experiment and experiment.state is State.CLOSED:
        raise Conflict(f"{experiment.id} is closed.", "Reopen it first (state: processing).")
    if instrument.active_experiment is not None:
        before = access.require(tx, access.SYSTEM, instrument.active_experiment, Action.READ)
        _deactivate(tx, principal, before)
    if experiment is None:
        return
    tx.instruments.change(instrument.id, active_experiment=experiment.id)
    tx.finalisations.outdate(experiment.id, f"{experiment.id} has been active again.")
    if experiment.state is not State.RUNNING:
        tx.experiments.change(experiment.id, state=State.RUNNING, **_moments(experiment, State.RUNNING))
        _emit(tx, principal, experiment, "experiment.changed", data={"state": State.RUNNING})
    _emit(tx, principal, experiment, "experiment.activated")


def _deactivate(tx: Transaction, principal: Principal, experiment: Experiment) -> None:
    tx.instruments.change(experiment.instrument, active_experiment=None)
    _emit(tx, principal, experiment, "experiment.deactivated")


def _check_transition(experiment: Experiment, state: ExperimentState) -> None:
    if state not in TRANSITIONS[experiment.state]:
        possible = ", ".join(sorted(TRANSITIONS[experiment.state]))
        raise Conflict(
            f"{experiment.id} is {experiment.state} and can't become {state}.",
            f"From here it can become: {possible}.",
        )


def _moments(experiment: Experiment, state: ExperimentState) -> dict[str, Any]:
    """The columns that tell since when."""
    if state is State.RUNNING:
        return {"started": experiment.started or datetime.now(UTC), "ended": None}
    return {"ended": experiment.ended or datetime.now(UTC)}


def _emit(
    tx: Transaction,
    principal: Principal,
    experiment: Experiment,
    kind: str,
    subject: str = "",
    data: dict[str, Any] | None = None,
) -> None:
    emit(
        tx,
        kind,
        actor=principal.name,
        instrument=experiment.instrument,
        experiment=experiment.id,
        subject=subject or experiment.id,
        data=data,
    )
