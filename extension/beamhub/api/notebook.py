"""Notebooks as pages that are safe to look at."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import BinaryIO

from beamhub.errors import Conflict, TooLarge
from beamhub.page import LIMIT, NO_NOTEBOOK, TOO_LARGE

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds
# whatever sanitising may have missed: no scripts, nothing from elsewhere, no origin; the Cockpit may show it
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'self'; sandbox"
)
_turns = asyncio.Semaphore(2)  # pages that are made at the same time


async def page(file: BinaryIO, title: str) -> bytes:
    """HTML of the notebook in `file`, made by `beamhub.page` in a process of its own; takes seconds.

    Raises TooLarge, and Conflict for a notebook that is being written just now.
    """
    async with _turns:
        process = await asyncio.create_subprocess_exec(
            *("nice", sys.executable, "-m", "beamhub.page", title),
            stdin=file,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                html, complaints = await process.communicate()
        except TimeoutError:
            html, complaints = b"", b"timeout"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == 0:
        return html
    if process.returncode == NO_NOTEBOOK:
        raise Conflict(
            f"The notebook of {title} can't be read: it is being written just now, or is no notebook.",
            "Try again, or download it as .ipynb.",
        )
    if process.returncode != TOO_LARGE:
        log.warning("no page of %s: %s", title, complaints.decode(errors="replace")[-2000:])
    raise TooLarge(
        f"The notebook of {title} is too large for a page: more than {LIMIT // 2**20} MiB, or too intricate.",
        "Download it as .ipynb instead.",
    )
