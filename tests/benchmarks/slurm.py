"""What the service adds to Slurm, measured on a real one of two nodes that is started for it."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beamhub import cluster
from beamhub.jobfolder import JobFolder
from beamhub.runners import Phase, Ref
from beamhub.runners.slurm import SCRIPT
from beamhub.schemas import JobSpec, JobState, SpecInput
from beamhub.testing_slurm import running_cluster

from tests.integration.laboratory import condition, template
from tests.integration.test_slurm import PROFILES, SlurmLab

RUNS = 5
MANY = 1000

Row = tuple[str, float, str, float | None]  # what, how much, unit, target


def rows() -> Iterator[Row]:
    """Nothing where there can be no Slurm; why not is said."""
    if reason := cluster.missing():
        print(f"jobs on Slurm are not measured: {reason}")  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as name, running_cluster(Path(name) / "slurm") as slurm:
        Path(name).chmod(0o755)
        lab = SlurmLab(Path(name), slurm)
        yield from asyncio.run(_overhead(lab))
        lab.store.close()
    # a CPU for each job; to watch the memory of so many would take all of this machine's own
    large = {"cpus": -(-MANY // len(cluster.NODES)), "memory": 10 * MANY, "sampling": 0}
    with tempfile.TemporaryDirectory() as name, running_cluster(Path(name) / "slurm", **large) as slurm:
        Path(name).chmod(0o755)
        lab = SlurmLab(Path(name), slurm)
        yield from asyncio.run(_looks(lab))
        lab.store.close()


async def _overhead(lab: SlurmLab) -> list[Row]:
    """From the wish for a job to its end known, by way of the service and by way of `sbatch` and `squeue`."""
    template(lab.templates, "try_it", "print(n)")
    bare, ours = [], []
    async with lab.running(lab.both()):
        for run in range(RUNS + 1):
            bare.append(await _bare(lab, 10_000 + run))
            began = time.perf_counter()
            done = await lab.until(await lab.submit("try_it", "one"))
            ours.append(time.perf_counter() - began)
            if done.state is not JobState.FINISHED:
                raise SystemExit(f"a job on Slurm {done.state}: {done.reason}")
    # the first of each fills caches
    peer, added = statistics.median(bare[1:]), statistics.median(ours[1:]) - statistics.median(bare[1:])
    return [
        ("a job by sbatch alone: submitted → its end seen, median", peer, "s", None),
        ("the same by way of the service: added to that, median", added, "s", 0.5),
    ]


async def _bare(lab: SlurmLab, number: int) -> float:
    """Seconds of the same command, submitted by hand, and looked after every 20 ms."""
    experiment = lab.data_dir / lab.experiment
    folder = JobFolder(experiment, number)
    spec = JobSpec(
        id=number,
        experiment=lab.experiment,
        template="try_it",
        template_version="0" * 16,
        parameters={"n": 1, "label": ""},
        inputs=[SpecInput(id=1, path=str(experiment / "raw" / "lyso_master.h5"))],
        cpus=1,
        memory=4 * 1024**3,
        folder=str(folder.path),
    )
    folder.lay(spec, (lab.templates / "try_it.ipynb").read_bytes())
    settings = lab.slurm()._settings
    began = time.perf_counter()
    submitted = await lab.ask(
        *("sbatch", "--parsable", "--mem=1024", f"--chdir={folder.path}", "--output=log.txt"),
        *(str(SCRIPT), str(settings.python), str(folder.path)),
        *(f"--experiment={experiment}", f"--hide={lab.folder / 'state'}", f"--hide={lab.data_dir}"),
    )

    async def seen() -> bool:
        state = await lab.ask("squeue", "-h", "-t", "all", "-o", "%T", "-j", submitted.strip())
        return state.strip() == "COMPLETED"

    await condition(seen)
    return time.perf_counter() - began


async def _looks(lab: SlurmLab) -> list[Row]:
    """At many jobs, all of which run: each waits for a pipe to be opened, which nobody does."""
    calls, programs = lab.folder / "calls", lab.folder / "programs"
    programs.mkdir()
    for name in ("squeue", "sacct", "scontrol"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} >> {calls}\nexec /usr/bin/{name} "$@"\n')
        (programs / name).chmod(0o755)
    runner = lab.slurm(path=f"{programs}:{os.environ['PATH']}", interval=0.001)
    pipe, script = lab.folder / "pipe", lab.folder / "wait.sh"
    os.mkfifo(pipe)
    script.write_text(f"#!/bin/sh\nexec cat {pipe}\n")

    async def submit(number: int) -> Ref:
        name = f"{runner._prefix}{20_000 + number}"
        folder = lab.folder / "many" / str(number)
        folder.mkdir(parents=True)
        told = await lab.ask(
            *("sbatch", "--parsable", "--output=/dev/null", "--mem=10", f"--job-name={name}", str(script))
        )
        walltime, memory = PROFILES[0].walltime, PROFILES[0].memory
        return {
            "slurm": int(told),
            "name": name,
            "folder": str(folder),
            "walltime": walltime,
            "memory": memory,
        }

    async def all_run() -> bool:
        states = (await lab.ask("squeue", "--noheader", "--states=all", "--format=%T")).split()
        if gone := set(states) - {"PENDING", "CONFIGURING", "RUNNING"}:
            raise SystemExit(f"jobs on Slurm that are to run are {', '.join(gone)}")
        await asyncio.sleep(1)  # it has enough to do with starting them
        return states.count("RUNNING") == MANY

    refs = [await submit(number) for number in range(MANY)]
    await condition(all_run)
    seconds = []
    for _ in range(RUNS):
        calls.unlink(missing_ok=True)
        began = time.perf_counter()
        statuses = await runner.poll(refs)
        seconds.append(time.perf_counter() - began)
        if {status.phase for status in statuses} != {Phase.RUNNING}:
            raise SystemExit("jobs on Slurm that run are not seen to")
    asked = len(calls.read_text().splitlines())
    return [
        (f"one look at {MANY} running jobs on Slurm: commands run", float(asked), "", 1.0),
        (f"one look at {MANY} running jobs on Slurm, median", 1e3 * statistics.median(seconds), "ms", None),
    ]
