"""From a file at the detector to one published in the experiment: speed, latency, and what it costs others.

Each number and its peer's come from the same run, in turns. BEAMHUB_BENCH_FULL=1 takes the sizes of the
promise: 20,000 small files, and 50 GB of sparse data, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
from beamhub.digests import of_file
from beamhub.schemas import UploadState
from beamhub.testing import Beamtime, Ingest, RunningService, free_port, running_service
from beamhub_hub import proxy

from tests.benchmarks import ingest_agent
from tests.benchmarks.result import Result, latencies, percentile
from tests.detector import Detector
from tests.integration.agents import RunningAgent

FULL = os.environ.get("BEAMHUB_BENCH_FULL") == "1"
LARGE = 2**30  # bytes
TURNS = 3
SMALL, SMALL_SIZE = (20_000 if FULL else 3_000), 10 * 2**10
ARRIVING, RATE = (5000 if FULL else 500), 100.0  # files, and how many of them a second
FRAMES, FRAME_RATE = 400, 20.0  # of a file that is still written, and how many of them a second
SPARSE = 50 * 10**9 if FULL else 2 * 10**9
REQUESTS = 300
PATIENCE = 3600.0


class Site:
    """A service with one ingest process, and an agent that sends to it."""

    def __init__(self, folder: Path, service: RunningService) -> None:
        self.folder = folder
        self.service = service
        self.ingest: Ingest = service.ingest()
        self.beamtime: Beamtime = service.beamtime()
        self._agents = 0

    @property
    def raw(self) -> Path:
        return self.service.data_dir / self.beamtime.experiment / "raw"

    @contextmanager
    def agent(self, url: str = "", *, settle: float = 0.2, parallel: int = 1) -> Iterator[RunningAgent]:
        """A running agent with an empty directory."""
        self._agents += 1
        agent = RunningAgent(self.folder / f"agent-{self._agents}", self.service, self.beamtime)
        agent.url = url or self.ingest.url
        agent.settings = {"settle": str(settle), "prefix": f'"{self._agents}"'}
        agent.upload = {"parallel": str(parallel)}
        agent.start()
        try:
            agent.until(lambda: agent.status is not None and agent.status.state == "idle")
            yield agent
        finally:
            agent.kill()

    def send(self, agent: RunningAgent, source: Path, name: str) -> float:
        """Seconds from the moment at which a file gets its name until it is published."""
        goal = self.raw / agent.settings["prefix"].strip('"') / name
        source.rename(agent.data / name)
        began = time.perf_counter()
        self._wait(lambda: goal.exists())
        self._wait(lambda: self._complete(name))
        return time.perf_counter() - began

    def _complete(self, name: str) -> bool:
        uploads = self.service.client("ada").uploads(self.beamtime.experiment, limit=5)
        return any(u.path.endswith(f"/{name}") and u.state is UploadState.COMPLETE for u in uploads)

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                raise SystemExit(f"not published in time; see {self.folder}")
            time.sleep(0.005)


def rows() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="beamhub-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        lying = folder / "lying"
        lying.mkdir()
        service = stack.enter_context(running_service(folder / "service", in_place={"mx-1": [str(lying)]}))
        site = Site(folder, service)
        yield from _large(site, stack)
        yield from _in_place(site, lying)
        yield from _small(site, stack)
        yield from _latency(site)
        yield from _shown(site)
        yield from _neighbours(site)
        yield from _memory(site)
    yield from ingest_agent.rows()


# --- one large file ---


def _large(site: Site, stack: ExitStack) -> Iterator[Result]:
    source = site.folder / "large.bin"
    _fill(source, LARGE)
    rsync, through = _rsync(site.folder, stack), _proxy(site.ingest.url, stack)
    direct = stack.enter_context(site.agent())
    behind = stack.enter_context(site.agent(through))
    ingest = psutil.Process(site.ingest.process.pid if site.ingest.process else 0)
    seconds: dict[str, list[float]] = {"cp": [], "rsync": [], "direct": [], "proxy": []}
    cpu: list[float] = []
    for turn in range(TURNS):
        target = site.folder / "copy.bin"
        seconds["cp"].append(_timed("cp", "--reflink=never", source, target))
        target.unlink()
        if rsync:
            seconds["rsync"].append(_timed("rsync", "-W", source, f"{rsync}/copy.bin"))
            (site.folder / "rsync" / "copy.bin").unlink()
        for way, agent in (("direct", direct), ("proxy", behind)):
            ready = agent.folder / "ready.bin"
            shutil.copyfile(source, ready)
            with ready.open("r+b") as file:
                file.write(os.urandom(64))  # another content, or there would be nothing to send
            before = ingest.cpu_times()
            seconds[way].append(site.send(agent, ready, f"large-{turn}.bin"))
            after = ingest.cpu_times()
            if way == "direct":
                cpu.append(sum(after[:2]) - sum(before[:2]))
            for path in (*agent.data.iterdir(), *site.raw.glob("*/large-*")):
                path.unlink()
    source.unlink()
    speed = {way: LARGE / 1e9 / statistics.median(taken) for way, taken in seconds.items() if taken}
    what = f"agent → published, one stream of {LARGE / 2**30:g} GiB, HTTP, digest verified, fsynced"
    yield Result("ingest", what, speed["direct"], "GB/s", 0.35, "higher", "cp", speed["cp"])
    if rsync:
        yield Result("ingest", what, speed["direct"], "GB/s", 1.0, "higher", "rsync daemon", speed["rsync"])
    yield Result(
        "ingest",
        "the same through the hub's proxy",
        speed["proxy"],
        "GB/s",
        None,
        "higher",
        "direct",
        speed["direct"],
    )
    used = statistics.median(cpu) / (LARGE / 1e9)
    yield Result("ingest", "CPU of the ingest process", used, "s/GB", 0.7)


def _in_place(site: Site, lying: Path) -> Iterator[Result]:
    with httpx.Client(
        base_url=site.ingest.api,
        headers={"Authorization": f"Bearer {site.beamtime.agent_token}", "Tus-Resumable": "1.0.0"},
        timeout=PATIENCE,
    ) as client:
        hashed: list[float] = []
        registered: dict[bool, list[float]] = {False: [], True: []}  # whether it is on the disk already
        for turn in range(TURNS):
            for flushed, taken in registered.items():
                source = lying / f"lying-{turn}-{flushed}.bin"
                _fill(source, LARGE)
                with source.open("rb") as file:
                    if flushed:
                        os.fsync(file.fileno())
                    began = time.perf_counter()
                    digest = of_file(file, "xxh128")
                    hashed.append(time.perf_counter() - began)
                body = {"source": str(source), "filename": source.name, "size": LARGE, "digest": digest}
                began = time.perf_counter()
                answer = client.post("uploads/in-place", json=body)
                taken.append(time.perf_counter() - began)
                if answer.is_error:
                    raise SystemExit(answer.text)
                source.unlink()
    peer = LARGE / 1e9 / statistics.median(hashed)
    for flushed, taken in registered.items():
        what = f"file of {LARGE / 2**30:g} GiB registered in place, verified"
        what += ", that its writer has flushed" if flushed else ""
        speed = LARGE / 1e9 / statistics.median(taken)
        yield Result("ingest", what, speed, "GB/s", 0.9, "higher", "its digest alone", peer)


# --- many small ones ---


def _small(site: Site, stack: ExitStack) -> Iterator[Result]:
    rsync = _rsync(site.folder, stack)
    folder = site.folder / "small"
    folder.mkdir()
    for number in range(SMALL):
        (folder / f"{number:06}.cbf").write_bytes(os.urandom(SMALL_SIZE))
    peer = SMALL / _timed("rsync", "-rW", f"{folder}/", f"{rsync}/small/") if rsync else None
    with site.agent(parallel=16) as agent:
        there = len(list(site.raw.rglob("*.cbf")))
        busy = {"ingest process": site.ingest.process, "agent": agent.process}
        before = {who: _cpu(process) for who, process in busy.items()}
        began = time.perf_counter()
        folder.rename(agent.data / "small")
        goal = site.raw / agent.settings["prefix"].strip('"') / "small"
        site._wait(lambda: goal.is_dir() and len(os.listdir(goal)) == SMALL)  # noqa: PTH208
        client, experiment = site.service.client("ada"), site.beamtime.experiment
        site._wait(lambda: not client.uploads(experiment, state=UploadState.RECEIVING, limit=1))
        taken = time.perf_counter() - began
        used = {who: _cpu(process) - before[who] for who, process in busy.items()}
        if len(list(site.raw.rglob("*.cbf"))) != there + SMALL:
            raise SystemExit("there are other files than were sent")
    what = f"{SMALL} files of {SMALL_SIZE // 1024} KiB, end to end, each durable"
    yield Result("ingest", what, SMALL / taken, "files/s", 800.0, "higher")
    if peer:
        yield Result(
            "ingest", "the same", SMALL / taken, "files/s", None, "higher", "rsync daemon, not durable", peer
        )
    for who, seconds in used.items():
        yield Result("ingest", f"CPU of the {who} for one of them", 1e3 * seconds / SMALL, "ms")


def _latency(site: Site) -> Iterator[Result]:
    """From the rename at the detector to the event, as whoever watches the service hears it."""
    named: dict[str, float] = {}
    heard: dict[str, float] = {}
    client = site.service.client("ada")
    complete, ready = threading.Event(), threading.Event()

    def listen() -> None:
        for message in client.events(site.beamtime.experiment):
            ready.set()
            if message.kind == "file.complete":
                heard[str(message.data["path"]).rsplit("/", 1)[-1]] = time.perf_counter()
                if named.keys() <= heard.keys() and len(named) == ARRIVING:
                    complete.set()
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with site.agent(parallel=8) as agent:
        # the feed is open once it tells of the first file
        (agent.data / "first.tmp").write_bytes(b"first")
        (agent.data / "first.tmp").rename(agent.data / "first.cbf")
        ready.wait(PATIENCE)
        begin = time.perf_counter()
        for number in range(ARRIVING):
            part = agent.data / f"{number}.tmp"
            part.write_bytes(os.urandom(SMALL_SIZE))
            time.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
            named[f"late-{number}.cbf"] = time.perf_counter()
            part.rename(agent.data / f"late-{number}.cbf")
        if not complete.wait(PATIENCE):
            raise SystemExit("not all files were heard of")
    taken = [1e3 * (heard[name] - moment) for name, moment in named.items()]
    what = f"renamed at the detector → event, p95 of {ARRIVING} files at {RATE:g}/s"
    yield Result("ingest", what, percentile(taken, 95), "ms", 250.0)


def _shown(site: Site) -> Iterator[Result]:
    """From the flush at the detector to the event that lets everybody look at the frame."""
    written: list[float] = []
    heard: dict[int, float] = {}
    client = site.service.client("ada")
    complete = threading.Event()

    def listen() -> None:
        for message in client.events(site.beamtime.experiment):
            if message.kind in ("dataset.growing", "dataset.frames"):
                frames = int(str(message.data["frames_readable"]))
                heard.update(dict.fromkeys(range(len(heard), frames), time.perf_counter()))
                if frames == FRAMES:
                    complete.set()
                    return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with (
        site.agent(settle=30) as agent,
        Detector(agent.data / "swmr_master.h5", codec="bslz4", images=FRAMES) as detector,
    ):
        begin = time.perf_counter()
        for number in range(FRAMES):
            time.sleep(max(0.0, begin + number / FRAME_RATE - time.perf_counter()))
            detector.write(1)
            written.append(time.perf_counter())
        if not complete.wait(PATIENCE):
            raise SystemExit("not all frames were heard of")
    taken = [1e3 * (heard[number] - moment) for number, moment in enumerate(written)]
    what = f"frame flushed by a SWMR writer → can be read, p95 of {FRAMES} at {FRAME_RATE:g}/s"
    yield Result("ingest", what, percentile(taken, 95), "ms")


# --- what it costs ---


# a process of its own, which asks the service nothing: two files are on their way at any time
DETECTOR = """
import os, sys, time
source, data, published = sys.argv[1:]
for number in range(100_000):
    os.link(source, f"{data}/busy-{number}.bin")
    while number and not os.path.exists(f"{published}/busy-{number - 1}.bin"):
        time.sleep(0.01)
