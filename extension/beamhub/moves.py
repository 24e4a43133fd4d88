"""Moves of a dataset to the experiment that it belongs to: its files, its uploads and itself, as one.

First the move is written down, with every file's old and new name. Then each file gets its new name beside
the old one, the rows change in one transaction, and the old names go. A kill leaves each file with at least
one name, and `recover` goes on from what is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from beamhub import access, folders
from beamhub.access import Action, Principal
from beamhub.errors import BeamhubError, Conflict, Gone, NotFound
from beamhub.events import emit
from beamhub.incoming import MAX_VERSIONS
from beamhub.schemas import Dataset, DatasetState, Experiment, ExperimentState
from beamhub.store import Store, Transaction
from beamhub.store.finalisations import GOING
from beamhub.store.moves import Move

log = logging.getLogger(__name__)


class Moves:
    """What the staff do when data went into the wrong experiment."""

    def __init__(self, store: Store, data_dir: Path) -> None:
        self._store = store
        self._data_dir = data_dir

    async def move(self, principal: Principal, id_: int, target: str, reason: str) -> Dataset:
        """Moves a dataset with all its files to another experiment of the same instrument.

        Where their names are taken there, they become a later version, together. Jobs stay where they are,
        with a note. Raises Conflict while it is being received or worked on, or when a file of it belongs to
        another dataset too.
        """
        return await asyncio.to_thread(self._move, principal, id_, target, reason)

    def _move(self, principal: Principal, id_: int, target: str, reason: str) -> Dataset:
        def look(tx: Transaction) -> int:
            return self._free(tx, _wanted(tx, principal, id_, target))

        def begin(tx: Transaction) -> Move:
            wanted = _wanted(tx, principal, id_, target)
            if _taken(tx, wanted, version):
                raise _taken_now(target, _renamed(wanted.dataset, wanted.dataset.path, version))
            move = Move(id_, wanted.source.id, target, version, wanted.files(version), reason, principal.name)
            tx.moves.create(move)
            return move

        version = self._store.read_sync(look)  # others have to write meanwhile
        move = self._store.write_sync(begin)
        self._carry_out(move)
        return self._store.read_sync(lambda tx: tx.datasets.require(id_))

    async def recover(self) -> None:
        """Carries out what a kill has interrupted."""
        await asyncio.to_thread(self._recover)

    def _recover(self) -> None:
        for move in self._store.read_sync(lambda tx: tx.moves.all()):
            try:
                self._carry_out(move)
            except (BeamhubError, OSError) as error:  # the others, and the service, go on all the same
                log.error("dataset %s stays in %s for now: %s", move.dataset, move.source, error)

    def _free(self, tx: Transaction, wanted: _Wanted) -> int:
        """The first version whose names are all free. It looks at the disk, which may take long."""
        for version in range(1, MAX_VERSIONS + 1):
            names = (self._data_dir / wanted.target.id / name for _, name in wanted.files(version))
            if not _taken(tx, wanted, version) and not any(map(os.path.lexists, names)):
                return version
        raise Conflict(
            f"There are {MAX_VERSIONS} versions of {wanted.dataset.name} in {wanted.target.id}.", ""
        )

    def _carry_out(self, move: Move) -> None:
        """May be repeated, from any point on."""
        if not move.committed:
            try:
                for old, new in move.files:
                    self._link(move, old, new)
            except BaseException:
                self._undo(move)
                raise
            self._store.write_sync(lambda tx: _commit(tx, move))
        for old, _ in move.files:
            self._unlink(move.source, old)
        self._store.write_sync(lambda tx: tx.moves.end(move.dataset))

    def _link(self, move: Move, old: str, new: str) -> None:
        there, here = PurePosixPath(old), PurePosixPath(new)
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(folders.folder(self._data_dir / move.source, there.parent))
                status = os.stat(there.name, dir_fd=source, follow_symlinks=False)
            except (NotFound, FileNotFoundError) as error:
                raise Gone(
                    f"{old} is gone from {move.source}.", "Ask the operators to look for it."
                ) from error
            target = stack.enter_context(
                folders.folder(self._data_dir / move.target, here.parent, create=True)
            )
            with contextlib.suppress(FileExistsError):  # perhaps since before a kill
                os.link(there.name, here.name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            if not os.path.samestat(os.stat(here.name, dir_fd=target, follow_symlinks=False), status):
                raise _taken_now(move.target, new)
            os.fsync(target)

    def _undo(self, move: Move) -> None:
        """Nothing has happened."""
        for old, new in move.files:
            paths = self._data_dir / move.source / old, self._data_dir / move.target / new
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(*(path.lstat() for path in paths)):
                    self._unlink(move.target, new)
        self._store.write_sync(lambda tx: tx.moves.end(move.dataset))

    def _unlink(self, experiment: str, path: str) -> None:
        where = PurePosixPath(path)
        with (
            contextlib.suppress(NotFound, FileNotFoundError),  # since before a kill
            folders.folder(self._data_dir / experiment, where.parent) as folder,
        ):
            os.unlink(where.name, dir_fd=folder)
            os.fsync(folder)


@dataclass(frozen=True)
class _Wanted:
    """A move that may be made."""

    dataset: Dataset
    source: Experiment
    target: Experiment
    published: Sequence[str]

    def files(self, version: int) -> list[tuple[str, str]]:
        """What they are called, and will be."""
        return [(path, _renamed(self.dataset, path, version)) for path in self.published]


def _wanted(tx: Transaction, principal: Principal, id_: int, target_id: str) -> _Wanted:
    dataset = access.require_dataset(tx, principal, id_)
    source = access.require(tx, principal, dataset.experiment, Action.OPERATE)
    target = access.require(tx, principal, target_id, Action.OPERATE)
    _check(tx, dataset, source, target)
    names = {dataset.path, *(file.path for file in tx.datasets.files(id_))}
    published = sorted(tx.uploads.published(source.id, names))
    if other := tx.datasets.sharing(dataset, published):
        raise Conflict(
            f"{dataset.name} has a file that belongs to {other} too.", "Leave both where they are."
        )
    return _Wanted(dataset, source, target, published)


def _taken(tx: Transaction, wanted: _Wanted, version: int) -> bool:
    """Whether something is known in the target by a name of this version."""
    new = [name for _, name in wanted.files(version)]
    path = _renamed(wanted.dataset, wanted.dataset.path, version)
    return bool(tx.uploads.published(wanted.target.id, new) or tx.datasets.at(wanted.target.id, path))


def _taken_now(experiment: str, path: str) -> Conflict:
    return Conflict(f"Another file has just come to {path} in {experiment}.", "Move the dataset again.")


def _check(tx: Transaction, dataset: Dataset, source: Experiment, target: Experiment) -> None:
    """Raises Conflict where this dataset can't go there now."""
    if target.instrument != source.instrument or target.id == source.id:
        raise Conflict(
            f"{dataset.name} of {source.id} can't go to {target.id}.",
            f"Choose another experiment of {source.instrument}.",
        )
    if target.state is ExperimentState.CLOSED:
        raise Conflict(f"{target.id} is closed.", "Reopen it first (state: processing).")
    for experiment in (source, target):
        found = tx.finalisations.get(experiment.id)
        if found and found.state in GOING:
            raise Conflict(f"{experiment.id} is being finalised.", "Wait until that has ended.")
    if dataset.state is DatasetState.RECEIVING:
        raise Conflict(f"{dataset.name} is still being received.", "Wait until it has ended, or end it.")
    names = {dataset.path, *(file.path for file in tx.datasets.files(dataset.id))}
    if coming := names.intersection(tx.uploads.on_their_way(source.id)):
        raise Conflict(f"{min(coming)} of {dataset.name} is on its way.", "Wait until it has arrived.")
    if jobs := tx.jobs.unfinished(dataset.id):
        raise Conflict(
            f"{len(jobs)} jobs work on {dataset.name}: {', '.join(map(str, jobs[:10]))}.",
            "Wait until they have ended, or cancel them.",
        )
    if any(move.dataset == dataset.id for move in tx.moves.all()):
        raise Conflict(f"{dataset.name} is being moved already.", "Wait a moment.")


