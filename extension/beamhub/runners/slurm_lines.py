"""What Slurm's commands print: jobs in its queue and in its accounts, and nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from beamhub.schemas import NodeState

FORMAT = "%i|%T|%r|%S|%e|%M|%C|%V|%N|%j"  # of squeue; the name is last, as anything may stand in it
NODES = "%N|%T|%C"  # of sinfo; CPUs are allocated/idle/other/total
FIELDS = "JobIDRaw,State,Start,End,ElapsedRaw,NCPUS,NodeList,JobName"  # of sacct

RUNNING = {"RUNNING", "COMPLETING", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
# Of these and no others the job's own program has seen the end, and left its result.
OWN_END = {"COMPLETED", "FAILED"}
# Not the job's doing.
AGAIN = {"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"}


@dataclass(frozen=True)
class Line:
    """A job as Slurm accounts for it."""

    number: int
    name: str
    state: str
    why: str  # Slurm's word for what it waits for
    begin: datetime | None  # estimated, as long as it waits
    end: datetime | None
    elapsed: int  # seconds
    cpus: int
    nodes: str  # "" if it never had any
    submitted: datetime | None = None

    @property
    def held(self) -> bool:
        return self.state == "PENDING" and self.why == "JobHeldUser"


def queue_line(row: str) -> Line | None:
    """A job in the queue; None for what is none of ours."""
    fields = row.split("|", 9)
    if len(fields) < 10 or not fields[0].isdecimal():  # arrays and the like, which are not ours
        return None
    number, state, why, begin, end, elapsed, cpus, submitted, nodes, name = fields
    return Line(
        int(number),
        name,
        state,
        why,
        moment(begin),
        moment(end),
        elapsed_seconds(elapsed),
        int(cpus) if cpus.isdecimal() else 0,
        nodes,
        moment(submitted),
    )


def node_line(row: str) -> tuple[str, tuple[NodeState, int, int]]:
    """A node's name, and its state, idle and total CPUs."""
    name, state, cpus = row.strip().split("|")
    _, idle, _, total = map(int, cpus.split("/"))
    match state.rstrip("*~#!%$@^-+"), state[-1]:
        case _, "*":
            known = NodeState.UNAVAILABLE  # it does not answer
        case _, "~" | "!" | "%":
            known = NodeState.OFF
        case _, "#" | "@" | "^":
            known = NodeState.STARTING
        case "idle", _:
            known = NodeState.FREE
        case "allocated" | "mixed" | "completing" | "planned", _:
            known = NodeState.BUSY
        case _:
            known = NodeState.UNAVAILABLE
    return name, (known, idle, total)


def account_line(row: str) -> Line | None:
    """A job in the accounts; None for what is none of ours, or not over."""
    fields = row.split("|", 7)
    if len(fields) < 8 or not fields[0].isdecimal():
        return None
    number, state, begin, end, elapsed, cpus, nodes, name = fields
    state = state.split(" ")[0]  # "CANCELLED by 1000"
    if state in RUNNING | WAITING:  # its accounts are not closed, but the controller has no such job
        return None
    return Line(
        int(number),
        name,
        state,
        "",
        moment(begin),
        moment(end),
        int(elapsed) if elapsed.isdecimal() else 0,
        int(cpus) if cpus.isdecimal() else 0,
        "" if nodes in ("None assigned", "(null)") else nodes,
    )


def moment(text: str) -> datetime | None:
    """Of seconds since 1970; None if it is not known."""
    return datetime.fromtimestamp(int(text), UTC) if text.isdecimal() and text != "0" else None


def elapsed_seconds(text: str) -> int:
    """Of Slurm's days-hours:minutes:seconds; 0 if it is none."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", text):
        return 0
    days, _, clock = text.rpartition("-")
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part or 0)
    return total + 86400 * int(days or 0)
