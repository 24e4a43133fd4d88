"""Terms: for which jobs a lab's licence pays, and why it does not for others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from beamhub.schemas import ExperimentState, Licence, Role, SponsorshipRule
from beamhub.terms import Case, describe, refusal

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
PAYS = "The licence lab-mx pays on sim-mx"
CASE = Case("sim-mx", "sim-mx-2026-00001", ExperimentState.PROCESSING, "dials", Role.COLLABORATOR)


def licence(*rules: dict[str, Any], **values: Any) -> Licence:
    known = {
        "id": "lab-mx",
        "title": "Lab",
        "kind": "lab",
        "owner": None,
        "instruments": ["sim-mx", "sim-em"],
        "granted": 1,
        "charged": 0,
        "held": 0,
        "available": 1,
        "valid_from": NOW,
        "valid_until": None,
        "terms": rules,
    }
    return Licence.model_validate(known | values)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([], ""),
        ([{}], ""),
        (
            [{"states": ["running"]}],
            f"{PAYS} only while the experiment is running.",
        ),
        ([{"states": ["running", "processing"]}], ""),
        ([{"states": ["running"]}, {"templates": ["dials"]}], ""),
        (
            [{"states": ["running"], "roles": ["pi"]}, {"templates": ["xia2", "xds"]}],
            f"{PAYS} only for the PI while the experiment is running, or for the template xia2 or xds.",
        ),
        ([{"instruments": ["sim-em"]}], "The licence lab-mx does not pay on sim-mx."),
        # of rules for other instruments nothing is said
        (
            [{"instruments": ["sim-em"]}, {"experiments": ["sim-mx-2026-00002"]}],
            f"{PAYS} only in sim-mx-2026-00002.",
        ),
        ([{"valid_until": NOW}], f"{PAYS} only until 2026-11-20 12:00 UTC."),
        ([{"valid_until": NOW + timedelta(seconds=1)}], ""),
        (
            [{"valid_from": NOW + timedelta(days=1)}],
            f"{PAYS} only from 2026-11-21 12:00 UTC on.",
        ),
    ],
)
def test_one_rule_has_to_fit_and_else_it_is_said_what_is_missing(
    rules: list[dict[str, Any]], said: str
) -> None:
    assert refusal(licence(*rules), CASE, NOW) == said


def test_an_expired_licence_pays_for_nothing() -> None:
    assert "expired on 2026-11-20" in refusal(licence(valid_until=NOW), CASE, NOW)


def test_what_is_not_known_yet_is_not_asked_for() -> None:
    rule = {"roles": ["pi"], "templates": ["xia2"], "states": ["processing"]}
    nobodys = Case(CASE.instrument, CASE.experiment, CASE.state, None, None)
    assert refusal(licence(rule), nobodys, NOW) == ""
    assert refusal(licence(rule), CASE, NOW).endswith("only for the template xia2 for the PI.")
    anywhere = Case(CASE.instrument, None, None, "dials", None)
    assert refusal(licence({"experiments": ["sim-mx-2026-00002"]}), anywhere, NOW) == ""
    assert refusal(licence({"states": ["running"]}), anywhere, NOW) == ""
    assert refusal(licence(rule), anywhere, NOW).endswith("only for the template xia2.")


def test_a_rule_in_words() -> None:
    rule = SponsorshipRule(instruments=["sim-mx"], roles=[Role.PI], states=[ExperimentState.RUNNING])
    assert describe(rule) == "on sim-mx for the PI while the experiment is running"
    assert describe(SponsorshipRule()) == "always"
