"""The process that the cells of a notebook run in, ready before it is known which notebook that will be.

Starting Python, importing its packages and connecting to a kernel take seconds together. Here the kernel is a
fork of a process that has imported everything already, and both have met before there is anything to do.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import run_sync
from traitlets import Any as Anything
from traitlets import Bool, Type
from traitlets.config import Config

NAME = "python3"  # of the kernel spec that every installation of ipykernel has
START = 120.0  # seconds that a kernel may take to answer
TURN = 0.005  # seconds between two looks whether a kernel that was asked to end has ended
QUIET = 0.2  # seconds after which a kernel is asked again, whose answer was not heard
BLAS = "/libscipy_openblas64_"  # numpy's own


def transport(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """How to speak with a kernel: by sockets in a private folder. Other users of a node cannot connect to
    these, as they could to a TCP port."""
    return {"KernelManager": {"transport": "ipc", "connection_file": str(folder / f"{name}.json")}}


class Kernel:
    """A kernel of this Python: a fork of this process that answers when the constructor returns. Its sockets
    are in `folder`.

    Make it while this process has one thread and no event loop, for the fork inherits everything. In the
    fork, the constructor ends with SystemExit when the kernel does: let that pass.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gc.collect()
        gc.freeze()  # what both have stays in memory once
        order, wire = os.pipe()
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            os.close(wire)
            sys.exit(_become(order, parent))
        os.close(order)
        self.pid = pid
        self.manager = Manager(kernel_name=NAME, config=Config(transport(folder, NAME)))
        self.manager.forked = Fork(pid, wire)
        run_sync(self._meet)()

    async def _meet(self) -> None:
        await self.manager.start_kernel(extra_arguments=["--HistoryManager.hist_file=:memory:"])
        client = self.manager.client()
        client.start_channels()
        await client.wait_for_ready(START)
        await self._do("None")  # the first that a kernel executes takes longer than all others

    def settle(self, environment: Mapping[str, str], limits: Mapping[int, int]) -> None:
        """Tells the kernel for whom it is: adds to its environment, and limits its resources (those of
        `resource`)."""
        for limit, value in limits.items():
            resource.prlimit(self.pid, limit, (value, value))
        run_sync(self._do)(f"__import__({__name__!r}, fromlist=['heed']).heed({dict(environment)!r})")

    async def _do(self, code: str) -> None:
        client = self.manager.client()
        reply = await client.execute(code, silent=True, store_history=False, reply=True, timeout=START)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the kernel does not do what it is told: {reply['content']}")

    def end(self) -> None:
        """Ends the kernel, politely if it still listens."""
        run_sync(self._end)()

    async def _end(self) -> None:
        if await self.manager.is_alive():
            await self.manager.shutdown_kernel()
        await self.manager.cleanup_resources()
        self.manager.client().stop_channels()


class Fork:
    """A child of this process that becomes a kernel when it is told its arguments, with what others expect of
    a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, wire: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._wire = wire

    def become(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        with os.fdopen(self._wire, "w") as wire:
            json.dump([list(arguments), dict(environment)], wire)

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        return self._reap(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class Client(AsyncKernelClient):
    """A client that takes a kernel for ready when it has heard it answer, and knows that then."""

    ready = Bool(False)

    def start_channels(self, *channels: bool, **named: bool) -> None:
        if not self.ready:
            super().start_channels(*channels, **named)

    async def _async_wait_for_ready(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (theirs)
        end = time.monotonic() + (timeout or START)
        while not self.ready:
            asked = self.kernel_info()
            try:
                for channel, patience in ((self.iopub_channel, QUIET), (self.shell_channel, 1)):
                    while (await channel.get_msg(timeout=patience))["parent_header"].get("msg_id") != asked:
                        pass
                self.ready = True
            except Empty:  # it wasn't there yet, or what it said came before anybody listened
                if not await self._async_is_alive():
                    raise RuntimeError("Kernel died before replying to kernel_info") from None
                if time.monotonic() > end:
                    raise RuntimeError(f"Kernel didn't respond in {timeout} seconds") from None

    wait_for_ready = _async_wait_for_ready


class Manager(AsyncKernelManager):
    """Looks after a kernel that is a fork, and has one client."""

    forked = Anything()
    connected = Anything()
    client_factory = Type(Client, klass=AsyncKernelClient)

    def client(self, **options: Any) -> AsyncKernelClient:  # type: ignore[override]
        if self.connected is None:
            self.connected = super().client(**options)
        client: AsyncKernelClient = self.connected
        return client

    async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
        provisioner = self.provisioner
        if not isinstance(provisioner, LocalProvisioner):
            raise TypeError(f"{NAME} is not a kernel of this machine")
        self.forked.become(kernel_cmd[kernel_cmd.index("-f") :], kw["env"])
        provisioner.process = self.forked
        provisioner.pid = provisioner.pgid = self.forked.pid
        self._reconcile_connection_info(provisioner.connection_info)

    async def _async_interrupt_kernel(self) -> None:
        # it is idle when it is asked to end, and would only complain about that in the job's log
        if not self.shutting_down:
            await super()._async_interrupt_kernel()

    interrupt_kernel = _async_interrupt_kernel

    async def _async_finish_shutdown(
        self, waittime: float | None = None, pollinterval: float = TURN, restart: bool = False
    ) -> None:
        await super()._async_finish_shutdown(waittime, pollinterval, restart)


def _become(order: int, parent: int) -> int:
    """In the fork: waits to be told how, and is a kernel until it is shut down. Its exit code."""
    with os.fdopen(order) as pipe:
        told = pipe.read()
    if not told:
        return 1  # the parent has ended
    arguments, environment = json.loads(told)
    atexit.register(_leave)  # called after all that the notebook registers
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    from ipykernel import kernelapp

    sys.argv = [kernelapp.__file__, *arguments]
    kernelapp.launch_new_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={parent}"])
    return 0


def _leave() -> None:
    """Spares taking all modules apart, which would copy most of the memory that is shared with the parent."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(0)


def heed(environment: Mapping[str, str]) -> None:
    """In the kernel: takes over these variables, also where libraries have read them already."""
    os.environ.update(environment)
    if numba := sys.modules.get("numba"):
        numba.config.reload_config()
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if BLAS in line}
    for path in loaded:
        ctypes.CDLL(path).scipy_openblas_set_num_threads64_(int(environment["OPENBLAS_NUM_THREADS"]))
