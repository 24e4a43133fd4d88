"""What the pages that show jobs share: opening them, starting them, stopping them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from beamhub.client import Message
from beamhub.schemas import Job

from beamhub_cockpit import details, question, reading, rerun
from beamhub_cockpit.around import Around
from beamhub_cockpit.format import plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.launch import Launch
from beamhub_cockpit.page import Page
from beamhub_cockpit.parts import can
from beamhub_cockpit.question import Question
from beamhub_cockpit.reading import Detail
from beamhub_cockpit.region import Action
from beamhub_cockpit.scene import Scene

WHY: Final = "If you like; everybody in the experiment sees it."


class JobPage(Page):
    """A page with jobs on it."""

    scene: Scene | None = None
    launch: Launch | None = None
    question: Question | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self.opened: dict[int, Detail] = {}
        super().__init__(*args, **options)

    def around(self, scene: Scene) -> Around:
        experiment = scene.experiment
        return Around(
            templates=scene.templates,
            triggers=scene.triggers,
            datasets=scene.datasets,
            jobs=scene.jobs,
            links=self.links,
            experiment=experiment.id if experiment else "",
            may_run=can(experiment, "job.run"),
            may_cancel=can(experiment, "job.cancel"),
            may_open=can(experiment, "session.open"),
            may_operate=can(experiment, "instrument.operate"),
            me=scene.me.name,
        )

    def begin_anew(self) -> None:
        """Another experiment is to be shown: nothing of this one stays open."""
        self.opened = {}
        self.launch = self.question = None

    def heard(self, message: Message) -> None:
        detail = self.opened.get(int(message.subject)) if message.subject.isdigit() else None
        if detail is not None and message.kind.startswith("job."):
            detail.read = 0.0

    def every(self) -> None:
        self.refresh_details()

    def actions(self) -> Mapping[str, Callable[[Action], None]]:
        return {
            "job.toggle": self._toggle,
            "job.tab": self._tab,
            "job.cancel": self._cancel,
            "job.rerun": self._rerun,
            "job.priority": self._rank,
            "launch.keep": self._keep,
            "launch.send": self._send,
            "launch.again": self._again,
            "launch.close": self._close,
            "question.yes": self._yes,
            "question.no": self._no,
        }

    def dialog(self) -> tuple[Element, ...]:
        """The dialogs that are open: the one that starts a job, and a question."""
        launch, asked = self.launch, self.question
        found: list[Element] = []
        if launch is not None and self.scene is not None:
            scene = self.scene
            found.append(
                rerun.show(
                    launch,
                    scene.templates,
                    scene.profiles,
                    self.links,
                    scene.sponsors,
                    scene.experiment,
                    scene.jobs,
                )
            )
        if asked is not None:
            found.append(question.show(asked))
        return tuple(found)

    def refresh_details(self) -> None:
        """Read on in every job that is open."""
        if self.scene is None:
            return
        for number, detail in self.opened.items():
            job = self.scene.jobs.get(number)
            if job is not None:
                detail.refresh(job, self.client, self.live, self.links)

    def _toggle(self, action: Action) -> None:
        number = int(action.args[0])
        if number in self.opened:
            reading.close(self.opened.pop(number), self.live)
        else:
            self.opened[number] = Detail(number)
            self.refresh_details()

    def _tab(self, action: Action) -> None:
        detail = self.opened.get(int(action.args[0]))
        if detail is not None:
            detail.tab = str(action.args[1])

    def _cancel(self, action: Action) -> None:
        job = self.scene.jobs.get(int(action.args[0])) if self.scene else None
        if job is None:
            return

        def cancel(fields: Mapping[str, str]) -> None:
            ended = self.client.cancel(job.id, fields.get("reason", ""))
            if self.scene is not None:
                self.scene.jobs[job.id] = ended

        self.question = Question(
            f"Cancel job #{job.id} {job.title}?",
            "Cancel job",
            cancel,
            (
                el(
                    "p",
                    "It stops at once, for everybody in the experiment. What it has written so far stays, "
                    "and the CPU-hours that it has used are charged.",
                ),
                question.ask_reason("Why?", WHY, focus=False, required=False),
            ),
            danger=True,
        )

    def _rank(self, action: Action) -> None:
        job = self.scene.jobs.get(int(action.args[0])) if self.scene else None
        if job is None or self.scene is None:
            return

        def rank(fields: Mapping[str, str]) -> None:
            changed = self.client.set_priority(job.id, int(float(fields["priority"])))
            if self.scene is not None:
                self.scene.jobs[job.id] = changed

        self.question = details.ask_priority(job, rank, any_=self.around(self.scene).may_operate)

    def _yes(self, action: Action) -> None:
        self.question = question.answer(self.question, action.fields)

    def _no(self, _action: Action) -> None:
        self.question = None

    def _rerun(self, action: Action) -> None:
        job = self.scene.jobs.get(int(action.args[0])) if self.scene else None
        if job is not None:
            self.rerun(job)

    def rerun(self, job: Job) -> None:
        """Open the dialog that runs a job again."""
        if self.scene is not None:
            self.scene.look_at_templates()
            self.begin(Launch.again(job, self.scene))

    def begin(self, launch: Launch) -> None:
        """Open the dialog that starts a job."""
        self.launch = launch
        self._look()

    def _look(self) -> None:
        if self.launch is not None and self.scene is not None:
            self.launch.look(self.client, self.scene.templates)

    def _keep(self, action: Action) -> None:
        launch = self.launch
        if launch is None or self.scene is None:
            return
        template = action.fields.get("template", launch.template)
        if template != launch.template:
            launch.choose(template, action.fields, self.scene.templates)
        else:
            launch.take(action.fields)
        self._look()

    def _send(self, action: Action) -> None:
        self._start(action.fields, force=False)

    def _again(self, _action: Action) -> None:
        self._start({}, force=True)

    def _start(self, fields: Mapping[str, str], *, force: bool) -> None:
        if self.launch is None or self.scene is None:
            return
        jobs = self.launch.send(fields, self.client, self.scene.templates, force=force)
        if jobs is None:
            return
        self.launch = None
        self.scene.jobs |= {job.id: job for job in jobs}
        new = [job for job in jobs if job.repeats != job.id]
        if len(jobs) == 1:
            job = jobs[0]
            origin = f" from #{job.parent}" if job.parent else ""
            self.notify(f"Job #{job.id} started{origin}", f"{job.title}: {job.state}.")
        else:
            known = len(jobs) - len(new)
            told = f"{plural(known, 'dataset has', 'datasets have')} the result already." if known else ""
            self.notify(f"{plural(len(new), 'job')} started", told)
        self.started()

    def started(self) -> None:
        """A job has been started from this page."""

    def _close(self, _action: Action) -> None:
        self.launch = None
