"""The dialog that runs several jobs again: each as it was, but for what is changed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from beamhub.client import ApiError, Client
from beamhub.schemas import Experiment, Job, JobOutcome, JobsRerun, Profile, Sponsor, Template
from beamhub.terms import Case

from beamhub_cockpit import form, selection, sponsors
from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import cpu_hours, plural, profile
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.parts import button, template_of

AS_THEY_WERE = el("option", "as they were", value="")


@dataclass
class Several:
    """What is being filled in; "" is "as it was" for each job."""

    jobs: Sequence[Job]
    template: Template | None  # that all are of; None: of several, or of one that is gone
    found: list[form.Field]  # its parameters
    entered: dict[str, str] = field(default_factory=dict)  # parameter -> text
    profile: str = ""
    sponsor: str = ""
    force: bool = False
    wrong: dict[str, str] = field(default_factory=dict)
    refused: str = ""

    @classmethod
    def of(cls, jobs: Sequence[Job], templates: Mapping[str, Template]) -> Several:
        """Everything as it was."""
        names = {template_of(job) for job in jobs}
        template = templates.get(names.pop()) if len(names) == 1 else None
        found = form.common(template.parameters, [job.parameters for job in jobs]) if template else []
        return cls(jobs, template, found, form.typed(found))

    def take(self, fields: Mapping[str, str]) -> None:
        """What stands in the form now."""
        self.entered |= form.taken(fields)
        self.profile = fields.get("profile", self.profile)
        self.sponsor = fields.get("sponsor", self.sponsor)
        self.force = fields.get("force", "") == "true"

    def send(self, client: Client) -> list[JobOutcome] | None:
        """Start the jobs, and tell what came of each; None where something has to be mended first."""
        before = form.typed(self.found)
        changed = {name: text for name, text in self.entered.items() if text != before.get(name)}
        values, self.wrong = form.read(self.template.parameters if self.template else {}, changed)
        self.refused = ""
        if self.wrong:
            return None
        request = JobsRerun(
            jobs=[job.id for job in self.jobs],
            parameters=values,
            profile=self.profile or None,
            sponsor=self.sponsor or None,
            force=self.force,
        )
        try:
            return client.rerun_all(request)
        except ApiError as error:
            self.refused = str(error)
            return None


def show(
    several: Several, profiles: Sequence[Profile], paying: Sequence[Sponsor], experiment: Experiment
) -> Element:
    """The dialog."""
    count = len(several.jobs)
    title = f"Rerun {plural(count, 'job')}"
    kinds = Counter(job.title for job in several.jobs)
    what = ", ".join(f"{count} × {name}" for name, count in kinds.most_common())
    template = several.template
    paying = sponsors.judged(paying, Case.of(experiment, template.name if template else None))
    return dialog(
        "bh-several",
        title,
        [
            el("p", "Each runs again on the same data, as it was but for what you change here."),
            selection.lines(several.jobs),
            form.parameters(several.found, several.entered, several.wrong, "several")
            if template
            else el("p.bh-hint", "They are of different templates: all parameters stay as they were."),
            el(
                "fieldset.bh-fieldset",
                el("legend", "Resources"),
                el("div.bh-fields", _profile(several, profiles), _sponsor(several, paying)),
                key="resources",
            ),
            el(
                "label.bh-check-line",
                el("input", type="checkbox", name="force", checked=several.force or None),
                "Even if there is a result of the same already",
            ),
        ],
        [
            el("p.bh-hint", _hold(several, profiles)),
            button(f"Start {plural(count, 'job')}", None, css="bh-button-main bh-several-start"),
        ],
        hint=what,
        close="several.close",
        submit="several.send",
        change="several.keep",
        refused=several.refused,
        key="several",
    )


def _profile(several: Several, profiles: Sequence[Profile]) -> Element:
    options = [form.option(p.name, profile(p), several.profile) for p in profiles]
    return form.select("profile", "CPUs", [AS_THEY_WERE, *options], several.profile, ident="several-profile")


def _sponsor(several: Several, paying: Sequence[Sponsor]) -> Element:
    usable = {one.id for one in paying if not one.refusal}
    lost = sorted({job.sponsor for job in several.jobs} - usable)
    none = f"{' and '.join(lost)}, which paid for some, does not pay for yours: choose another."
    warning = [el("span.bh-sub.bh-warn", none)] if lost and not several.sponsor else []
    return form.select(
        "sponsor",
        "Paid by",
        [AS_THEY_WERE, *sponsors.options(paying, several.sponsor)],
        several.sponsor,
        [*warning, *sponsors.refusals(paying, several.sponsor)],
        ident="several-sponsor",
    )


def _hold(several: Several, profiles: Sequence[Profile]) -> str:
    chosen = next((p for p in profiles if p.name == several.profile), None)
    asked = [chosen or job.profile for job in several.jobs]
    most = sum(p.cpus * p.walltime for p in asked)
    return f"Sets aside at most {cpu_hours(most)}; only what they use is charged."
