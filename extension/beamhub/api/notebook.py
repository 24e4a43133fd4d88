"""A notebook as a page that is safe to look at: its outputs are text and pictures there, never code."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

from beamhub.errors import Conflict, TooLarge

LIMIT = 32 * 2**20  # bytes; beyond that a page takes too long to make
# whatever sanitising may have missed: no scripts, nothing from elsewhere, no origin; the Cockpit may show it
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'self'; sandbox"
)

_SCRIPT = re.compile(r"<script\b.*?</script\s*>", re.DOTALL | re.IGNORECASE)


def page(file: BinaryIO, title: str) -> bytes:
    """HTML of the notebook in `file`. Takes seconds: call it in a thread.

    Raises TooLarge, and Conflict for a notebook that is being written just now.
    """
    # heavy, and most services are never asked for it
    import nbformat
    from nbconvert import HTMLExporter

    content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise TooLarge(f"The notebook has more than {LIMIT // 2**20} MiB.", "Download it as .ipynb instead.")
    try:
        notebook: Any = nbformat.reads(content.decode(), as_version=4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
    except (ValueError, LookupError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise Conflict(
            "The notebook can't be read: it is being written just now, or is no notebook.", "Try again."
        ) from error
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="lab",
        sanitize_html=True,
    )
    html: str
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    # the exporter's own scripts, from other hosts; POLICY would not let them run
    return _SCRIPT.sub("", html).encode()
