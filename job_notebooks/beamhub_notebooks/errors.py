"""What a template says when it cannot go on."""

from __future__ import annotations


class ProcessingError(Exception):
    """The data do not allow the next step: a sentence saying what was found, and one saying what to do."""
