"""What Slurm says, in people's words."""

from __future__ import annotations

from datetime import datetime

from beamhub.text import duration, one_line

ENDS = {
    "COMPLETED": "Its processes ended without a result: the end of its log may tell why.",
    "FAILED": "Its processes ended without a result: the end of its log may tell why.",
    "TIMEOUT": "It reached its time limit of {limit}.",
    "DEADLINE": "Slurm ended it at its deadline.",
    "OUT_OF_MEMORY": "It used more than {memory:g} GiB of memory: choose a profile with more.",
    "CANCELLED": "It was cancelled in Slurm, not here.",
    "NODE_FAIL": "The node {nodes} failed while it ran.",
    "BOOT_FAIL": "The node {nodes} could not be switched on.",
    "PREEMPTED": "Slurm ended it to make room for a job of higher priority.",
    "LAUNCH_FAILED": "Slurm could not launch it on {nodes}.",
    "RECONFIG_FAIL": "Slurm could not set up {nodes} for it.",
    "REVOKED": "Slurm ran it on another cluster.",
}
# What a job waits for, by the beginning of Slurm's own word for it.
WAITS = {
    "None": "Waits for its turn in Slurm",
    "Resources": "Waits for free CPUs and memory in Slurm",
    "Priority": "Waits in Slurm behind jobs of higher priority",
    "Dependency": "Waits in Slurm for another job",
    "BeginTime": "Waits in Slurm for its time to begin",
    "JobHeldAdmin": "Is held by the cluster's administrator",
    "JobHeldUser": "Is held in Slurm",
    "JobLaunchFailure": "Is held by Slurm: it could not be launched",
    "launch failed": "Is held by Slurm: it could not be launched",
    "PartitionDown": "Waits: its partition in Slurm is down",
    "PartitionInactive": "Waits: its partition in Slurm takes no jobs now",
    "PartitionTimeLimit": "Waits: its time limit is longer than its partition in Slurm permits",
    "PartitionNodeLimit": "Waits: its partition in Slurm has no such nodes",
    "PartitionConfig": "Waits: its partition in Slurm does not permit what it asks for",
    "ReqNodeNotAvail": "Waits: nodes that it could run on are reserved, drained or down",
    "Nodes required": "Waits: nodes that it could run on are reserved, drained or down",
    "NodeDown": "Waits: nodes that it could run on are down",
    "Reservation": "Waits for its reservation in Slurm",
    "Licenses": "Waits for a software licence in Slurm",
    "QOS": "Waits: others of the same quality of service use all that is permitted",
    "MaxCpuPerAccount": "Waits: its account in Slurm uses all that is permitted",
    "Assoc": "Waits: its account in Slurm uses all that is permitted",
    "InvalidAccount": "Waits: its account in Slurm is not valid",
    "InvalidQOS": "Waits: its quality of service in Slurm is not valid",
}


def why_it_ended(state: str, *, walltime: int, memory: int, nodes: str) -> str:
    """A sentence for the state in which a job has ended.

    Args:
        walltime: that it could have had, in seconds.
        memory: likewise, in bytes.
        nodes: where it ran; "" if nowhere.
    """
    sentence = ENDS.get(state, f"Slurm says {one_line(state, 80)}.")
    return sentence.format(limit=duration(walltime), memory=memory / 1024**3, nodes=nodes or "(none)")


def what_it_waits_for(why: str) -> str:
    """A sentence without its full stop, for Slurm's own word for that."""
    known = (text for word, text in WAITS.items() if why.startswith(word))
    return next(known, f"Waits in Slurm ({one_line(why, 120)})")


def clock(moment: datetime, now: datetime) -> str:
    """A time of day, with the date where that is another than now."""
    return f"{moment:%H:%M} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M} UTC"
