"""A notebook as an HTML page: `python -m beamhub.page TITLE < notebook > page`.

A program of its own, with little memory and time, because a notebook's outputs may be anybody's: one that is
made to keep its reader busy for hours keeps only this process busy. What the outputs contain is text and
pictures in the page, never code.
"""

from __future__ import annotations

import re
import resource
import sys
import warnings
from typing import Any

LIMIT = 32 * 2**20  # bytes of a notebook
MEMORY = 2 * 2**30  # bytes of address space
SECONDS = 30  # of CPU time
NO_NOTEBOOK, TOO_LARGE = 3, 4  # exit codes
_SCRIPT = re.compile(r"<script\b.*?</script\s*>", re.DOTALL | re.IGNORECASE)


class NoNotebook(Exception):  # noqa: N818 (says what it is)
    """What has come can't be read as a notebook."""


def page(content: bytes, title: str) -> bytes:
    """The notebook `content` as HTML. Raises NoNotebook."""
    import nbformat
    from nbconvert import HTMLExporter

    try:
        notebook: Any = nbformat.reads(content.decode(), as_version=4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
    except (ValueError, LookupError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise NoNotebook(str(error)) from error
    exporter = HTMLExporter(template_name="lab", sanitize_html=True)  # type: ignore[no-untyped-call]
    html: str
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    # the exporter's own scripts come from other hosts, and no page of ours lets any run
    return _SCRIPT.sub("", html).encode()


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    warnings.simplefilter("ignore")  # of faults that validation mends
    content = sys.stdin.buffer.read(LIMIT + 1)
    if len(content) > LIMIT:
        return TOO_LARGE
    try:
        made = page(content, sys.argv[1])
    except NoNotebook:
        return NO_NOTEBOOK
    sys.stdout.buffer.write(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
