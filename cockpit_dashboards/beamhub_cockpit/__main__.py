"""`python -m beamhub_cockpit` runs the cockpit's server."""

from __future__ import annotations

from beamhub_cockpit.server import main

if __name__ == "__main__":
    main()
