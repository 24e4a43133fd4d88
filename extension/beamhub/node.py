"""A job's first process on a compute node: `python -m beamhub.node FOLDER OPTIONS…` puts it into a sandbox.

It knows nothing but folders, all named by the service. What people chose for the job stands in its folder,
and is read inside the sandbox only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from beamhub import sandbox


def command(
    folder: Path, experiment: Path, hide: Sequence[Path], caches: Path | None, *, required: bool
) -> list[str]:
    """The command that runs the job in `folder`, and is to replace this process.

    Where this node can't make sandboxes, the job runs with all that its OS user may do. Raises OSError if
    that is not wanted.
    """
    argv = [sys.executable, "-m", "beamhub.run", str(folder)]
    if broken := sandbox.works():
        if required:
            raise OSError(broken)
        print(f"this job runs without a sandbox: {broken}", file=sys.stderr)  # noqa: T201 (its log)
        return argv
    return sandbox.command(
        argv,
        read_write=[folder],
        read_only=[experiment, *([caches] if caches else [])],
        hide=[path for path in hide if path.exists()],
        network=False,
        cwd=folder,
    )


def main(arguments: Sequence[str]) -> None:
    """Becomes the job. If that can't be, says so in `result.json`, where the service looks."""
    parser = argparse.ArgumentParser(prog="python -m beamhub.node", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiment", type=Path, required=True, help="seen by the job, read-only")
    parser.add_argument("--hide", type=Path, action="append", default=[], help="not seen by the job")
    parser.add_argument("--caches", type=Path, help="compiled code that jobs copy, where this node has it")
    parser.add_argument("--require-sandbox", action="store_true")
    options = parser.parse_args(arguments)
    caches = options.caches if options.caches and options.caches.is_dir() else None
    try:
        argv = command(
            options.folder, options.experiment, options.hide, caches, required=options.require_sandbox
        )
    except OSError as error:
        reason = f"The node {os.uname().nodename} can't run jobs: {error}."
        temporary = options.folder / "result.json.part"
        temporary.write_text(json.dumps({"outcome": "failed", "reason": reason}), encoding="utf-8")
        temporary.rename(options.folder / "result.json")
        sys.exit(1)
    # /tmp is private in a sandbox
    os.environ |= {"HOME": "/tmp"} if argv[0] == "bwrap" else sandbox.without(options.folder)  # noqa: S108
    if caches:
        os.environ["BEAMHUB_WARM"] = str(caches)
    os.execvp(argv[0], argv)  # noqa: S606 (that is the point: Slurm's signals reach the job itself)


if __name__ == "__main__":
    main(sys.argv[1:])
