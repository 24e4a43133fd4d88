"""Licences as forms offer them: what is left, and why one does not pay for what the form says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from beamhub.schemas import Licence, Sponsor
from beamhub.terms import Case, describe, refusal

from beamhub_cockpit import form
from beamhub_cockpit.format import cpu_hours
from beamhub_cockpit.html import Element, el


def judged(licences: Sequence[Licence], case: Case) -> list[Sponsor]:
    """The licences, each with why it does not pay in this case now."""
    now = datetime.now(UTC)
    return [Sponsor(**{**dict(one), "refusal": refusal(one, case, now)}) for one in licences]


def begin_with(sponsors: Sequence[Sponsor]) -> str:
    """The one that a form begins with: one that pays and has something left, or as far as that goes; "" if
    there is none."""
    best = min(sponsors, key=lambda one: (bool(one.refusal), one.available <= 0), default=None)
    return best.id if best else ""


def label(sponsor: Sponsor) -> str:
    """A licence in a list to choose from."""
    left = "does not pay here" if sponsor.refusal else f"{cpu_hours(sponsor.available)} left"
    return f"{sponsor.title} · {left}"


def options(sponsors: Sequence[Sponsor], chosen: str) -> list[Element]:
    """The licences to choose from; one that does not pay can't be chosen."""
    return [form.option(one.id, label(one), chosen, disabled=bool(one.refusal)) for one in sponsors]


def refusals(sponsors: Sequence[Sponsor], chosen: str) -> list[Element]:
    """For below the list: why some do not pay."""
    return [
        el(
            "span.bh-sub.bh-sponsor-refused" + (".bh-warn" if one.id == chosen else ""),
            one.refusal,
            key=one.id,
            data_licence=one.id,
        )
        for one in sponsors
        if one.refusal
    ]


def conditions(sponsor: Sponsor) -> str:
    """When a licence pays, where that is not always."""
    return f"{sponsor.title} pays {', or '.join(map(describe, sponsor.terms))}." if sponsor.terms else ""