def _commit(tx: Transaction, move: Move) -> None:
    dataset = tx.datasets.require(move.dataset)
    experiment = tx.experiments.get(move.source)
    for old, new in move.files:
        tx.uploads.move(move.source, move.target, old, new, move.version)
    files = {file.path: _renamed(dataset, file.path, move.version) for file in tx.datasets.files(dataset.id)}
    name = re.sub(r"\.v\d+$", "", dataset.name) if _version(dataset) > 1 else dataset.name
    name = name if move.version == 1 else f"{name}.v{move.version}"
    path = _renamed(dataset, dataset.path, move.version)
    tx.datasets.move(dataset.id, move.target, name, path, files)
    tx.jobs.note_inputs(dataset.id, move.source, f"moved to {move.target} by {move.actor}: {move.reason}")
    tx.jobs.note_inputs(dataset.id, move.target, "")
    for experiment_id in (move.source, move.target):
        emit(
            tx,
            "dataset.moved",
            actor=move.actor,
            instrument=experiment.instrument if experiment else None,
            experiment=experiment_id,
            subject=str(dataset.id),
            data={
                "name": name,
                "from": move.source,
                "to": move.target,
                "files": len(move.files),
                "reason": move.reason,
            },
        )
        tx.finalisations.outdate(experiment_id, f"{name} has been moved from {move.source} to {move.target}.")
    tx.moves.commit(dataset.id)


def _folder(dataset: Dataset) -> PurePosixPath:
    """The folder that the first version of its files is in."""
    folder = PurePosixPath(dataset.path).parent
    return folder.parent if folders.VERSION.fullmatch(folder.name) else folder


def _version(dataset: Dataset) -> int:
    folder = PurePosixPath(dataset.path).parent.name
    return int(folder.removeprefix("version-")) if folders.VERSION.fullmatch(folder) else 1


def _renamed(dataset: Dataset, path: str, version: int) -> str:
    """What a file of the dataset is called as this version: all stay together, so that the master's links
    stay right."""
    inside = PurePosixPath(path).relative_to(PurePosixPath(dataset.path).parent)
    folder = _folder(dataset)
    return str((folder if version == 1 else folder / f"version-{version}") / inside)
