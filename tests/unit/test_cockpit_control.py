from __future__ import annotations

import pytest
from beamhub.schemas import (
    AgentFile,
    AgentStatus,
    Finalisation,
    FinalisationState,
)
from beamhub_cockpit import control, finalise
from beamhub_cockpit.control import Unsent
from beamhub_cockpit.html import find, text
from beamhub_cockpit.links import Links

from tests.unit.cockpit import NOW, experiment

LINKS = Links("/", "sam")


def files(state: str, reason: str, count: int) -> list[AgentFile]:
    return [
        AgentFile.model_validate({"name": f"{reason} {n}", "state": state, "reason": reason})
        for n in range(count)
    ]


def test_files_stand_by_their_reasons_the_many_first() -> None:
    told = files("skipped", "test shot", 9) + files("failed", "rare", 1) + files("failed", "often", 4)
    groups = [(state, reason, len(some)) for state, reason, some in Unsent("mx-1", told).groups()]
    assert groups == [("failed", "often", 4), ("failed", "rare", 1), ("skipped", "test shot", 9)]


def test_a_group_of_thousands_is_drawn_in_part_and_told_in_full() -> None:
    unsent = Unsent("mx-1", files("failed", "EIO", control.KNOWN))
    agent = AgentStatus(host="det", version="1", connected=True, last_seen=NOW, failed=4321)
    shown = control.show(unsent, agent, [])
    [listed] = find(shown, "bh-unsent-files")
    assert len(find(listed, "bh-unsent-name")) == control.SHOWN
    assert f"and {control.KNOWN - control.SHOWN}".replace(",", "") in text(listed).replace("\u202f", "")
    assert "3321 more files are not listed" in text(shown).replace("\u202f", "")
    assert "Retry all 4321 failed" in text(shown).replace("\u202f", "")


def test_what_was_left_out_is_listed_with_who_said_so_and_why_and_can_be_sent() -> None:
    told = files("skipped", "skipped by sam: ice on the crystal", 2) + files("failed", "EIO", 1)
    agent = AgentStatus(host="det", version="1", connected=True, last_seen=NOW, failed=1, skipped=2)
    failed, skipped = find(control.show(Unsent("mx-1", told), agent, []), "bh-unsent-group")
    assert [text(reason) for reason in find(skipped, "bh-unsent-reason")] == [
        "skipped by sam: ice on the crystal"
    ]
    assert [text(name) for name in find(skipped, "bh-unsent-name")] == [file.name for file in told[:2]]
    assert [len(find(skipped, f"bh-unsent-{what}")) for what in ("retry", "skip", "unskip")] == [0, 0, 1]
    assert [len(find(failed, f"bh-unsent-{what}")) for what in ("retry", "skip", "unskip")] == [1, 1, 0]


@pytest.mark.parametrize("state", [None, *FinalisationState])
def test_signing_off_offers_what_can_be_done_now(state: FinalisationState | None) -> None:
    seen = None
    if state is not None:
        seen = Finalisation(
            experiment=experiment().id,
            state=state,
            differences=["raw/<b>a.h5 has not been sent yet."],
            forced=False,
            reason="",
            created=NOW,
            created_by="sam",
            ended=NOW,
        )
    shown = finalise.show(experiment(), seen, "", LINKS)
    begins, forces, links = (
        len(find(shown, name)) for name in ("bh-finalise-begin", "bh-finalise-force", "bh-manifest")
    )
    match state:
        case None | FinalisationState.OUTDATED:
            assert (begins, forces, links) == (1, 0, 0)
        case FinalisationState.BLOCKED:
            assert (begins, forces, links) == (1, 1, 0)
            assert "raw/<b>a.h5 has not been sent yet." in text(shown)
        case FinalisationState.DONE:
            assert (begins, forces, links) == (0, 0, 1)
        case _:
            assert (begins, forces, links) == (0, 0, 0)


def test_the_manifest_is_for_everybody_once_there_is_one() -> None:
    assert finalise.manifest(experiment(), None, LINKS) is None
