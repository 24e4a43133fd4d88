"""Trigger rules: which data start which jobs, on an instrument or in one experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from beamhub.client import ApiError, Message
from beamhub.schemas import (
    Experiment,
    Instrument,
    InstrumentChange,
    Job,
    Licence,
    Profile,
    Template,
    Trigger,
    TriggerChange,
    TriggerGathering,
    TriggerOverride,
    TriggerTrial,
)

from beamhub_cockpit import question, ruleform, rulelist, ruletext
from beamhub_cockpit.draft import Draft
from beamhub_cockpit.format import plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import can
from beamhub_cockpit.question import Question
from beamhub_cockpit.region import Action
from beamhub_cockpit.rulelist import History, Known

JOBS: Final = 200  # that are looked through for what has been done already


class Rules(Page):
    """The page `rules.ipynb?instrument=`, `?experiment=`, or `?job=` for one that is to become a rule."""

    names = ("head", "automation", "rules", "gatherings", "dialog")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        query = self.viewer.query
        job = query.get("job", "")
        self.wanted_job = int(job) if job.isdigit() else 0
        self.wanted = query.get("experiment")
        self.wanted_instrument = query.get("instrument")
        self.instrument: Instrument | None = None
        self.experiment: Experiment | None = None  # None: the rules for all experiments are shown
        self.base: dict[int, Trigger] = {}  # the instrument's rules
        self.rules: dict[int, Trigger] = {}  # as they apply
        self.templates: dict[str, Template] = {}
        self.profiles: list[Profile] = []
        self.sponsors: list[Licence] = []
        self.missed: list[TriggerTrial] = []
        self.gatherings: list[TriggerGathering] = []
        self.jobs: list[Job] = []
        self.draft: Draft | None = None
        self.history: History | None = None
        self.question: Question | None = None

    # --- knowing ---

    @property
    def operates(self) -> bool:
        """Does the viewer look after this instrument?"""
        if self.me is None or self.instrument is None:
            return False
        return self.me.operator or self.instrument.id in self.me.staff_of

    @property
    def tunes(self) -> bool:
        """May the viewer change something of what is shown?"""
        return can(self.experiment, "rules.tune") if self.experiment is not None else self.operates

    def load(self) -> None:
        try:
            self._look()
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            self.instrument = None

    def _look(self) -> None:
        client = self.client
        job = client.job(self.wanted_job) if self.wanted_job else None
        if job is not None:
            found = client.experiment(job.experiment)
            self.wanted_instrument, self.wanted_job = found.instrument, 0
        self.experiment = client.experiment(self.wanted) if self.wanted and job is None else None
        name = self.experiment.instrument if self.experiment else self.wanted_instrument or self._own()
        self.instrument = client.instrument(name) if name else None
        if self.instrument is None or (self.experiment is None and not self.operates):
            self.instrument = None
            return
        self.base = {rule.id: rule for rule in client.triggers(self.instrument.id)}
        self.rules = self.base
        if self.experiment is not None:
            self.rules = {rule.id: rule for rule in client.experiment_triggers(self.experiment.id)}
        self.templates = {t.name: t for t in client.templates()}
        self.profiles = client.profiles()
        self.sponsors = self._licences(self.instrument.id)
        self.missed = client.missed_jobs(self.instrument.id) if self.operates else []
        self.gatherings = [
            one
            for rule in self.rules.values()
            if rule.group is not None
            for one in client.gatherings(rule.id)
            if one.ended is None and (self.experiment is None or one.experiment == self.experiment.id)
        ]
        if job is not None:
            self._begin(Draft.of_job(job, self.templates.get(job.template), instrument=self.instrument.id))

    def _own(self) -> str | None:
        """The first instrument that the viewer looks after."""
        if self.me is None:
            return None
        if self.me.staff_of:
            return self.me.staff_of[0]
        return next((one.id for one in self.client.instruments()), None) if self.me.operator else None

    def _licences(self, instrument: str) -> list[Licence]:
        """That can pay for what is started here."""
        if self.experiment is not None:
            return list(self.client.sponsors(self.experiment.id))
        me = self.me.name if self.me else ""
        return [x for x in self.client.licences() if instrument in x.instruments or x.owner == me]

    def heard(self, message: Message) -> None:
        if self.instrument is None or message.instrument != self.instrument.id:
            return
        noun, _, what = message.kind.partition(".")
        waits = bool(self.gatherings) or not self.instrument.automation
        happened = (noun, what) in (("dataset", "complete"), ("job", "created"))
        if noun in ("trigger", "instrument") or (waits and happened):
            self.refresh_soon()

    # --- showing ---

    def regions(self) -> Mapping[str, tuple[Element, ...]]:
        seen = self.instrument
        if seen is None:
            nothing = el(
                "section.bh-nothing",
                el("h1", "There are no rules to see here"),
                el(
                    "p",
                    "Check the address. The rules of an experiment are for its people, "
                    "those of an instrument for its staff.",
                ),
            )
            return {**dict.fromkeys(self.names, ()), "head": (nothing,)}
        known = self._known()
        return {
            "head": (rulelist.head(known, seen),),
            "automation": tuple(rulelist.automation(known, seen)),
            "rules": (rulelist.rules(known, seen),),
            "gatherings": (rulelist.gatherings(known),) if self.gatherings else (),
            "dialog": self._dialog(known),
        }

    def _known(self) -> Known:
        return Known(
            experiment=self.experiment,
            base=self.base,
            rules=self.rules,
            templates=self.templates,
            profiles=self.profiles,
            missed=self.missed,
            waiting=self.gatherings,
            operates=self.operates,
            tunes=self.tunes,
            links=self.links,
        )

    def _dialog(self, known: Known) -> tuple[Element, ...]:
        found = []
        if self.draft is not None:
            found.append(ruleform.show(self.draft, self._around()))
        if self.history is not None:
            found.append(rulelist.history(known, self.history))
        if self.question is not None:
            found.append(question.show(self.question))
        return tuple(found)

    def _around(self) -> ruleform.Around:
        rules = sorted(self.base.values(), key=lambda rule: rule.id)
        return ruleform.Around(
            self.templates, self.profiles, self.sponsors, rules, self.jobs, self.links, self.experiment
        )

    # --- doing ---

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            "automation.set": self._set_automation,
            "missed.start": self._catch_up,
            "missed.forget": self._forget,
            "rules.new": self._new,
            "rules.change": self._change,
            "rules.switch": self._switch,
            "rules.reset": self._reset,
            "rules.delete": self._delete,
            "rules.history": self._open_history,
            "draft.typed": self._typed,
            "draft.save": self._save,
            "draft.close": self._close,
            "history.close": self._close_history,
            "history.restore": self._restore,
            "question.yes": self._yes,
            "question.no": self._no,
        }

    def _set_automation(self, action: Action) -> None:
        if self.instrument is not None:
            change = InstrumentChange(automation=bool(action.args[0]))
            self.instrument = self.client.change_instrument(self.instrument.id, change)
            self._look()

    def _catch_up(self, _action: Action) -> None:
        if self.instrument is not None:
            started = [trial for trial in self.client.catch_up(self.instrument.id) if trial.job]
            self.notify(f"Started {plural(len(started), 'job')}", "What rules gather waits for more first.")
            self._look()

    def _forget(self, _action: Action) -> None:
        seen = self.instrument
        if seen is None:
            return

        def forget(_fields: Mapping[str, str]) -> None:
            self.client.forget_missed(seen.id)
            self._look()

        self.question = Question(
            "Leave it at that?",
            "Leave it",
            forget,
            (
                el(
                    "p",
                    "What was missed is not listed any longer. Each rule can still be started on it by hand.",
                ),
            ),
        )

    def _rule_of(self, action: Action) -> Trigger | None:
        return self.rules.get(int(action.args[0]))

    def _new(self, _action: Action) -> None:
        if self.instrument is None or not self.templates:
            return
        self._begin(
            Draft.new(
                self.templates,
                self.sponsors,
                instrument=self.instrument.id,
                experiment=self.experiment.id if self.experiment else None,
                may_operate=self.operates,
            )
        )

    def _change(self, action: Action) -> None:
        rule = self._rule_of(action)
        if rule is not None:
            self._begin(self._drafted(rule, rule))

    def _drafted(self, rule: Trigger, written: Any) -> Draft:
        """The rule in the form, as it is written."""
        here = self.experiment
        base = self.base.get(rule.id) if here is not None else None
        return Draft.of(
            written,
            self.templates.get(written.template),
            instrument=rule.instrument,
            experiment=here.id if here else None,
            rule=rule,
            base=base,
            may_operate=self.operates,
            may_start=self.operates or base is None,
        )

    def _begin(self, draft: Draft) -> None:
        self.jobs = self.client.jobs(self.experiment.id if self.experiment else None, limit=JOBS)
        self.sponsors = self._licences(draft.instrument)  # on terms that may have changed
        draft.try_out(self.client, self.templates)
        self.draft, self.history = draft, None

    def _typed(self, action: Action) -> None:
        if self.draft is not None:
            self.draft.take(action.fields, self.templates)
            self.draft.try_out(self.client, self.templates)

    def _save(self, action: Action) -> None:
        draft = self.draft
        if draft is None:
            return
        draft.take(action.fields, self.templates)
        saved = draft.save(self.client, self.templates)
        if saved is None:
            return
        rule, told = saved
        self.draft = None
        started = [trial for trial in told if trial.job]
        not_started = [trial for trial in told if not trial.job]
        detail = f"It starts {plural(len(started), 'job')} now." if started else ""
        if not_started:
            detail += f" {plural(len(not_started), 'other')} did not start: {not_started[0].reason}."
        self.notify(f"{rule.title} is saved", detail.strip())
        self._look()

    def _close(self, _action: Action) -> None:
        self.draft = None

    def _switch(self, action: Action) -> None:
        rule = self._rule_of(action)
        if rule is None:
            return
        on, here = not rule.enabled, self.experiment
        base = self.base.get(rule.id)
        if here is not None and base is not None:
            change = TriggerOverride(enabled=None if base.enabled == on else on)
            self.client.override_trigger(here.id, rule.id, change)
        else:
            self.client.change_trigger(rule.id, TriggerChange(enabled=on))
        self._look()

    def _reset(self, action: Action) -> None:
        rule = self._rule_of(action)
        if rule is not None and self.experiment is not None:
            change = TriggerOverride.model_validate(dict.fromkeys(rule.changed))
            self.client.override_trigger(self.experiment.id, rule.id, change)
            self._look()

    def _delete(self, action: Action) -> None:
        rule = self._rule_of(action)
        if rule is None:
            return

        def delete(_fields: Mapping[str, str]) -> None:
            self.client.delete_trigger(rule.id)
            self._look()

        self.question = Question(
            f"Delete {rule.title}?",
            "Delete rule",
            delete,
            (el("p", "It starts no more jobs. Those that it has started stay, and so does what it was."),),
            danger=True,
        )

    def _open_history(self, action: Action) -> None:
        rule = self._rule_of(action)
        if rule is not None:
            self.history = History(rule, self.client.trigger_versions(rule.id))

    def _close_history(self, _action: Action) -> None:
        self.history = None

    def _restore(self, action: Action) -> None:
        seen = self.history
        if seen is None:
            return
        versions = [v for v in seen.versions if v.version == action.args[0] and v.experiment is None]
        written = ruletext.as_written(versions[0].data) if versions else None
        rule = self.rules.get(seen.rule.id)
        if written is not None and rule is not None:
            self._begin(self._drafted(rule, written))

    def _yes(self, action: Action) -> None:
        self.question = question.answer(self.question, action.fields)

    def _no(self, _action: Action) -> None:
        self.question = None
