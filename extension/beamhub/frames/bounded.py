"""A child process that answers questions about files from outside, within bounds of memory and time."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable

BEGUN = b"\n"  # what the child says when it begins to look
START = 120.0  # seconds that a busy machine may take until then


def serve(understood: Callable[[bytes], Callable[[], bytes]], memory: int, seconds: int) -> None:
    """Answers each line of stdin with a line on stdout, until stdin ends; before each answer it says that it
    begins to look. The process has `memory` bytes of address space and writes no file.

    Args:
        understood: makes ready what answers a question; that takes no more than `seconds` of CPU, or the
            process is ended.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        answer = understood(line)
        _say(BEGUN)
        used = resource.getrusage(resource.RUSAGE_SELF)
        spent = math.ceil(used.ru_utime + used.ru_stime)
        resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds + 1, resource.RLIM_INFINITY))
        _say(answer() + b"\n")


def _say(what: bytes) -> None:
    sys.stdout.buffer.write(what)
    sys.stdout.buffer.flush()
