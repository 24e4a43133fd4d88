"""`make bench`: measures what is promised about speed, on this machine; writes .bench/results.json and the
tables of docs/performance.md.

    python -m tests.benchmarks [frames|jobs|processing|pages|api|ingest …]

Nothing here fails when a number is missed: the table says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from tests.benchmarks import beamtime, frames, ingest, local, many_jobs, rules, slurm, takeover
from tests.benchmarks.result import Result, publish
from tests.temporary import end_on_signals, temporary_folder


def jobs() -> Iterator[Result]:
    """From an event to a job, how soon one begins, and what the service adds to one on a cluster."""
    yield from local.rows()
    yield from (
        Result("jobs", *row) for row in (*rules.rows(), *many_jobs.rows(), *takeover.rows(), *slurm.rows())
    )


AREAS = {
    "frames": frames.rows,
    "jobs": jobs,
    "processing": beamtime.rows,
    "pages": beamtime.rows,
    "api": beamtime.rows,
    "ingest": ingest.rows,
}


def main(wanted: Sequence[str]) -> None:
    if unknown := set(wanted) - set(AREAS):
        raise SystemExit(f"no such area: {', '.join(unknown)}; there are {', '.join(AREAS)}")
    runs = dict.fromkeys(AREAS[area] for area in (wanted or AREAS))
    end_on_signals()
    with temporary_folder():
        results = [result for run in runs for result in run() if not wanted or result.area in wanted]
    publish(results)


if __name__ == "__main__":
    main(sys.argv[1:])
