"""Finalisations: have all of an experiment's raw data arrived? Then a manifest is signed off.

The agent tells what its journal knows, and that is compared with what has been published and with the disk.
Differences block, unless the staff sign off in spite of them. Then nothing arrives any more, and `sha256sums`
is written, which `sha256sum -c` understands. A kill at any moment is gone on from.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from beamhub import access, folders
from beamhub.access import SYSTEM, Action, Principal
from beamhub.errors import BeamhubError, Conflict, NotFound
from beamhub.events import Live, emit
from beamhub.experiments import end_beamtime
from beamhub.incoming import versions
from beamhub.orders import order
from beamhub.schemas import (
    CommandKind,
    Experiment,
    ExperimentState,
    File,
    FilesChoice,
    Finalisation,
    FinalisationState,
    FinaliseRequest,
    JournalLine,
    Upload,
    UploadState,
)
from beamhub.store import Store, Transaction
from beamhub.store.finalisations import GOING

log = logging.getLogger(__name__)

MANIFEST, ABOUT = "sha256sums", "sha256sums.json"
PATIENCE = 60.0  # seconds for a connected agent to tell what it knows
AGAIN = 10.0  # seconds after which one is tried again that the database, say, has failed
LOOK = 0.2  # seconds between looks whether it has
MOST = 1000  # differences that are listed
BLOCK = 2**20  # bytes read at a time


class _StoppedError(Exception):
    """The service ends; the rest is read after its next start."""


class Finalisations:
    """The finalisations of all experiments; each goes on in the background."""

    def __init__(self, store: Store, live: Live, data_dir: Path) -> None:
        self._store = store
        self._live = live
        self._data_dir = data_dir
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress: dict[str, float] = {}
        self._stop = threading.Event()
        self._reader = ThreadPoolExecutor(1, "beamhub-manifest", initializer=_step_back)

    async def close(self) -> None:
        """What is not done goes on at the next start."""
        self._stop.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._reader.shutdown)

    async def begin(self, principal: Principal, id_: str, request: FinaliseRequest) -> Finalisation:
        """Begins to check and to sign off. Raises Conflict for an experiment without data, or while it is
        being finalised."""

        def work(tx: Transaction) -> Finalisation:
            experiment = access.require(tx, principal, id_, Action.OPERATE)
            before = tx.finalisations.get(id_)
            if before and before.state in GOING:
                raise Conflict(f"{id_} is being finalised already.", "Wait until that has ended.")
            if experiment.state is ExperimentState.PLANNED:
                raise Conflict(f"{id_} has not been running.", "There is nothing to finalise.")
            instrument = access.require_instrument(tx, principal, experiment.instrument)
            if (earlier := tx.finalisations.command(id_)) is not None:
                tx.commands.forget_report(earlier)  # which may have come late
            command = None
            if instrument.agent:
                choice = FilesChoice(reason=f"to finalise {id_}")
                command = order(tx, principal, instrument.id, CommandKind.REPORT, choice, id_).id
            tx.finalisations.begin(id_, command, principal.name, forced=request.force, reason=request.reason)
            data = {"forced": request.force, "reason": request.reason}
            _emit(tx, principal.name, experiment, "experiment.finalising", data)
            return _required(tx, id_)

        begun = await self._store.write(work)
        self._start(id_)
        return begun

    async def get(self, principal: Principal, id_: str) -> Finalisation:
        """How far it is. Raises NotFound where nobody has begun."""

        def work(tx: Transaction) -> Finalisation:
            access.require(tx, principal, id_, Action.READ)
            return _required(tx, id_)

        found = await self._store.read(work)
        done = 1.0 if found.state is FinalisationState.DONE else self._progress.get(id_, 0.0)
        return found.model_copy(update={"progress": done})

    async def recover(self) -> None:
        """Goes on with what a kill has interrupted."""
        for id_ in await self._store.read(lambda tx: tx.finalisations.going()):
            self._start(id_)

    def _start(self, id_: str) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error:
                log.error("the finalisation of %s goes on at the next start", id_, exc_info=error)

        task = asyncio.create_task(self._run(id_))
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _run(self, id_: str) -> None:
        """Until it has come to an end, or the service does: one that waits for ever could not be repeated."""
        while True:
            try:
                return await self._come_to_an_end(id_)
            except _StoppedError:
                raise
            except Exception:
                log.exception("the finalisation of %s stumbled, and is tried again", id_)
                await asyncio.sleep(AGAIN)

    async def _come_to_an_end(self, id_: str) -> None:
        try:
            await self._go_on(id_)
        except (OSError, BeamhubError) as error:
            log.error("%s could not be signed off: %s", id_, error)
            reason = f"It could not be signed off: {error}"
            await self._store.write(lambda tx: _block(tx, id_, [reason]))

    async def _go_on(self, id_: str) -> None:
        found = await self._store.read(lambda tx: _required(tx, id_))
        if found.state is FinalisationState.CHECKING and not await self._check(found):
            return
        loop = asyncio.get_running_loop()
        signed = False
        while not signed:
            found = await self._store.read(lambda tx: _required(tx, id_))
            manifest, size = await loop.run_in_executor(self._reader, self._hash, id_)
            signed = await asyncio.to_thread(self._sign_off, found, manifest, size)

    # --- checking ---

    async def _check(self, found: Finalisation) -> bool:
        """Whether it may be signed off; then nothing arrives any more."""
        id_ = found.experiment
        command = await self._store.read(lambda tx: tx.finalisations.command(id_))
        if command is not None:
            await self._wait_for_report(command)
        # what comes while the disk is looked at is no difference: its row is read before or after
        uploads = await self._store.read(lambda tx: tx.uploads.of(id_))
        disk = await asyncio.to_thread(self._files, id_)
        compared = await self._store.read(lambda tx: list(_differences(tx, id_, command, uploads, disk)))

        def work(tx: Transaction) -> bool:
            experiment = access.require(tx, SYSTEM, id_, Action.READ)
            differences = _bounded([*_on_their_way(tx, id_), *compared])
            state = FinalisationState.HASHING
            if differences and not found.forced:
                state = FinalisationState.BLOCKED
            if command is not None:
                tx.commands.forget_report(command)
            if state is FinalisationState.BLOCKED:
                _block(tx, id_, differences)
                return False
            tx.finalisations.change(id_, state=state, differences=differences, ended=None)
            if experiment.state is ExperimentState.RUNNING:
                end_beamtime(tx, Principal(found.created_by, "user"), experiment)
            return True

        return await self._store.write(work)

    async def _wait_for_report(self, command: int) -> None:

        def expected(tx: Transaction) -> bool:
            if tx.commands.reported(command):
                return False
            asked = tx.commands.get(command)
            instrument = tx.instruments.get(asked.instrument) if asked else None
            return bool(instrument and instrument.agent and instrument.agent.connected)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while await self._store.read(expected):  # noqa: ASYNC110 (another process may write it)
                    await asyncio.sleep(LOOK)

    def _files(self, id_: str) -> dict[str, int]:
        """path → size of all in raw/."""
        found: Iterator[File] = folders.walk(self._data_dir / id_, PurePosixPath(folders.RAW))
        return {file.path: file.size for file in found}

    # --- the manifest ---

    def _hash(self, id_: str) -> tuple[dict[str, str], int]:
        """path → sha256 of all in raw/, and how many bytes that is. Reads what no sha256 is known of."""
        disk = self._files(id_)
        uploads, kept = self._store.read_sync(
            lambda tx: (tx.uploads.published(id_, list(disk)), tx.finalisations.checksums(id_))
        )
        known = {path: _sha256(upload, disk[path]) for path, upload in uploads.items()}
        manifest: dict[str, str] = {}
        for done, path in enumerate(sorted(disk), 1):
            sha256 = known.get(path) or kept.get(path)
            if sha256 is None:
                sha256 = self._read(id_, path)
                self._keep(id_, path, sha256)
            manifest[path] = sha256
            self._tell(id_, done / len(disk))
        return manifest, sum(disk.values())

    def _read(self, id_: str, path: str) -> str:
        hasher = hashlib.sha256()
        with folders.open_file(self._data_dir / id_, PurePosixPath(path)) as file:
            while block := file.read(BLOCK):
                hasher.update(block)
                if self._stop.is_set():
                    raise _StoppedError
        return hasher.hexdigest()

    def _keep(self, id_: str, path: str, sha256: str) -> None:
        self._store.write_sync(lambda tx: tx.finalisations.keep_checksum(id_, path, sha256))

    def _tell(self, id_: str, progress: float) -> None:
        before = self._progress.get(id_, 0.0)
        self._progress[id_] = progress
        if int(100 * progress) > int(100 * before):
            self._live.publish(
                "experiment.progress",
                experiment=id_,
                instrument=None,
                subject=id_,
                data={"finalised": round(progress, 2)},
            )

    def _sign_off(self, found: Finalisation, manifest: dict[str, str], size: int) -> bool:
        """False: something has come or changed since `found` was read, and may be missing in the manifest."""
        id_ = found.experiment
        text = "".join(f"{sha256}  {path}\n" for path, sha256 in manifest.items())
        about = {
            "experiment": id_,
            "signed_off_by": found.created_by,
            "signed_off": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": len(manifest),
            "bytes": size,
            "sha256sums": hashlib.sha256(text.encode()).hexdigest(),
            "forced": found.forced,
            "reason": found.reason,
            "differences": found.differences,
        }
        self._write(id_, MANIFEST, text)
        self._write(id_, ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")

        def work(tx: Transaction) -> bool:
            if _required(tx, id_).differences != found.differences:
                return False
            experiment = access.require(tx, SYSTEM, id_, Action.READ)
            tx.finalisations.change(id_, state=FinalisationState.DONE, ended=datetime.now(UTC))
            tx.finalisations.forget_checksums(id_)
            data = {name: about[name] for name in ("files", "bytes", "sha256sums", "forced", "reason")}
            _emit(tx, found.created_by, experiment, "experiment.finalised", data)
            return True

        signed = self._store.write_sync(work)
        self._progress.pop(id_, None)
        return signed

    def _write(self, id_: str, name: str, text: str) -> None:
        """The file as a whole or not at all, for everybody to read and nobody to change."""
        with folders.folder(self._data_dir, PurePosixPath(id_)) as folder:
            new = f".{name}"
            with contextlib.suppress(FileNotFoundError):  # from before a kill
                os.unlink(new, dir_fd=folder)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440, dir_fd=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)


def _block(tx: Transaction, id_: str, differences: list[str]) -> None:
    experiment = access.require(tx, SYSTEM, id_, Action.READ)
    blocked, now = FinalisationState.BLOCKED, datetime.now(UTC)
    tx.finalisations.change(id_, state=blocked, differences=differences, ended=now)
    data = {"differences": differences[:20], "count": len(differences)}
    _emit(tx, _required(tx, id_).created_by, experiment, "experiment.not_finalised", data)


def _step_back() -> None:
    """People who look at their data come before this thread."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _sha256(upload: Upload, size: int) -> str | None:
    """The digest that was verified when the file came, if it is one."""
    algorithm, _, value = (upload.digest or "").partition(":")
    return value if algorithm == "sha256" and upload.size == size else None


