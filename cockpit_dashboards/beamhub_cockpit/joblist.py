"""A page with the list of an experiment's jobs, of which several can be cancelled or run again at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from beamhub.schemas import Job, JobOutcome

from beamhub_cockpit import jobs, selection, several
from beamhub_cockpit.around import Around
from beamhub_cockpit.format import number, plural
from beamhub_cockpit.html import Element
from beamhub_cockpit.jobpage import WHY, JobPage
from beamhub_cockpit.question import Question, ask_reason
from beamhub_cockpit.region import Action
from beamhub_cockpit.selection import Outcome, Selection
from beamhub_cockpit.several import Several

RECENT: Final = 25  # jobs and datasets that a page shows at first
FEW: Final = 8  # jobs that nobody has to search


class JobList(JobPage):
    """A page with a list of jobs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.older = False  # show all jobs and datasets
        self._select_none()

    def begin_anew(self) -> None:
        super().begin_anew()
        self._select_none()

    def _select_none(self) -> None:
        self.sought = ""
        self.selected = Selection()
        self.several: Several | None = None  # while its dialog is open
        self.outcome: Outcome | None = None

    @property
    def shown(self) -> int | None:
        """How many jobs and datasets are listed; None: all."""
        return None if self.older else RECENT

    def job_list(self, around: Around) -> Element:
        known = self._jobs()
        self.selected.keep(job.id for job in known)
        return jobs.panel(
            self._found(),
            self.opened,
            around,
            self.selected,
            self.shown,
            sought=self.sought,
            many=len(known) > FEW or bool(self.sought),
            goes_on=self.scene is not None and self.scene.older_jobs.goes_on(self.sought),
        )

    def dialog(self) -> tuple[Element, ...]:
        scene, found = self.scene, []
        if scene is not None and scene.experiment is not None:
            if self.several is not None:
                found.append(several.show(self.several, scene.profiles, scene.sponsors, scene.experiment))
            if self.outcome is not None:
                found.append(selection.show(self.outcome, scene.jobs, self.links))
        return (*found, *super().dialog())

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            **super().actions(),
            "list.all": self._all,
            "jobs.find": self._find_jobs,
            "jobs.older": self._older_jobs,
            "jobs.tick": self._tick_one,
            "jobs.tick-all": self._tick_all,
            "jobs.untick": self._untick,
            "jobs.let-in": self._let_in,
            "jobs.cancel": self._cancel_chosen,
            "jobs.rerun": self._rerun_chosen,
            "several.keep": self._keep_several,
            "several.send": self._send_several,
            "several.close": self._close_several,
            "outcome.close": self._close_outcome,
        }

    def _all(self, _action: Action) -> None:
        self.older = True

    def _jobs(self) -> list[Job]:
        return list(self.scene.jobs.values()) if self.scene else []

    def _found(self) -> list[Job]:
        """The jobs that are looked for, with those that are open or ticked."""
        return jobs.found(self._jobs(), self.sought, {*self.opened, *self.selected.ticked})

    def _find_jobs(self, action: Action) -> None:
        self.sought = str(action.value or "")
        if self.scene is not None:
            self.scene.jobs |= self.scene.older_jobs.find(self.sought)
        self.selected.let_in(self._jobs())

    def _older_jobs(self, _action: Action) -> None:
        self.older = True
        if self.scene is not None:
            self.scene.jobs |= self.scene.older_jobs.more(self.sought)
        self.selected.let_in(self._jobs())

    def _tick_one(self, action: Action) -> None:
        self.selected.tick([int(action.args[0])], self._jobs(), on=action.value is True)

    def _tick_all(self, action: Action) -> None:
        newest = int(action.args[0])  # when the box was ticked; later ones are not meant
        seen = [job for job in self._found() if job.id <= newest]
        ids = [job.id for job in jobs.listed(seen, self.selected, self.opened, self.shown)]
        self.selected.tick(ids, seen, on=action.value is True)

    def _untick(self, _action: Action) -> None:
        self.selected.keep([])

    def _let_in(self, _action: Action) -> None:
        self.selected.let_in(self._jobs())

    def _cancel_chosen(self, _action: Action) -> None:
        chosen = self.selected.chosen(self._jobs())
        going = [job.id for job in chosen if not job.state.ended]
        if not going:
            return

        def cancel(fields: Mapping[str, str]) -> None:
            told = self.client.cancel_all(going, fields.get("reason", ""))
            self._came_of(told, "cancelled")

        self.question = Question(
            f"Cancel {plural(len(going), 'job')}?",
            f"Cancel {plural(len(going), 'job')}",
            cancel,
            (*selection.stopping(chosen), ask_reason("Why?", WHY, focus=False, required=False)),
            danger=True,
            name="bh-cancel-several",
        )

    def _rerun_chosen(self, _action: Action) -> None:
        chosen = self.selected.chosen(self._jobs())
        if self.scene is None or not chosen:
            return
        if len(chosen) == 1:
            self.rerun(chosen[0])
        else:
            self.scene.look_at_templates()
            self.several = Several.of(chosen, self.scene.templates)

    def started(self) -> None:
        self.selected.let_in(self._jobs())

    def _keep_several(self, action: Action) -> None:
        if self.several is not None:
            self.several.take(action.fields)

    def _send_several(self, action: Action) -> None:
        if self.several is None:
            return
        self.several.take(action.fields)
        told = self.several.send(self.client)
        if told is not None:
            self.several = None
            self._came_of(told, "started")

    def _came_of(self, told: Sequence[JobOutcome], done: str) -> None:
        """Say what came of a wish for several jobs; those for which nothing was done stay selected."""
        refused = selection.refused(told)
        if self.scene is not None:
            self.scene.jobs |= {one.job.id: one.job for one in told if one.job is not None}
        self.selected.keep(id_ for id_, _ in refused)
        self.selected.let_in(self._jobs())
        if refused:
            self.outcome = Outcome(
                f"{number(len(told) - len(refused))} of {plural(len(told), 'job')} {done}", refused
            )
        else:
            self.notify(f"{plural(len(told), 'job')} {done}")

    def _close_several(self, _action: Action) -> None:
        self.several = None

    def _close_outcome(self, _action: Action) -> None:
        self.outcome = None
