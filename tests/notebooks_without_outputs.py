"""Fails if a notebook of the repository carries outputs: they belong to a run, not to the source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def complaints(notebook: Path) -> list[str]:
    """What in `notebook` comes from a run."""
    content = json.loads(notebook.read_text())
    found = [
        f"{notebook}: cell {index} has {what}"
        for index, cell in enumerate(content["cells"])
        for what, there in (
            ("outputs", bool(cell.get("outputs"))),
            ("an execution count", cell.get("execution_count") is not None),
        )
        if there
    ]
    if "widgets" in content["metadata"]:
        found.append(f"{notebook}: has saved widgets")
    return found


def main() -> int:
    """Check all notebooks that git knows or would add; 1 if one has outputs."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.ipynb"],
        check=True,
        capture_output=True,
        text=True,
    )
    found = [line for name in listing.stdout.splitlines() for line in complaints(Path(name))]
    print("\n".join(found) or f"{len(listing.stdout.splitlines())} notebooks without outputs")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