def _on_their_way(tx: Transaction, id_: str) -> Sequence[str]:
    """What begins no more, but may still arrive."""
    paths = tx.uploads.on_their_way(id_)
    return [f"{path} is still on its way." for path in paths if path.startswith(f"{folders.RAW}/")]


def _differences(
    tx: Transaction, id_: str, command: int | None, all_uploads: Sequence[Upload], disk: dict[str, int]
) -> Iterator[str]:
    """What does not fit together of all that has arrived, one plain sentence each. The uploads are those from
    before the disk was looked at."""
    experiment = access.require(tx, SYSTEM, id_, Action.READ)
    uploads = [upload for upload in all_uploads if upload.path.startswith(f"{folders.RAW}/")]
    by_path: dict[str, list[Upload]] = defaultdict(list)
    for upload in uploads:
        by_path[upload.path].append(upload)
        if upload.state is UploadState.QUARANTINED:
            yield f"{upload.path} is in quarantine: {upload.error}."
    published = {u.path: u for u in uploads if u.state in (UploadState.COMPLETE, UploadState.SUPERSEDED)}
    for path, upload in sorted(published.items()):
        if path not in disk:
            yield f"{path} has arrived, and is gone from the disk."
        elif disk[path] != upload.size:
            yield f"{path} has {disk[path]} bytes on the disk, not {upload.size}."
    strange = disk.keys() - published.keys()
    coming = {name for path in tx.uploads.on_their_way(id_) for name in versions(path)}
    for path in sorted(strange - coming - tx.uploads.published(id_, strange).keys()):
        yield f"{path} is on the disk, and no upload has brought it."
    if command is None:
        return
    # by the staff, from quarantine
    for id_ in tx.events.subjects(experiment.instrument, experiment.id, "file.deleted"):
        if deleted := tx.uploads.get(id_):
            by_path[deleted.path].append(deleted)
    if not tx.commands.reported(command):
        yield f"The agent of {experiment.instrument} has not told what it knows: is it running?"
    told: list[tuple[JournalLine, str]] = []
    for line in tx.commands.lines(command):
        concerned = line.experiment == experiment.id or (line.experiment is None and experiment.active)
        if concerned and (difference := _difference(line, by_path)):
            told.append((line, difference))
    arrived = [line for line, _ in told if line.state == "arrived" and line.digest]
    moved = tx.uploads.elsewhere(
        experiment.id, experiment.instrument, {line.digest for line in arrived if line.digest}
    )
    for line, difference in told:
        if line.state != "arrived" or (PurePosixPath(line.name).name, line.size, line.digest) not in moved:
            yield difference


