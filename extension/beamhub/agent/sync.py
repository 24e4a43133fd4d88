"""The agent itself: sees to its directories, obeys the staff, and tells how it is doing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from beamhub import __version__
from beamhub.schemas import FileProgress, Heartbeat, JournalLine, UploadState

from .common import Common
from .config import Config
from .disk import Disk
from .done import Listener
from .file import Stamp, printable, shortened
from .journal import Entry, Journal, JournalError, State
from .orders import LONGEST_NAME, Orders
from .root import Root
from .service import RefusedError, RestartError, Service, UnavailableError
from .throttle import Throttle
from .watch import LostError

log = logging.getLogger("beamhub.agent")

HEARTBEAT = 2.0  # seconds
HEARD = 4  # done messages at a time
SHOWN = 20  # errors in a heartbeat
LONGEST = 500  # characters of each


class Agent:
    """Sends what appears in the watched directories until it is stopped.

    Args:
        once: stop when everything that is there has been sent.

    Raises:
        JournalError, ConfigError: from the constructor.
    """

    def __init__(self, config: Config, *, once: bool = False) -> None:
        self._config = config
        self._once = once
        self._service = Service(config)
        self._journal = Journal(config.journal.path, config.instrument.id)
        throttle = Throttle(config.upload.limit)
        self._common = Common(config, once, self._service, self._journal, throttle)
        self._common.arrived = self._journal.count_arrived()
        self._pause = self._common.pause
        self._orders = Orders(self._service, self._journal, self._pause, self)
        self._roots = [Root(watch, self._common) for watch in config.watch]
        self._paths = Disk(HEARD)  # of done messages: they may lead anywhere
        self._hearing = asyncio.Semaphore(HEARD)
        self.hangs = False  # at the end: a thread still waits for a disk that does not answer
        self._done = False  # with `once`: nothing is left to do
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends `run` soon; what is on its way goes on at the next start."""
        self._stopping.set()

    def take(self, config: Config) -> None:
        """From now on, sends at most as many bytes per second as this configuration says; nothing else of it
        is taken over while the agent runs."""
        rate, throttle = config.upload.limit, self._common.throttle
        limited = self._config.upload.model_copy(update={"limit": rate})
        if config != self._config.model_copy(update={"upload": limited}):
            log.warning("other changes of the configuration than the limit take a restart of the agent")
        if rate != throttle.rate:
            log.info("sending %s", f"at most {rate / 1e6:g} MB/s" if rate else "without a limit")
        throttle.rate = rate

    async def run(self) -> bool:
        """Works until it is stopped. True when, with `once`, all that was there has arrived.

        Raises:
            LostError: with `once`, when a watched directory is gone.
            JournalError: the journal can't be read or written any more.
            ConfigError: it can't listen for done messages.
        """
        done = self._config.done
        listener = Listener(done, self._finished) if done and not self._once else contextlib.nullcontext()
        try:
            self._journal.retry_refused()
            async with listener, asyncio.TaskGroup() as group:
                works = [work for root in self._roots for work in root.works()]
                works += [self._beat(), self._orders.follow()]
                works += [self._conclude()] if self._once else []
                tasks = [group.create_task(work) for work in works]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except ExceptionGroup as group:
            known = group.subgroup((LostError, JournalError))
            if known is None:
                raise
            problem = _first(known)
            if isinstance(problem, JournalError):
                await self._last_words(problem)
            raise problem from None
        finally:
            self._common.stop_reading.set()
            closed = await asyncio.gather(self._paths.close(), *(root.close() for root in self._roots))
            self.hangs = not all(closed)
            await self._service.close()
            self._journal.close()
        return self._done and not self._common.failed

    def _root_of(self, path: str) -> Root | None:
        return next((root for root in self._roots if root.has(path)), None)

    async def _finished(self, path: str) -> str:
        """A detector says that this file is finished: it is ready. Else the reason why it can't be sent."""
        if not path.startswith("/") or "\0" in path:
            return "is no absolute path"
        folder, name = os.path.split(path)
        async with self._hearing:
            if (root := self._root_of(path)) is None or not root.silent:
                folder = await self._paths.ask(os.path.realpath, folder)
            path = f"{folder}/{name}"
            if (root := self._root_of(path)) is None:
                return "is not below a watched directory"
            return await root.finished(path)

    async def _conclude(self) -> None:
        """Stops when all is done."""
        while not all(root.is_done for root in self._roots):
            self._common.step.clear()
            await self._common.step.wait()
        self._done = True
        self.stop()

    # --- obeying -------------------------------------------------------------------------------------------

    def _shown(self, path: str) -> str:
        """What the file is called below raw/, as people see it."""
        root = self._root_of(path)
        name = root.watch.destination(root.name(path)) if root else path
        return shortened(printable(name), LONGEST_NAME)

    def waiting(self) -> Iterator[tuple[str, str]]:
        known = {path for root in self._roots for path in root.waiting()}
        known |= {entry.path for entry in self._journal.unfinished() if entry.state is State.QUEUED}
        return ((path, self._shown(path)) for path in sorted(known - self._common.failed.keys()))

    def failed(self) -> Iterator[tuple[str, str, str]]:
        return ((path, self._shown(path), reason) for path, reason in list(self._common.failed.items()))

    def held(self) -> Iterator[tuple[str, str]]:
        return ((path, self._shown(path)) for root in self._roots for path in list(root.holding.held()))

    def skipped(self) -> Iterator[tuple[str, str, str]]:
        return ((entry.path, self._shown(entry.path), entry.error) for entry in self._journal.skipped())

    def unsent(self) -> object:
        return dict(self._common.failed), self._journal.skips, self._journal.count_skipped()

    def lines(self, experiment: str) -> Iterator[JournalLine]:
        # at once: the rest may go on in a thread, while files settle
        unsettled = {path: stamp for root in self._roots for path, stamp in root.unsettled().items()}
        return self._lines(experiment, unsettled)

    def _lines(self, experiment: str, unsettled: Mapping[str, Stamp]) -> Iterator[JournalLine]:
        begun = list(self._journal.of(experiment))
        growing = {entry.path for entry in begun if entry.state is State.GROWING}
        for path, stamp in unsettled.items():
            if path not in growing:
                yield JournalLine(name=self._shown(path), size=stamp.size, state="queued")
        for entry in begun:
            yield self._line(entry)

    def _line(self, entry: Entry) -> JournalLine:
        reason = self._common.failed.get(entry.path) or entry.error
        states: dict[State, Literal["queued", "arrived", "failed", "skipped"]] = {
            State.GROWING: "queued",
            State.QUEUED: "failed" if reason else "queued",
            State.ARRIVED: "arrived",
            State.REFUSED: "failed",
            State.SKIPPED: "skipped",
        }
        return JournalLine(
            name=self._shown(entry.path),
            size=entry.stamp.size,
            digest=entry.digest,
            state=states[entry.state],
            reason=_shortened(reason) if entry.state is not State.ARRIVED else "",
            experiment=entry.experiment,
        )

    async def retry(self, path: str) -> None:
        """What has failed is sent again, if it is still there."""
        if root := self._root_of(path):
            stamp = await root.look(path)
            if stamp or root.silent:  # else it is looked at as soon as it can be
                self._common.failed.pop(path, None)
                self._journal.requeue(path)
            if stamp:
                root.sighted(root.sighting(path, stamp))

    async def release(self, path: str) -> None:
        """What is held back is sent as it is."""
        if (root := self._root_of(path)) and (problem := await root.finished(path)):
            log.warning("%s %s", printable(path), problem)

    async def skip(self, path: str, reason: str) -> None:
        """The file is left out; what the service has of it is given up. One that has just arrived stays."""
        if root := self._root_of(path):
            stamp = root.stamp(path)
            await root.leave(path)
            if stamp and self._journal.find(path) is None:
                self._journal.queue(path, stamp)
        self._common.failed.pop(path, None)
        entry = self._journal.find(path)
        if entry and entry.state is not State.ARRIVED:
            self._journal.skip(path, reason)
        if entry and entry.upload:
            await self._service.terminate(entry.upload)
            if await self._is_published(entry.upload):
                self._journal.arrived(path)
            else:
                self._journal.given_up(path)
        self._common.step.set()

    async def _is_published(self, upload: str) -> bool:
        try:
            return (await self._service.upload(upload)).state in (
                UploadState.COMPLETE,
                UploadState.SUPERSEDED,
            )
        except (RestartError, RefusedError):
            return False

    async def unskip(self, path: str) -> None:
        """The file is sent after all, or forgotten if it is no longer there."""
        root = self._root_of(path)
        stamp = await root.look(path) if root else None
        if root and (stamp or root.silent):
            self._journal.requeue(path)
        else:
            self._journal.forget(path)
        if root and stamp:
            root.sighted(root.sighting(path, stamp))

    # --- telling -------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        reachable = True
        while True:
            try:
                self._orders.obeyed.clear()
                self._orders.heed(await self._service.heartbeat(self.heartbeat()))
            except UnavailableError as error:
                if reachable and str(error) != self._pause.reason:
                    log.warning("%s", error)
                reachable = False
            else:
                if not reachable:
                    self._pause.end()
                reachable = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._orders.obeyed.wait()  # then the staff need not wait either

    def heartbeat(self) -> Heartbeat:
        """How it is doing just now."""
        roots, failed = self._roots, self._common.failed
        sending = [item for root in roots for item in root.sender.active.values()]
        growing = [file for root in roots for file in root.growth.progress]
        if self._pause.held:
            state: Literal["idle", "uploading", "waiting", "error"] = "uploading" if sending else "waiting"
        elif self._pause.reason:
            state = "waiting" if self._pause.expected else "error"
        elif sending or growing:
            state = "uploading"
        elif failed or any(root.lost or root.silent for root in roots):
            state = "error"
        else:
            state = "waiting" if any(root.settling or root.judged for root in roots) else "idle"
        return Heartbeat(
            host=printable(socket.gethostname()) or "unnamed",
            version=__version__,
            state=state,
            queued_files=sum(len(root.sender.queue) for root in roots) + len(sending),
            queued_bytes=sum(root.sender.queue.size for root in roots)
            + sum(item.stamp.size - item.sent for item in sending),
            rate=self._common.rate(),
            free_disk=roots[0].free_disk,
            current=growing[:SHOWN]
            + [
                FileProgress(
                    name=printable(item.watch.destination(item.name)),
                    size=item.stamp.size,
                    sent=item.sent,
                    experiment=entry.experiment if (entry := self._journal.find(item.path)) else None,
                )
                for item in sending[: max(0, SHOWN - len(growing))]
            ],
            errors=self._errors(),
            file_errors=self._file_errors(),
            arrived=self._common.arrived,
            failed=len(failed),
            skipped=self._journal.count_skipped(),
            acknowledged=self._journal.obeyed(),
        )

    def _errors(self) -> list[str]:
        """What all should know, the gravest first."""
        errors = [reason for reason in (self._pause.held, self._pause.reason) if reason]
        for root in self._roots:
            errors += [problem for problem in (root.lost, root.silent, root.tree.problem) if problem]
        return _few(errors)

    def _file_errors(self) -> list[str]:
        """What the staff should know of single files, the gravest first."""
        errors = [f"{printable(path)} {reason}" for path, reason in self._common.failed.items()]
        for root in self._roots:
            held = root.holding.told(time.monotonic())
            told = [*held, *root.holding.doubts.items(), *root.tree.odd.items()]
            errors += [f"{printable(path)} {reason}" for path, reason in told]
        return _few(errors)

    async def _last_words(self, problem: Exception) -> None:
        """So that the staff need not look into the agent's log to know why it has gone."""
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(HEARTBEAT):
                await self._service.heartbeat(
                    Heartbeat(
                        host=printable(socket.gethostname()) or "unnamed",
                        version=__version__,
                        state="error",
                        queued_files=0,
                        queued_bytes=0,
                        rate=0.0,
                        errors=[_shortened(str(problem))],
                    )
                )


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first one in it that is no group."""
    problem = group.exceptions[0]
    return _first(problem) if isinstance(problem, ExceptionGroup) else problem


def _few(errors: list[str]) -> list[str]:
    """As many of them as a heartbeat holds."""
    more = [f"and {len(errors) - SHOWN + 1} more: see the agent's log"] if len(errors) > SHOWN else []
    return [_shortened(error) for error in (errors[: SHOWN - 1] if more else errors)] + more


def _shortened(text: str) -> str:
    """At most as long as an error in a heartbeat may be."""
    return shortened(text, LONGEST)
