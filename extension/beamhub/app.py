"""The service as an extension of Jupyter Server: its settings, and how its parts are wired together.

A server without a data directory is not the service: there, such as in every JupyterLab session of the same
installation, the extension does nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jupyter_server.auth import Authorizer
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from jupyter_server.utils import url_path_join
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from tornado.netutil import bind_sockets
from tornado.web import RequestHandler
from traitlets import Bool, Dict, Float, Integer, List, TraitError, Unicode, default, validate

from beamhub import api, bus, checkup, duty
from beamhub.api.files import BLOCK
from beamhub.api.handler import Handler
from beamhub.automation import Automation
from beamhub.batches import Batches
from beamhub.catalogue import Catalogue, shipped
from beamhub.datasets import Datasets
from beamhub.engine import Engine
from beamhub.errors import BeamhubError
from beamhub.events import Feed, Live
from beamhub.experiments import Experiments
from beamhub.finalisations import Finalisations
from beamhub.forecasts import Forecasts
from beamhub.frames.inspect import Inspector
from beamhub.growth import Growth
from beamhub.jobs import Jobs
from beamhub.licences import Licences
from beamhub.moves import Moves
from beamhub.orders import Orders
from beamhub.plans import profiles
from beamhub.quarantine import Quarantine
from beamhub.reception import AT_ONCE
from beamhub.rules import Rules
from beamhub.runners import Runner
from beamhub.runners.local import LocalRunner
from beamhub.runners.slurm import SlurmRunner, SlurmSettings
from beamhub.schemas import Profile
from beamhub.store import Store
from beamhub.uploads import Uploads

MIGRATION = 60.0  # seconds that an ingest process waits for the service to prepare the database
REST = 1.0  # seconds between tries to reach the database
HOUSEKEEPING = 10.0  # seconds between looks for what has stopped or expired
ANSWERS_KEPT = timedelta(days=1)  # of requests with an Idempotency-Key
# what the identity provider needs of the server's own addresses; nothing else of it is reachable
LOGIN = "oauth_callback|login|logout"


class BeamhubApp(ExtensionApp):
    """The beamhub service."""

    name = "beamhub"
    load_other_extensions = False
    extension_url = "/"

    data_dir = Unicode(help="Folder of all experiments' data. Default: $BEAMHUB_DATA_DIR").tag(config=True)
    state_dir = Unicode(
        help="Folder of the service's own. Default: $BEAMHUB_STATE_DIR, or .beamhub in data_dir"
    ).tag(config=True)
    database_url = Unicode(
        help="sqlite:////path or postgresql+psycopg://… Default: $BEAMHUB_DATABASE_URL, or in state_dir"
    ).tag(config=True)
    cpus = Integer(0, help="CPUs for all jobs together; 0: all that this machine has").tag(config=True)
    profiles = List(
        Dict(), help="What jobs may ask for: models of beamhub.schemas.Profile. Default: of this machine"
    ).tag(config=True)
    slurm = Dict(help="How a Slurm cluster is reached: beamhub.runners.slurm.SlurmSettings").tag(config=True)
    require_sandbox = Bool(
        False, help="Refuse jobs where bubblewrap doesn't work, rather than run them without a sandbox"
    ).tag(config=True)
    warm = Bool(True, help="Compile at the start what jobs and pictures of frames would wait for").tag(
        config=True
    )
    ready = Integer(
        2, help="Interpreters that wait for jobs of each active experiment, so that these start at once"
    ).tag(config=True)
    stall = Float(300.0, help="Seconds without a new file after which a dataset counts as stopped early").tag(
        config=True
    )
    patience = Float(
        60.0, help="Seconds until a client is given up that sends no whole head, or next to nothing of a body"
    ).tag(config=True)
    uploads_at_once = Integer(
        AT_ONCE, help="Requests of one agent or user that may bring bytes at a time, in each process"
    ).tag(config=True)
    in_place = Dict(
        value_trait=List(Unicode()),
        key_trait=Unicode(),
        help="Folders on storage of an instrument that the service sees, whose files its agent may register "
        "without sending them: {instrument: [folder, …]}",
    ).tag(config=True)
    templates = List(Unicode(), help="The facility's own folders of template notebooks").tag(config=True)
    ingest = Unicode(
        help="host:port at which this process, beside others, does what the service does but for jobs and "
        "datasets that have stopped: an ingest process. Empty: this is the service, or one of several "
        "of which one runs the jobs"
    ).tag(config=True)
    metrics_token = Unicode(
        help="Who has it may read `metrics`, and nothing else. Default: $BEAMHUB_METRICS_TOKEN, or nobody"
    ).tag(config=True)
    landing = Unicode(help="Where a browser is sent that opens the service itself. Default: the Cockpit").tag(
        config=True
    )

    @default("data_dir")
    def _data_dir_default(self) -> str:
        return os.environ.get("BEAMHUB_DATA_DIR", "")

    @default("state_dir")
    def _state_dir_default(self) -> str:
        return os.environ.get("BEAMHUB_STATE_DIR") or str(Path(self.data_dir) / ".beamhub")

    @default("database_url")
    def _database_url_default(self) -> str:
        return os.environ.get("BEAMHUB_DATABASE_URL") or f"sqlite:///{self.state_dir}/beamhub.sqlite"

    @default("metrics_token")
    def _metrics_token_default(self) -> str:
        return os.environ.get("BEAMHUB_METRICS_TOKEN", "")

    @default("landing")
    def _landing_default(self) -> str:
        return url_path_join(os.environ.get("JUPYTERHUB_BASE_URL", "/"), "services/cockpit/")

    @validate("data_dir", "state_dir")
    def _absolute(self, proposal: Any) -> str:
        return str(Path(proposal.value).absolute()) if proposal.value else ""

    @validate("cpus", "ready")
    def _possible(self, proposal: Any) -> int:
        if proposal.value < 0:
            what = {"cpus": "0 (all) or more", "ready": "0 (none) or more"}[proposal.trait.name]
            raise TraitError(f"BeamhubApp.{proposal.trait.name} is {proposal.value}; it has to be {what}.")
        return int(proposal.value)

    @validate("profiles", "slurm")
    def _valid(self, proposal: Any) -> Any:
        try:
            if proposal.trait.name == "profiles":
                names = [Profile.model_validate(profile).name for profile in proposal.value]
                if len(names) > len(set(names)):
                    raise TraitError(f"BeamhubApp.profiles has a name twice: {', '.join(names)}.")
            else:
                SlurmSettings.model_validate(proposal.value)
        except ValidationError as error:
            raise TraitError(f"BeamhubApp.{proposal.trait.name} is not valid: {error}") from error
        return proposal.value

    @validate("ingest")
    def _address(self, proposal: Any) -> str:
        host, _, port = proposal.value.rpartition(":")
        if proposal.value and not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise TraitError(f"BeamhubApp.ingest is {proposal.value!r}; it has to look like 127.0.0.1:8084.")
        return str(proposal.value)

    # --- start ---------------------------------------------------------------------------------------

    def initialize(self, *_: Any) -> None:
        """As the server calls it. Without its routes the service would be an open Jupyter Server: any failure
        ends the process."""
        try:
            super().initialize()  # type: ignore[no-untyped-call]
        except Exception as error:
            reason = str(error) if isinstance(error, BeamhubError) else self._wrong_database(error)
            if reason:
                self.log.critical("beamhub can't start: %s", reason)
            else:
                self.log.critical("beamhub can't start", exc_info=True)
            self.exit(1)

    def _wrong_database(self, error: Exception) -> str:
        """What is wrong with the database, and what to do; "" if the error is of something else."""
        if not isinstance(error, DBAPIError):
            return ""
        found = checkup.database(self.database_url)
        return "" if found.fine else found.message

    def initialize_handlers(self) -> None:
        if not self.data_dir:
            self.log.debug("beamhub: no data directory is configured, so this server is not the service")
            return
        self._tasks: list[asyncio.Task[None]] = []
        self._started = datetime.now(UTC), time.monotonic()
        data_dir, state_dir = Path(self.data_dir), Path(self.state_dir)
        for folder in (data_dir, state_dir):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.service = self._wire(data_dir, state_dir)
        assert isinstance(self.serverapp, ServerApp)  # noqa: S101
        self.handlers.extend(api.handlers(self.service))
        # The server's own API (kernels, contents, terminals) would run code with the service's rights for
        # everybody who may sign in: of all its addresses only the identity provider's stay reachable.
        self.handlers.append((r"/?", Landing, {"url": self.landing}))
        self.handlers.append((rf"/(?!(?:{LOGIN})$).*", Handler, {"service": self.service, "routes": {}}))

    def _wire(self, data_dir: Path, state_dir: Path) -> api.Service:
        self._bus = bus.connect(self.database_url, state_dir / "bus")
        self._duty = duty.connect(self.database_url, state_dir / "lock")
        store = Store(self.database_url, self._bus)
        if self.ingest:
            _wait_for(store)
        else:
            store.migrate()
        feed, live = Feed(store), Live(self._bus)
        self._inspector = Inspector()
        local = LocalRunner(
            self.cpus or os.cpu_count() or 1,
            state_dir,
            data_dir,
            warm=self.warm,
            ready=self.ready if self.warm else 0,
            require_sandbox=self.require_sandbox,
        )
        cluster = SlurmRunner(
            SlurmSettings.model_validate(self.slurm),
            state_dir,
            data_dir,
            require_sandbox=self.require_sandbox,
        )
        catalogue = Catalogue([*(Path(folder) for folder in self.templates), shipped()])
        offered = [Profile.model_validate(profile) for profile in self.profiles] or profiles(local.cpus)
        runners: dict[str, Runner] = {"local": local}
        if self.slurm or any(profile.runner == "slurm" for profile in offered):
            runners["slurm"] = cluster
        datasets = Datasets(store, data_dir, self._inspector, stall=timedelta(seconds=self.stall))
        jobs = Jobs(store, catalogue, offered, data_dir)
        self._engine = Engine(store, live, jobs, runners, data_dir)
        in_place = {id_: [Path(folder) for folder in folders] for id_, folders in self.in_place.items()}
        uploads = Uploads(store, live, data_dir, datasets.examine, in_place, self.uploads_at_once)
        return api.Service(
            store=store,
            feed=feed,
            live=live,
            duty=self._duty,
            experiments=Experiments(store, data_dir),
            uploads=uploads,
            growth=Growth(store, uploads.workers),
            batches=Batches(store, uploads),
            datasets=datasets,
            catalogue=catalogue,
            profiles=tuple(offered),
            rules=Rules(store, catalogue, offered),
            automation=Automation(store, jobs),
            licences=Licences(store),
            jobs=jobs,
            forecasts=Forecasts(store, jobs, runners),
            engine=self._engine,
            orders=Orders(store, live),
            quarantine=Quarantine(store, data_dir),
            moves=Moves(store, data_dir),
            finalisations=Finalisations(store, live, data_dir),
            metrics_token=self.metrics_token,
            patience=self.patience,
        )

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        if not self.data_dir:
            return
        serverapp.http_server.conn_params.header_timeout = self.patience
        self._bus.start()
        # each block costs a turn of the loop: Tornado's own 64 KiB are too many turns for a detector's data
        serverapp.http_server.read_chunk_size = serverapp.http_server.conn_params.chunk_size = BLOCK
        self._run(self._keep_house(), "housekeeping")
        if self.ingest:
            host, _, port = self.ingest.rpartition(":")
            # whoever of those that listen there has time takes the next connection
            serverapp.http_server.add_sockets(bind_sockets(int(port), host, reuse_port=True))
        else:
            await self.service.quarantine.recover()
            self._run(self._duty.serve(self._on_duty), "the job engine")
            if self.warm:
                self._tasks.append(asyncio.create_task(self._warm()))
        # what has been imported stays: to go through it again and again, looking for what has not, takes a
        # tenth of a second, in which nothing else happens
        gc.collect()
        gc.freeze()
        self.log.info("beamhub: experiments in %s", self.data_dir)

    def _run(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Run a part of the service for as long as it lives. Without it the service would only seem to work:
        if it fails, the server ends, and whoever watches it (the hub) starts it again."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self.log.critical(
                    "beamhub: %s has ended, and so does the service", what, exc_info=task.exception()
                )
                assert self.serverapp is not None  # noqa: S101
                self.serverapp.stop()

        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(ended)
        self._tasks.append(task)

    async def _on_duty(self) -> None:
        """What one process does for all: goes on with what others have left when they died, and runs jobs."""
        for left in (self.service.quarantine, self.service.moves, self.service.finalisations):
            await self._when_there(left.recover)
        await self._engine.run_forever()

    async def _when_there(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does what may be repeated until the database is there, and lets it."""
        while True:
            try:
                return await work()
            except Exception as error:
                if self.service.store.explained(error) is error:
                    raise
                self.log.warning("beamhub: to take over waits for the database: %s", error)
                await asyncio.sleep(REST)

    async def _warm(self) -> None:
        """Compile what the first frame would otherwise keep everybody waiting for."""
        try:
            from beamhub.frames import picture  # numpy, which an ingest process does without

            await asyncio.to_thread(picture.warm)
        except Exception:
            self.log.warning("beamhub: the first frames will be slow", exc_info=True)

    async def _keep_house(self) -> None:
        while True:
            for work in self._housework():
                try:
                    await work
                except Exception:  # a full disk, a database that restarts: the next look may succeed
                    self.log.exception("beamhub: housekeeping stumbled and goes on")
            await asyncio.sleep(HOUSEKEEPING)

    def _housework(self) -> Iterator[Awaitable[object]]:
        """None keeps the next from being done."""
        now, service = time.monotonic(), self.service
        yield service.uploads.leftovers.recover()
        yield service.uploads.leftovers.expire(now)
        if self._duty.on:
            # since the start no time passes that the clock on the wall has only been set by
            wall = min(datetime.now(UTC), self._started[0] + timedelta(seconds=now - self._started[1]))
            yield service.datasets.expire(now)
            yield service.licences.keep_up()
            yield service.store.write(lambda tx: tx.idempotency.expire(wall - ANSWERS_KEPT))

    # --- stop ----------------------------------------------------------------------------------------

    async def stop_extension(self) -> None:
        if not self.data_dir:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.service.finalisations.close()
        await self.service.uploads.close()
        await self._inspector.close()
        await asyncio.to_thread(self.service.store.close)
        await asyncio.to_thread(self._bus.close)


class Closed(Authorizer):
    """Nobody may use what is the server's own: not even if something of it should be reachable after all."""

    def is_authorized(self, *_: Any, **__: Any) -> bool:
        return False


class Landing(RequestHandler):
    """The service has no pages of its own."""

    def initialize(self, url: str) -> None:
        self._url = url

    def get(self) -> None:
        self.redirect(self._url)

    get.__allow_unauthenticated = True  # type: ignore[attr-defined]


def _wait_for(store: Store) -> None:
    """Until the service has brought the database to this version."""
    deadline = time.monotonic() + MIGRATION
    while not store.migrated():
        if time.monotonic() > deadline:
            raise BeamhubError(
                "The database is not one of this version of beamhub.", "Start the service, which prepares it."
            )
        time.sleep(0.1)
