"""Why jobs fail, in sentences for people who did not write the notebook."""

from __future__ import annotations

import re

DISK_FULL = (
    "The disk is full, or the quota is used up: make room, or ask the facility, and run the job again."
)
MEMORY = "It ran out of memory: choose a profile with more."

_FULL = re.compile(r"No space left on device|Disk quota exceeded|errno = 28\b")
_MEMORY = re.compile(
    r"\bMemoryError\b|Unable to allocate [\d.]+ \w?i?B|std::bad_alloc|Cannot allocate memory"
)
_PROGRAM = re.compile(r"\[Errno (?:2|13)\] (?:No such file or directory|Permission denied): '([^'/]+)'")
_PACKAGE = re.compile(r"No module named '([\w.]+)'")


def sentence(name: str, text: str, traceback: str = "") -> str:
    """What an exception in a notebook means: its class, its text, and its traceback without colours."""
    if name == "ProcessingError":  # of beamhub_notebooks: made of sentences already
        return text
    if _FULL.search(text):
        return DISK_FULL
    if name == "MemoryError" or _MEMORY.search(text):
        return MEMORY
    if (found := _PROGRAM.search(text)) and "_execute_child" in traceback:
        return f"The program {found[1]} is not installed where the job ran: ask the facility for it."
    if name == "ModuleNotFoundError" and (found := _PACKAGE.search(text)):
        return f"The Python package {found[1]} is not installed where the job ran: ask the facility for it."
    return f"{name}: {text}" if text else name


def last_words(log: str) -> str:
    """What the end of the log of a job without a result tells; "" if nothing that is known."""
    return DISK_FULL if _FULL.search(log) else MEMORY if _MEMORY.search(log) else ""
