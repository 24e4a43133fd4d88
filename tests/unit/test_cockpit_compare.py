"""Jobs side by side, and where one comes from, as the Cockpit draws them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from beamhub.schemas import Attempt, Difference, File, JobState, JobStep, Lineage, Relative, SeriesPage
from beamhub_cockpit.compare import declared, overlaid, parameter
from beamhub_cockpit.history import show
from beamhub_cockpit.html import el, find, text
from beamhub_cockpit.links import Links
from beamhub_cockpit.series import begun, undrawn

from tests.unit.cockpit import job, template

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PNG = b"\x89PNG"


def page(*rows: dict[str, object]) -> SeriesPage:
    return SeriesPage.model_validate(
        {"columns": {"d": "Å", "cc_half": "", "name": ""}, "items": list(rows), "next": len(rows)}
    )


def test_series_are_drawn_over_one_another() -> None:
    one = page({"d": 3.0, "cc_half": 0.99, "name": "a"}, {"d": 2.0, "cc_half": None, "name": "b"})
    assert (overlaid([one, None, one], [3, 4, 5]) or b"").startswith(PNG)


def test_what_has_no_numbers_is_not_drawn() -> None:
    assert overlaid([page({"d": 3.0, "cc_half": True, "name": "a"}), None], [3, 4]) is None
    assert overlaid([SeriesPage(columns={}, items=[], next=0)], [3]) is None


def test_the_history_says_what_differs_who_did_what_and_how_often() -> None:
    lineage = Lineage(
        ancestors=[Relative.model_validate(job(1))],
        children=[],
        differences=[Difference(group="parameters", name="limit", before=2.1, after=None)],
        notebook=["@@ -1 +1 @@", "-<b>old</b>", "+new"],
    )
    steps = [JobStep(time=NOW, state=JobState.CANCELLED, reason="Cancelled by ada: <i>why</i>.", actor="ada")]
    attempt = Attempt(
        job=2,
        number=1,
        runner="local",
        ref="pid 7",
        host="node",
        queued=NOW,
        started=NOW,
        ended=NOW,
        outcome="cancelled",
        reason="",
        cpu_seconds=0,
        exit_code=137,
        cell=None,
    )
    shown = el("div", show(job(2, parent=1, repeats=1), lineage, steps, [attempt], {}, Links("/", "ben")))
    assert text(find(shown, "bh-difference")[0]) == "Limit2.1–"
    assert "Cancelled by ada: <i>why</i>." in text(find(shown, "bh-step")[0])
    assert "process 7" in text(find(shown, "bh-attempt")[0])
    assert [text(line) for line in find(shown, "bh-removed")] == ["-<b>old</b>\n"]
    assert "job #1" in text(find(shown, "bh-repeats")[0])
    assert not find(el("div", show(job(2), None, [], [], {}, Links("/", "ben"))), "bh-difference")


def test_what_a_job_has_drawn_itself_is_not_drawn_again() -> None:
    paths = ["series/shells.jsonl", "shells.png", "series/per_frame.jsonl", "series/9.jsonl", "log.txt"]
    files = [File(path=path, size=1, modified=datetime.now(UTC)) for path in paths]
    assert undrawn(files) == ["per_frame"]
    assert begun(files) == ["per_frame", "shells"]  # for who follows it while it runs


def test_what_any_of_the_jobs_templates_declares_has_its_title() -> None:
    def has(name: str, title: str) -> dict[str, Any]:
        known = {name: {"title": title, "unit": "Å"}}
        return {"metrics": {name: {"title": title}}, "parameters": {"type": "object", "properties": known}}

    first, second = template("one", more=has("spots", "Spots")), template("two", more=has("cc_half", "CC½"))
    spec = declared("cc_half", [first, second])
    assert spec is not None
    assert spec.title == "CC½"
    assert parameter("cc_half", [first, second])["unit"] == "Å"
    assert declared("unheard", [first, second]) is None
    assert parameter("unheard", [first, second]) == {}
