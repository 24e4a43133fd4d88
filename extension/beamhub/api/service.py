"""What the API stands in front of: the domain, wired together."""

from __future__ import annotations

from dataclasses import dataclass

from beamhub.automation import Automation
from beamhub.batches import Batches
from beamhub.catalogue import Catalogue
from beamhub.datasets import Datasets
from beamhub.duty import Duty
from beamhub.engine import Engine
from beamhub.events import Feed, Live
from beamhub.experiments import Experiments
from beamhub.finalisations import Finalisations
from beamhub.forecasts import Forecasts
from beamhub.growth import Growth
from beamhub.jobs import Jobs
from beamhub.licences import Licences
from beamhub.moves import Moves
from beamhub.orders import Orders
from beamhub.quarantine import Quarantine
from beamhub.rules import Rules
from beamhub.schemas import Profile
from beamhub.store import Store
from beamhub.uploads import Uploads


@dataclass(frozen=True)
class Service:
    store: Store
    feed: Feed
    live: Live
    duty: Duty
    experiments: Experiments
    uploads: Uploads
    growth: Growth
    batches: Batches
    datasets: Datasets
    catalogue: Catalogue
    profiles: tuple[Profile, ...]
    rules: Rules
    automation: Automation
    licences: Licences
    jobs: Jobs
    forecasts: Forecasts
    engine: Engine
    orders: Orders
    quarantine: Quarantine
    moves: Moves
    finalisations: Finalisations
    metrics_token: str = ""  # reads metrics and nothing else; "": there is none
    patience: float = 60.0  # seconds until a client that sends next to nothing is given up
