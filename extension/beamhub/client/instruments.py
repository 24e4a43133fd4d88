"""Beamlines and microscopes."""

from __future__ import annotations

from beamhub.client.wire import Wire, quoted
from beamhub.schemas import Instrument, InstrumentChange, InstrumentCreate, InstrumentToken


class Instruments(Wire):
    def instruments(self) -> list[Instrument]:
        return self._list(Instrument, "instruments")

    def instrument(self, instrument: str) -> Instrument:
        return self._get(Instrument, f"instruments/{quoted(instrument)}")

    def create_instrument(
        self,
        id: str,  # noqa: A002 (the field's name)
        title: str,
        *,
        technique: str = "macromolecular crystallography",
        staff: list[str] | None = None,
    ) -> Instrument:
        body = InstrumentCreate(id=id, title=title, technique=technique, staff=staff or [])
        return self._send(Instrument, "POST", "instruments", body)

    def change_instrument(self, instrument: str, change: InstrumentChange) -> Instrument:
        return self._send(Instrument, "PATCH", f"instruments/{quoted(instrument)}", change)

    def activate(self, instrument: str, experiment: str | None) -> Instrument:
        """Make this experiment the one that the instrument's files go to; None: none."""
        return self.change_instrument(instrument, InstrumentChange(active_experiment=experiment))

    def new_instrument_token(self, instrument: str) -> InstrumentToken:
        """A new token for the instrument's agent. Older ones stop working at once."""
        return self._send(InstrumentToken, "POST", f"instruments/{quoted(instrument)}/token")
