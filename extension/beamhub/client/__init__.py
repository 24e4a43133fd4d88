"""A typed client of the service's REST API: synchronous; for scripts, notebooks, dashboards, the command.

    client = Client("https://hub.example.org", token)          # or Client.from_environment()
    for experiment in client.experiments():
        print(experiment.id, experiment.title)

Methods are named like the resources and return the objects of `beamhub.schemas`. Lists come whole: pages
are followed. An error that the service answers with is raised as `ApiError`, whose `problem` says what
happened and what to do; a service that can't be reached raises `Unreachable`.
"""

from __future__ import annotations

from beamhub.client.agents import Agents
from beamhub.client.datasets import Datasets
from beamhub.client.events import Events, Message
from beamhub.client.experiments import Experiments
from beamhub.client.instruments import Instruments
from beamhub.client.jobs import Jobs
from beamhub.client.licences import Licences
from beamhub.client.service import Service
from beamhub.client.templates import Templates
from beamhub.client.triggers import Triggers
from beamhub.client.uploads import Uploads
from beamhub.client.wire import ApiError, Unreachable
from beamhub.client.wishes import Wishes

__all__ = ["ApiError", "Client", "Message", "Unreachable"]


class Client(
    Service,
    Instruments,
    Agents,
    Triggers,
    Experiments,
    Uploads,
    Datasets,
    Templates,
    Jobs,
    Wishes,
    Licences,
    Events,
):
    """One caller's view of the service at `url` (the hub's address, such as https://hub.example.org).

    `token` is a JupyterHub API token, or with `instrument=True` the token of an instrument's agent. Safe to
    share between threads. Reads are tried again when the connection breaks; writes carry an idempotency key,
    so trying them again never does anything twice.
    """