"""


def _neighbours(site: Site) -> Iterator[Result]:
    """The service's own answers while the ingest process has as much to do as it can: where all share the
    cores, and where one of these is the service's own (and of whoever asks it)."""
    client = site.service.client("ada")
    source = site.folder / "busy.bin"
    _fill(source, LARGE // 4)
    taken: dict[str, list[float]] = {}
    with site.agent(parallel=2) as agent:
        taken["idle"] = latencies(client, site.beamtime.experiment, REQUESTS)
        published = site.raw / agent.settings["prefix"].strip('"')
        detector = subprocess.Popen([sys.executable, "-c", DETECTOR, source, agent.data, published])
        bulk, others = (site.ingest.process, agent.process, detector), (site.service.process, None)
        try:
            site._wait(lambda: any(published.glob("busy-*")))
            taken["busy"] = latencies(client, site.beamtime.experiment, REQUESTS)
            cores = psutil.Process().cpu_affinity()
            _bind(bulk, cores[1:] or cores)
            _bind(others, cores[:1])
            taken["apart"] = latencies(client, site.beamtime.experiment, REQUESTS)
            _bind((*bulk, *others), cores)
        finally:
            detector.kill()
            detector.wait()
    idle = 1e3 * percentile(taken["idle"], 95)
    what = f"p95 of {REQUESTS} requests to the service during a saturating upload"
    for way, more in (("busy", ""), ("apart", ", with a core that the upload does not get")):
        busy = 1e3 * percentile(taken[way], 95)
        yield Result("ingest", f"{what}{more}", busy, "ms", 1.5, "lower", "idle", idle)


def _bind(processes: Sequence[subprocess.Popen[bytes] | None], cores: Sequence[int]) -> None:
    """All threads of these processes run on these cores; None is this one."""
    for process in processes:
        for thread in Path(f"/proc/{process.pid if process else os.getpid()}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def _memory(site: Site) -> Iterator[Result]:
    with site.agent(parallel=2) as agent:
        part = agent.folder / "sparse.bin"
        with part.open("wb") as file:
            file.truncate(SPARSE)
        site.send(agent, part, "sparse.bin")
        assert agent.process is not None
        assert site.ingest.process is not None
        for who, process in (("agent", agent.process), ("ingest process", site.ingest.process)):
            what = f"most memory of the {who}, over {SPARSE / 1e9:g} GB"
            yield Result("ingest", what, _most_memory(process.pid), "MB", 150.0)


def _cpu(process: subprocess.Popen[bytes] | None) -> float:
    """Seconds, of it and of what it has started and waited for."""
    assert process is not None
    return sum(psutil.Process(process.pid).cpu_times()[:4])


def _most_memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


# --- peers ---


def _rsync(folder: Path, stack: ExitStack) -> str | None:
    """The address of an rsync daemon that takes everything; None where there is no rsync."""
    if shutil.which("rsync") is None:
        sys.stderr.write("rsync is not installed, so nothing is compared with it\n")
        return None
    (folder / "rsync").mkdir(exist_ok=True)
    port = free_port()
    config = folder / f"rsyncd-{port}.conf"
    config.write_text(
        f"use chroot = no\n[all]\npath = {folder / 'rsync'}\nread only = no\nuid = {os.getuid()}\n"
    )
    command = [
        "rsync",
        "--daemon",
        "--no-detach",
        "--address=127.0.0.1",
        f"--port={port}",
        f"--config={config}",
    ]
    _background(command, port, stack)
    return f"rsync://127.0.0.1:{port}/all"


def _proxy(target: str, stack: ExitStack) -> str:
    """The address of the hub's proxy in front of `target`."""
    port, control = free_port(), free_port()
    options = ["--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={control}"]
    _background([*proxy.install(), *options, f"--default-target={target}"], port, stack)
    return f"http://127.0.0.1:{port}"


def _background(command: Sequence[str], port: int, stack: ExitStack) -> None:
    """A program that ends with the benchmark; it listens when this returns."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    connections = psutil.Process(process.pid).net_connections
    while not any(c.status == psutil.CONN_LISTEN and c.laddr[1] == port for c in connections("tcp")):
        if process.poll() is not None:
            raise SystemExit(f"{command[0]} ended with {process.returncode}")
        time.sleep(0.01)


def _timed(*command: str | Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def _fill(path: Path, size: int) -> None:
    """Writes bytes that nobody compresses, and leaves them in the page cache."""
    block = os.urandom(2**22)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(start.to_bytes(8, "little"))
            file.write(block[8 : min(len(block), size - start)])
        file.truncate(size)
