"""Text for one line of a page, a log or a database: what comes from outside, made fit, and durations."""

from __future__ import annotations

import re

_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # they make text read as what it is not


def duration(seconds: int) -> str:
    """For a sentence: "1 h", "90 s"."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def one_line(text: str, limit: int) -> str:
    """The printable part of a text on one line, of at most `limit` characters."""
    printable = "".join(c if c.isprintable() else " " for c in _DIRECTIONS.sub("", text[: 4 * limit]))
    line = " ".join(printable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
