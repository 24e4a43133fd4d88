"""A site to which files are sent, and a second process beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from beamhub.datasets import Datasets
from beamhub.events import Live
from beamhub.experiments import Experiments
from beamhub.frames.inspect import Inspector
from beamhub.schemas import ExperimentCreate, InstrumentChange, InstrumentCreate
from beamhub.store import Store
from beamhub.uploads import Uploads

from tests.unit.uploading import OPERATOR, SAM, Site


@pytest.fixture
async def site(tmp_path: Path, database_url: str) -> AsyncIterator[Site]:
    """One instrument `mx` with its active experiment of Ada's."""
    store, live, folder = Store(database_url), Live(), tmp_path / "data"
    store.migrate()
    folder.mkdir()
    experiments = Experiments(store, folder)
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="mx", title="MX", staff=["sam"]))
    await experiments.create_instrument(OPERATOR, InstrumentCreate(id="other", title="Other"))
    experiment = await experiments.create(SAM, ExperimentCreate(instrument="mx", title="L", pi="ada"))
    await experiments.change_instrument(SAM, "mx", InstrumentChange(active_experiment=experiment.id))
    inspector = Inspector()
    datasets = Datasets(store, folder, inspector)
    uploads = Uploads(store, live, folder, datasets.examine)
    yield Site(store, live, folder, experiments, uploads, experiment.id)
    await uploads.close()
    await inspector.close()
    store.close()


@pytest.fixture
async def elsewhere(site: Site, database_url: str) -> AsyncIterator[Uploads]:
    """What another process has."""
    store, inspector = Store(database_url), Inspector()
    uploads = Uploads(store, Live(), site.folder, Datasets(store, site.folder, inspector).examine)
    yield uploads
    await uploads.close()
    await inspector.close()
    store.close()
