"""The facility at a glance, for staff: whose beamtime, is data flowing, what runs, who pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from beamhub.client import Message
from beamhub.schemas import AgentStatus, Experiment, Instrument, Job, LedgerLine, Licence, UsageKey, UsageRow
from pydantic import ValidationError

from beamhub_cockpit import aside, question, usage
from beamhub_cockpit.format import cpu_hours, number, plural, rate, size
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import ago, card, runtime, starter, state, table, why
from beamhub_cockpit.question import Question
from beamhub_cockpit.region import Action
from beamhub_cockpit.results import progress
from beamhub_cockpit.scene import with_progress

LINES = 12  # of a ledger


class Facility(Page):
    """The page `facility.ipynb`."""

    names = ("instruments", "jobs", "licences", "usage", "ledger", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.instruments: list[Instrument] = []
        self.experiments: dict[str, Experiment] = {}
        self.jobs: dict[int, Job] = {}
        self.licences: list[Licence] = []
        self.ledger: list[LedgerLine] = []
        self.usage: list[UsageRow] = []
        self.by = UsageKey.MONTH
        self.question: Question | None = None

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            "licence.top-up": self._top_up,
            "usage.by": self._by,
            "question.yes": self._yes,
            "question.no": self._no,
        }

    @property
    def allowed(self) -> bool:
        return self.me is not None and (self.me.operator or bool(self.me.staff_of))

    def load(self) -> None:
        if not self.allowed or self.me is None:
            return
        everything = self.client.instruments()
        self.instruments = [i for i in everything if self.me.operator or i.id in self.me.staff_of]
        self.experiments = {e.id: e for e in self.client.experiments()}
        self.jobs = {j.id: j for j in self.client.jobs(limit=100)}
        self.licences = self.client.licences()
        self.usage = self.client.usage(self.by)
        lines = [line for licence in self.licences for line in self.client.ledger(licence.id, limit=LINES)]
        self.ledger = sorted(lines, key=lambda line: line.id, reverse=True)[:LINES]

    def heard(self, message: Message) -> None:
        if not self.allowed:
            if message.kind.startswith("instrument."):
                self.refresh_soon()
        elif message.kind == "agent.heartbeat":
            self._agent(message)
        elif message.kind == "job.progress":
            number = int(message.subject) if message.subject.isdigit() else 0
            if number in self.jobs:
                self.jobs[number] = with_progress(self.jobs[number], message.data)
        elif (
            message.kind.startswith(("job.", "licence.", "experiment.", "instrument.", "trigger."))
            and message.kind != "job.series"
        ):
            self.refresh_soon()

    def _agent(self, message: Message) -> None:
        try:
            agent = AgentStatus.model_validate(message.data)
        except ValidationError:
            self.refresh_soon()
            return
        self.instruments = [
            i.model_copy(update={"agent": agent}) if i.id == message.instrument else i
            for i in self.instruments
        ]

    def layout(self) -> Element:
        return el(
            "main.bh-facility",
            self.slot("instruments"),
            el(
                "div.bh-columns",
                el("div.bh-column-main", self.slot("jobs"), self.slot("usage")),
                el("div.bh-slot-aside", self.slot("licences"), self.slot("ledger")),
            ),
            self.slot("dialog"),
        )

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        if not self.allowed:
            no = el(
                "section.bh-nothing",
                el("h1", "This page is for the staff of the facility"),
                el(
                    "p",
                    "You have no access to it. Your experiments are in the ",
                    el("a.bh-link", "Cockpit", href=self.links.cockpit()),
                    ".",
                ),
            )
            return {**dict.fromkeys(self.names, ()), "instruments": (no,)}
        return {
            "instruments": (self._instruments(),),
            "jobs": (self._jobs(),),
            "licences": (aside.licences(self.licences, topping_up=self._topping_up()),),
            "usage": (usage.panel(self.usage, self.by, self.links),),
            "ledger": (self._ledger(),),
            "dialog": (question.show(self.question),) if self.question else (),
        }

    def _topping_up(self) -> frozenset[str]:
        """Ids of the licences that the viewer may add to."""
        if self.me is None or self.me.operator:
            return frozenset(x.id for x in self.licences if self.me)
        staffed = set(self.me.staff_of)
        return frozenset(x.id for x in self.licences if x.kind == "lab" and staffed.issuperset(x.instruments))

    def _top_up(self, action: Action) -> None:
        licence = next((x for x in self.licences if x.id == action.args[0]), None)
        if licence is None:
            return

        def grant(fields: Mapping[str, str]) -> None:
            granted = self.client.grant(licence.id, float(fields["hours"]), fields["reason"])
            self.notify(f"{granted.title}: {cpu_hours(granted.available)} left")
            self.refresh_soon()

        self.question = usage.top_up(licence, grant)

    def _by(self, action: Action) -> None:
        self.by = UsageKey(action.fields.get("by", self.by))
        self.usage = self.client.usage(self.by)

    def _yes(self, action: Action) -> None:
        self.question = question.answer(self.question, action.fields)

    def _no(self, _action: Action) -> None:
        self.question = None

    def _instruments(self) -> Element:
        head = (
            "Instrument",
            "Agent",
            "Uploading",
            "Waiting",
            "Free disk",
            "Active experiment",
            "PI",
            "Automation",
            "Jobs",
        )
        return card(
            "Instruments",
            table("", head, [self._instrument(i) for i in self.instruments])
            if self.instruments
            else el("p.bh-empty", "No instruments yet. Create one with “beamhub instrument create”."),
            aside=el("span.bh-count", number(len(self.instruments))),
            css="bh-instruments",
        )

    def _instrument(self, i: Instrument) -> Element:
        agent = i.agent
        active = self.experiments.get(i.active_experiment or "")
        running = sum(1 for j in self.jobs.values() if str(j.state) == "running" and self._on(j, i))
        waiting = sum(
            1 for j in self.jobs.values() if str(j.state) in ("queued", "pending") and self._on(j, i)
        )
        uploading: Child = None
        if agent and agent.connected and agent.current:
            uploading = [f"{plural(len(agent.current), 'file')} · {rate(agent.rate)}"]
        return el(
            "tr.bh-instrument-row",
            el("td", el("strong", i.title), el("span.bh-sub", i.id)),
            el(
                "td",
                aside.agent_state(agent),
                el("span.bh-sub", agent.host, " · ", ago(agent.last_seen)) if agent else None,
            ),
            el("td", uploading or "–"),
            el(
                "td",
                f"{plural(agent.queued_files, 'file')} · {size(agent.queued_bytes)}"
                if agent and agent.queued_files
                else "–",
            ),
            el("td", size(agent.free_disk) if agent and agent.free_disk is not None else "–"),
            el(
                "td",
                el("a.bh-link", active.title, href=self.links.cockpit(active.id)),
                el("span.bh-sub", active.id),
            )
            if active
            else el("td", "none"),
            el("td", active.pi if active else "–"),
            el(
                "td",
                state("on" if i.automation else "paused"),
                el("a.bh-link.bh-sub.bh-rules-open", "Rules …", href=self.links.rules(instrument=i.id)),
            ),
            el("td", f"{running} running" + (f", {waiting} waiting" if waiting else "")),
            key=i.id,
            data_instrument=i.id,
        )

    def _on(self, job: Job, instrument: Instrument) -> bool:
        experiment = self.experiments.get(job.experiment)
        return experiment is not None and experiment.instrument == instrument.id

    def _jobs(self) -> Element:
        ordered = sorted(self.jobs.values(), key=lambda j: (j.state.ended, -j.id))
        busy = [j for j in ordered if not j.state.ended]
        shown = busy + [j for j in ordered if j.state.ended][: max(0, 25 - len(busy))]
        head = ("State", "Job", "Started", "CPUs", "Time", "Paid by")
        return card(
            "Jobs",
            table("", head, [self._job(j) for j in shown], right=("CPUs", "Time"))
            if shown
            else el("p.bh-empty", "No jobs."),
            aside=el("span.bh-count", f"{len(busy)} running or waiting"),
            css="bh-facility-jobs",
        )

    def _job(self, j: Job) -> Element:
        return el(
            "tr.bh-job-line",
            el("td", state(str(j.state), "bh-job-state", why(j))),
            el(
                "td",
                el("a.bh-link", f"#{j.id} {j.title}", href=self.links.job(j.id)),
                el("span.bh-sub", j.experiment),
                el("span.bh-sub", why(j)) if j.reason else progress(j),
            ),
            el("td", starter(j, {}), el("span.bh-sub", ago(j.created))),
            el("td.bh-right", number(j.profile.cpus)),
            el("td.bh-right", runtime(j)),
            el("td", j.sponsor),
            key=j.id,
            data_job=str(j.id),
        )

    def _ledger(self) -> Element:
        return card(
            "Latest bookings",
            el(
                "ul.bh-ledger",
                [
                    el(
                        "li.bh-ledger-line",
                        el("span.bh-ledger-kind", str(line.kind)),
                        el("span.bh-ledger-amount", cpu_hours(line.cpu_seconds)),
                        el(
                            "span.bh-sub",
                            f"{line.licence} · ",
                            el("a.bh-link", f"job #{line.job}", href=self.links.job(line.job))
                            if line.job
                            else line.note or line.actor,
                            " · ",
                            ago(line.time),
                        ),
                        key=line.id,
                    )
                    for line in self.ledger
                ],
            )
            if self.ledger
            else el("p.bh-empty", "None yet."),
            css="bh-ledger-card",
        )
