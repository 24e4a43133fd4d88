from __future__ import annotations

import pytest
from beamhub.client import Client, Message
from beamhub.schemas import DatasetState, Me
from beamhub_cockpit.datasetlist import AT_ONCE, DatasetList, named, panel
from beamhub_cockpit.html import Element, find, text
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import arrived
from beamhub_cockpit.scene import Scene

from tests.unit.cockpit import EXPERIMENT, dataset, experiment

LINKS = Links("/", "ben")
MANY = [dataset(number) for number in range(1, 601)]


def shown(chosen: DatasetList, count: int, *, may_run: bool = True) -> Element:
    return panel(MANY[:count], chosen, None, LINKS, experiment=EXPERIMENT, may_run=may_run, shown=25)


def test_among_hundreds_one_is_found_by_its_name_or_folder() -> None:
    odd = dataset(7, name="Thaumatin <b>", path="raw/grid/thau_master.h5")
    known = [*MANY[:500], odd]
    assert [d.id for d in DatasetList(sought=" THAU ").found(known)] == [7]
    assert [d.id for d in DatasetList(sought="raw/grid").found(known)] == [7]
    assert [d.id for d in DatasetList().found(known)][:2] == [500, 499]
    nothing = panel(known, DatasetList(sought="lysozyme"), None, LINKS, experiment=EXPERIMENT, may_run=True)
    assert text(find(nothing, "bh-empty")[0]) == "None of this name."


def test_what_is_found_is_ticked_at_once_and_stays_ticked_when_it_is_no_longer_looked_for() -> None:
    chosen = DatasetList(sought="lyso_10")
    assert text(find(shown(chosen, 500), "bh-tick-found")[0]) == "Tick the 11 found"  # 10, 100 … 109
    chosen.tick((d.id for d in chosen.found(MANY[:500])), on=True)
    assert not find(shown(chosen, 500), "bh-tick-found")
    chosen.sought = ""
    assert text(find(shown(chosen, 500), "bh-selected")[0]) == "11 ticked"
    assert [d.id for d in chosen.chosen(MANY)][:3] == [10, 100, 101]
    chosen.tick([10], on=False)
    assert named(chosen.chosen(MANY)) == "lyso_100, lyso_101, lyso_102 and 7 more"


@pytest.mark.parametrize(("count", "can"), [(AT_ONCE, True), (AT_ONCE + 1, False)])
def test_no_more_are_started_at_once_than_the_service_takes(count: int, can: bool) -> None:
    chosen = DatasetList(ticked=set(range(1, count + 1)))
    [run] = find(shown(chosen, 600), "bh-datasets-run")
    assert ("disabled" not in run.attributes) is can


def test_few_datasets_need_no_search_and_who_may_not_run_gets_no_boxes() -> None:
    assert not find(shown(DatasetList(), 8), "bh-finder")
    assert find(shown(DatasetList(), 9), "bh-finder")
    assert find(shown(DatasetList(), 3), "bh-dataset-tick")
    viewer = shown(DatasetList(), 20, may_run=False)
    assert not find(viewer, "bh-dataset-tick")
    assert not find(viewer, "bh-tick-found")


def test_a_dataset_whose_file_is_still_written_grows_and_does_not_look_complete() -> None:
    scene = Scene(
        Client("http://127.0.0.1:1", "token"), Me(name="ben", kind="user", operator=False, staff_of=[])
    )
    scene.experiment = experiment()
    scene.datasets = {7: dataset(7, state="receiving", frames_readable=0)}
    for readable, said in (
        (12, "12 of 60 frames"),
        (60, "60 of 60 frames, a file still on its way"),
    ):
        told = {"frames_readable": readable, "frames_announced": 60}
        assert scene.heard(Message(1, "dataset.growing", EXPERIMENT, "mx-1", "7", data=told))
        assert arrived(scene.datasets[7]) == said
    ended = scene.datasets[7].model_copy(update={"state": DatasetState.COMPLETE})
    assert arrived(ended) == "60 of 60 frames"


def test_a_series_has_never_more_frames_than_it_is_said_to_have() -> None:
    scene = Scene(
        Client("http://127.0.0.1:1", "token"), Me(name="ben", kind="user", operator=False, staff_of=[])
    )
    scene.experiment = experiment()
    began = {"open_ended": True, "state": "receiving", "frames_announced": 1, "frames_readable": 1}
    scene.datasets = {7: dataset(7, **began)}
    frames = Message(1, "dataset.frames", EXPERIMENT, "mx-1", "7", data={"frames_readable": 4})
    assert scene.heard(frames)
    assert arrived(scene.datasets[7]) == "4 frames so far"
