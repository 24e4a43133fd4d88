"""Licences, their ledgers, and what was charged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from beamhub.client.wire import Wire, given, quoted
from beamhub.schemas import (
    Correction,
    Grant,
    Granted,
    Job,
    LabTerms,
    LedgerLine,
    Licence,
    LicenceCreate,
    SponsorshipRule,
    UsageKey,
    UsageRow,
)


class Licences(Wire):
    def licences(self) -> list[Licence]:
        return self._list(Licence, "licences")

    def licence(self, licence: str) -> Licence:
        return self._get(Licence, f"licences/{quoted(licence)}")

    def create_licence(self, licence: LicenceCreate) -> Licence:
        return self._send(Licence, "POST", "licences", licence)

    def grant(
        self,
        licence: str,
        cpu_hours: float,
        note: str = "",
        *,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> Licence:
        return self._send(
            Licence,
            "POST",
            f"licences/{quoted(licence)}/grants",
            Grant(cpu_hours=cpu_hours, note=note, valid_from=valid_from, valid_until=valid_until),
        )

    def grants(self, licence: str, *, limit: int | None = None) -> list[Granted]:
        """The parts of its allowance, newest first."""
        return self._list(Granted, f"licences/{quoted(licence)}/grants", limit)

    def set_terms(self, licence: str, rules: Sequence[SponsorshipRule]) -> Licence:
        """Says for what a lab's licence pays; without rules, for everything on its instruments."""
        return self._send(Licence, "PUT", f"licences/{quoted(licence)}/terms", LabTerms(rules=list(rules)))

    def correct(self, job: int, attempt: int, cpu_seconds: int, note: str = "") -> Job:
        """Charges what an attempt of a job has used in truth."""
        body = Correction(attempt=attempt, cpu_seconds=cpu_seconds, note=note)
        return self._send(Job, "POST", f"jobs/{job}/corrections", body)

    def usage(self, *by: UsageKey, begin: date | None = None, end: date | None = None) -> list[UsageRow]:
        """What was charged from the day `begin` to the day `end`, in the experiments that you may see."""
        return self._list(UsageRow, "usage", None, **_usage(by, begin, end))

    def usage_csv(self, *by: UsageKey, begin: date | None = None, end: date | None = None) -> str:
        """The same as CSV."""
        params = given({**_usage(by, begin, end), "format": "csv"})
        return self._call("GET", "usage", params=params).text

    def usage_svg(self, *by: UsageKey, begin: date | None = None, end: date | None = None) -> str:
        """The same, drawn: bars of CPU-hours, as SVG."""
        params = given({**_usage(by, begin, end), "format": "svg"})
        return self._call("GET", "usage", params=params).text

    def ledger(self, licence: str, *, limit: int | None = None) -> list[LedgerLine]:
        """Newest first."""
        return self._list(LedgerLine, f"licences/{quoted(licence)}/ledger", limit)


def _usage(by: Sequence[UsageKey], begin: date | None, end: date | None) -> dict[str, str | None]:
    return {
        "by": ",".join(by) or None,
        "from": begin.isoformat() if begin else None,
        "to": end.isoformat() if end else None,
    }
