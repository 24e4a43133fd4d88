"""What was used, as the staff see it, and the dialog that adds to a licence."""

from __future__ import annotations

from beamhub.client import ApiError
from beamhub.schemas import Problem, UsageKey, UsageRow
from beamhub_cockpit import question, usage
from beamhub_cockpit.html import Element, find, text
from beamhub_cockpit.links import Links

from tests.unit.cockpit import licence

LINKS = Links("/", "sam")


def rows(panel: Element) -> list[str]:
    return [row.attributes["data-usage"] for row in find(panel, "bh-usage-row")]


def test_months_in_their_order_and_all_else_by_what_used_most() -> None:
    months = [UsageRow(month=f"2026-{n:02}", jobs=n, cpu_seconds=3600 * n) for n in range(1, 10)]
    assert rows(usage.panel(months, UsageKey.MONTH, LINKS)) == [row.month for row in months]
    members = [UsageRow(member=f"user-{n}", jobs=1, cpu_seconds=n) for n in range(40)]
    panel = usage.panel(members, UsageKey.MEMBER, LINKS)
    assert rows(panel)[:2] == ["user-39", "user-38"]
    assert len(rows(panel)) == usage.SHOWN
    assert f"{40 - usage.SHOWN} more in the whole report" in text(panel)
    assert "Nothing has been charged" in text(usage.panel([], UsageKey.MONTH, LINKS))


def test_what_the_service_refuses_stays_in_the_dialog() -> None:
    def refuse(_fields: object) -> None:
        raise ApiError(Problem(title="Not allowed", status=403, detail="sam may not do this."))

    asked = usage.top_up(licence("lab"), refuse)
    left = question.answer(asked, {"hours": "1", "reason": "beam lost"})
    assert left
    assert "sam may not do this." in text(question.show(left))
    assert question.answer(usage.top_up(licence("lab"), lambda _fields: None), {}) is None
