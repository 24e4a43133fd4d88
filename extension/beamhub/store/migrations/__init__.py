"""How the tables came to be: one revision for each change, applied by `Store.migrate`."""

from __future__ import annotations
