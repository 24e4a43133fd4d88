"""The virtual detector at full speed on one core."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator

from beamhub_hub.demo import BEAMHUB

from tests.benchmarks.result import Result


def rows() -> Iterator[Result]:
    for detector, target in (("1M", 10.0), ("4M", None)):
        with tempfile.TemporaryDirectory() as folder:
            command = [*BEAMHUB, "simulate", f"--folder={folder}", f"--detector={detector}", "--json"]
            seconds = []
            for count in (1, 10, 110):  # the first one compiles; the others' difference leaves start-up aside
                began = time.perf_counter()
                subprocess.run(
                    [*command, f"--prefix=n{count}", f"--frames={count}", "--rate=1000"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    preexec_fn=lambda: os.sched_setaffinity(0, {0}),
                )
                seconds.append(time.perf_counter() - began)
            rate = 100 / (seconds[2] - seconds[1])
        yield Result("frames", f"simulate {detector}, one core", rate, "frames/s", target, better="higher")
