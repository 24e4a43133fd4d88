"""The vocabulary of beamhub as typed, frozen objects.

One model per thing and one per request: the service validates with them, answers with them and generates its
OpenAPI document from them; the client, the agent and the dashboards read the same ones. One module per noun,
whose `__all__` is what `from beamhub.schemas import …` finds here. This package imports nothing but pydantic,
so that every part of beamhub, light or heavy, may import it.

Units: times are UTC; sizes are bytes; CPU time is integer CPU-seconds (CPUs x runtime); rates are bytes/s.
"""

from __future__ import annotations

from beamhub.schemas.agents import *
from beamhub.schemas.batches import *
from beamhub.schemas.datasets import *
from beamhub.schemas.estimates import *
from beamhub.schemas.events import *
from beamhub.schemas.experiments import *
from beamhub.schemas.finalisations import *
from beamhub.schemas.instruments import *
from beamhub.schemas.jobs import *
from beamhub.schemas.licences import *
from beamhub.schemas.lineage import *
from beamhub.schemas.models import *
from beamhub.schemas.people import *
from beamhub.schemas.profiles import *
from beamhub.schemas.runs import *
from beamhub.schemas.service import *
from beamhub.schemas.templates import *
from beamhub.schemas.trials import *
from beamhub.schemas.triggers import *
from beamhub.schemas.uploads import *
from beamhub.schemas.usage import *
from beamhub.schemas.wishes import *
from beamhub.schemas.words import *