def _difference(line: JournalLine, by_path: dict[str, list[Upload]]) -> str:
    """How a line of the agent's journal does not fit; "" if it does. What the staff have skipped does."""
    path = f"{folders.RAW}/{line.name}"
    match line.state:
        case "queued":
            return f"{path} has not been sent yet."
        case "failed":
            return f"{path} could not be sent: {line.reason}."
        case "skipped":
            return ""
    here = [upload for name in versions(path) for upload in by_path.get(name, ())]
    if any(_same(upload, line) for upload in here):
        return ""
    if here:
        return f"{path} is not what the agent has sent: size or digest differ."
    return f"{path} has arrived, says the agent, and is not in the experiment."


def _same(upload: Upload, line: JournalLine) -> bool:
    known, told = (upload.digest or "").partition(":"), (line.digest or "").partition(":")
    return upload.size == line.size and (known == told or known[0] != told[0])


def _bounded(differences: Iterable[str]) -> list[str]:
    found = list(differences)
    return found if len(found) <= MOST else [*found[:MOST], f"And {len(found) - MOST} more."]


def _required(tx: Transaction, id_: str) -> Finalisation:
    found = tx.finalisations.get(id_)
    if found is None:
        raise NotFound(f"{id_} has not been finalised.", "Its staff can: beamhub experiment finalise.")
    return found


def _emit(tx: Transaction, actor: str, experiment: Experiment, kind: str, data: dict[str, object]) -> None:
    emit(
        tx,
        kind,
        actor=actor,
        instrument=experiment.instrument,
        experiment=experiment.id,
        subject=experiment.id,
        data=data,
    )
