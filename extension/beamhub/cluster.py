"""A real Slurm of two nodes on this machine, for tests and for the demo: munged, slurmctld, and a slurmd for
each node, all on loopback and with everything in one folder.

`python -m beamhub.cluster FOLDER` runs one until it is interrupted. It takes root, as Slurm's node daemon
does, and no systemd, no control groups, no database. Memory is watched by Slurm's own sampling.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from beamhub.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sacct")
NODES = ("n1", "n2")
MARK = "BEAMHUB_CLUSTER"  # in the environment of each daemon and what it starts, with folder and name
START = 30.0  # seconds; a healthy cluster takes one
CONFIGURATION = """\
ClusterName=beamhub
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdTimeout=10
InactiveLimit=0
KillWait=2
MinJobAge={remembered}
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency={sampling}
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/{completion}
JobCompLoc={folder}/completed.log
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""
# `scontrol update nodename=n1 state=power_down` says that a node is switched off; its daemon goes on
POWER_SAVING = """\
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=36000
SuspendTimeout=1
ResumeTimeout=60
"""


class ClusterFailed(Exception):  # noqa: N818 (reads as what happened)
    """The cluster can't be started here; the message says what to do."""


def missing() -> str:
    """Why there can be no cluster on this machine, in one sentence; "" if there can."""
    if os.geteuid() != 0:
        return "Slurm's node daemon has to run as root: start this as root, or in a container that is."
    absent = [name for name in PROGRAMS if _find(name) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"Slurm is not installed ({', '.join(absent)} missing): apt-get install {packages}"
    return ""


class Cluster:
    """A cluster with everything in `folder`; `start` it, and `stop` it in the end.

    Args:
        cpus: of each node. They are Slurm's to give away, and may be more than this machine has.
        memory: of each node, MiB.
        remembered: seconds for which the controller knows a job that has ended.
        record: whether a record of completed jobs is kept, which `sacct --completion` reads.
        power_saving: whether nodes may be switched off.
        sampling: seconds between two looks at the memory of a job; 0: it is not watched.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 2,
        memory: int = 16384,
        remembered: int = 300,
        record: bool = True,
        power_saving: bool = False,
        sampling: int = 1,
    ) -> None:
        self.folder = folder.absolute()
        self.conf = self.folder / "slurm.conf"
        self._settings = {"cpus": cpus, "memory": memory, "remembered": remembered, "record": record}
        self._sampling = sampling
        self._power_saving = POWER_SAVING if power_saving else ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes Slurm's commands talk to this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Start, and wait until both nodes take jobs. Raises ClusterFailed."""
        if reason := missing():
            raise ClusterFailed(reason)
        self._write()
        try:
            self._run("munged", *self._munged())
            self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
            self.start_controller()
            for node in NODES:
                self.start_node(node)
            self._until(self._up, "the nodes")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the cluster, as a power cut would: a controller that is started again finds its jobs failed."""
        for name in reversed(list(self._processes)):
            self.kill(name)

    def command(self, *argv: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            argv,
            env={**os.environ, **self.environment},
            check=check,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=START,
        )
        return done.stdout

    # --- its daemons, for tests that kill them ------------------------------------------------------

    def start_controller(self) -> None:
        self._run("slurmctld", "slurmctld", "-D")
        self._until(lambda: "UP" in self.command("scontrol", "ping", check=False), "slurmctld")

    def start_node(self, node: str) -> None:
        self._run(node, "slurmd", "-D", "-N", node)

    def kill(self, name: str) -> None:
        """Kill the controller ("slurmctld") or the daemon of a node, with everything that runs there."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        while victims := [pid for pid in _processes() if self._belongs(pid, name)]:
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop_controller(self) -> None:
        """End the controller as its administrator would: started again, it knows its jobs. One that is killed
        may have forgotten those of its last seconds."""
        process = self._processes.pop("slurmctld")
        process.terminate()
        process.wait()

    def _belongs(self, pid: int, name: str) -> bool:
        """Whether this is a process of that daemon, or of a job that it has started."""
        try:
            environment = set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        except OSError:
            return False
        job = {f"SLURM_CONF={self.conf}".encode(), f"SLURMD_NODENAME={name}".encode()}
        return f"{MARK}={self.folder}/{name}".encode() in environment or job <= environment

    def forget(self) -> None:
        """Kill the controller, and start one that knows of no job."""
        self.kill("slurmctld")
        shutil.rmtree(self.folder / "state")
        (self.folder / "state").mkdir()
        self.start_controller()

    # --- how ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self._settings['cpus']} RealMemory={self._settings['memory']}"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        for name in ("", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o400)
            key.write_bytes(secrets.token_bytes(128))
        self.conf.write_text(
            CONFIGURATION.format(
                host=host,
                port=ports[0],
                folder=self.folder,
                nodes="\n".join(nodes),
                remembered=self._settings["remembered"],
                sampling=self._sampling,
                completion="filetxt" if self._settings["record"] else "none",
            )
            + self._power_saving
        )

    def _munged(self) -> Sequence[str]:
        folder = self.folder
        return (
            "munged",
            "--foreground",
            "--force",  # although others may enter the folder
            f"--socket={folder}/munge.socket",
            f"--key-file={folder}/munge.key",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munged.seed",
        )

    def _run(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / "output.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [_find(program) or program, *arguments],
                env={**os.environ, **self.environment, MARK: f"{self.folder}/{name}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _up(self) -> bool:
        states = self.command(
            "sinfo", "--noheader", "--Node", "--partition=normal", "--format=%T", check=False
        )
        return len(states.split()) == len(NODES) and set(states.split()) <= {"idle", "mixed", "allocated"}

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START
        while not holds():
            if time.monotonic() > end:
                logs = "\n".join(
                    path.read_text(errors="replace")[-1000:] for path in self.folder.glob("*.log")
                )
                raise ClusterFailed(f"{what} did not come up:\n{logs}")
            time.sleep(0.05)


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m beamhub.cluster", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpus", type=int, default=2, help="of each node; 4 GiB of memory each")
    options = parser.parse_args(arguments)
    cluster = Cluster(options.folder, cpus=options.cpus, memory=options.cpus * 4096)
    ended = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ended)
    try:
        cluster.start()
    except ClusterFailed as error:
        sys.exit(str(error))
    (cluster.folder / "ready").touch()
    signal.sigwait(ended)
    cluster.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
