"""`python -m beamhub.cli`: the command `beamhub` of this very interpreter."""

from __future__ import annotations

from beamhub.cli import main

main()
