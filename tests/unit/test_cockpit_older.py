"""Lists of which a page knows the newest."""

from __future__ import annotations

from dataclasses import dataclass, field

from beamhub.schemas import Dataset, Page
from beamhub_cockpit import datasetlist
from beamhub_cockpit.datasetlist import DatasetList
from beamhub_cockpit.html import find, text
from beamhub_cockpit.jobs import found
from beamhub_cockpit.links import Links
from beamhub_cockpit.older import Older
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cockpit import EXPERIMENT, dataset, job


@dataclass
class Shelf:
    """What the service has, told as it tells it."""

    there: dict[int, Dataset] = field(default_factory=dict)
    asked: list[str | None] = field(default_factory=list)

    def put(self, *numbers: int) -> None:
        self.there |= {number: dataset(number) for number in numbers}

    def page(self, name: str | None, after: str | None, limit: int) -> Page[Dataset]:
        self.asked.append(name)
        last = int(after) if after else max(self.there, default=0) + 1
        rest = sorted((n for n, d in self.there.items() if n < last and (name or "") in d.name), reverse=True)
        items = [self.there[number] for number in rest[:limit]]
        return Page(items=items, next=str(items[-1].id) if len(rest) > limit else None)


def test_a_short_list_is_known_as_a_whole_and_nothing_more_is_asked_for() -> None:
    shelf = Shelf()
    shelf.put(1, 2, 3)
    older = Older(shelf.page, 3)
    assert set(older.newest({})) == {1, 2, 3}
    assert older.whole
    assert not older.find("lyso")
    assert not older.more("")
    assert shelf.asked == [None]


def test_what_is_older_is_found_by_name_once_and_page_by_page() -> None:
    shelf = Shelf()
    shelf.put(*range(1, 31))
    older = Older(shelf.page, 4)
    known = older.newest({})
    assert set(known) == {27, 28, 29, 30}
    known |= older.find(" LYSO_1 ")  # 1 and 10 to 19
    assert set(known) == {27, 28, 29, 30, 16, 17, 18, 19}
    assert not older.find("lyso_1")
    assert shelf.asked == [None, "lyso_1"]
    while older.goes_on("lyso_1"):
        known |= older.more("lyso_1")
    assert {1, 10, 11, 12, 13, 14, 15} <= set(known)
    assert 20 not in known
    assert older.goes_on("")
    assert not older.goes_on("no such")  # that nobody has asked for


@given(st.lists(st.sampled_from(["new", "more", "again"]), max_size=30))
def test_whatever_comes_meanwhile_the_list_has_no_hole(steps: list[str]) -> None:
    shelf = Shelf()
    shelf.put(*range(1, 13))
    older = Older(shelf.page, 4)
    known = older.newest({})
    for step in steps:
        match step:
            case "new":  # of which the page hears
                number = max(shelf.there) + 1
                shelf.put(number)
                known[number] = shelf.there[number]
            case "more":
                known |= older.more("")
            case _:
                known = older.newest(known)
        assert set(known) == set(range(min(known), max(shelf.there) + 1))
    while older.goes_on(""):
        known |= older.more("")
    assert set(older.newest(known)) == set(shelf.there)


def test_the_list_leads_on_where_it_is_shown_to_its_end() -> None:
    shelf = Shelf()
    shelf.put(*range(1, 31))
    older = Older(shelf.page, 20)
    known = older.newest({})

    def below(shown: int | None) -> str:
        card = datasetlist.panel(
            list(known.values()),
            DatasetList(),
            None,
            Links("/", "ada"),
            experiment=EXPERIMENT,
            may_run=True,
            shown=shown,
            older=older,
        )
        return "".join(text(one) for one in find(card, "bh-more"))

    assert below(10) == "Show 20"
    assert below(None) == "Older …"
    known |= older.more("")
    assert below(10) == "Show all 30"
    assert below(None) == ""


def test_jobs_are_found_by_title_or_dataset_and_what_is_open_stays() -> None:
    one, two = job(1, title="DIALS merge"), job(2, title="Fast feedback")
    assert found([one, two], "MERGE", ()) == [one]
    assert found([one, two], "lyso", ()) == [one, two]  # the dataset of both
    assert found([one, two], "merge", {2}) == [one, two]
    assert found([one, two], " ", ()) == [one, two]
    assert found([one, two], "no such", ()) == []
