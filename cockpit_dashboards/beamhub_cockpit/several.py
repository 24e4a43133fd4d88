"""The dialog that runs several jobs again: each as it was, but for what is changed here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from beamhub.client import ApiError, Client
from beamhub.schemas import Experiment, Job, JobOutcome, JobsRerun, Profile, Sponsor, Template
from beamhub.terms import Case

from beamhub_cockpit import form, selection, sponsors
from beamhub_cockpit.format import cpu_hours, plural, profile
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.parts import template_of

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
    return el(
        "dialog.bh-dialog.bh-several",
        el(
            "form.bh-form",
            el(
                "header.bh-dialog-head",
                el("div", el("h2", title), el("p.bh-hint", what)),
                el(
                    "button.bh-icon-button",
                    "×",
                    type="button",
                    aria_label="Close",
                    on={"click": ["several.close"]},
                ),
            ),
            el(
                "div.bh-dialog-body",
                el("div.bh-problem.bh-problem-failed.bh-form-refused", several.refused, role="alert")
                if several.refused
                else None,
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
            ),
            el(
                "footer.bh-dialog-foot",
                el("p.bh-hint", _hold(several, profiles)),
                el("button.bh-button", "Close", type="button", on={"click": ["several.close"]}),
                el(
                    "button.bh-button.bh-button-main.bh-several-start",
                    f"Start {plural(count, 'job')}",
                    type="submit",
                ),
            ),
            on={"submit": ["several.send"], "change": ["several.keep"]},
        ),
        modal=True,
        aria_label=title,
        on={"cancel": ["several.close"]},
        key="several",
    )


def _profile(several: Several, profiles: Sequence[Profile]) -> Element:
    options = [
        el("option", profile(p), value=p.name, selected=p.name == several.profile or None) for p in profiles
    ]
    return _choice("profile", "CPUs", several.profile, options)


def _sponsor(several: Several, paying: Sequence[Sponsor]) -> Element:
    options = [
        el(
            "option",
            sponsors.label(one),
            value=one.id,
            selected=one.id == several.sponsor or None,
            disabled=bool(one.refusal) or None,
        )
        for one in paying
    ]
    usable = {one.id for one in paying if not one.refusal}
    lost = sorted({job.sponsor for job in several.jobs} - usable)
    none = f"{' and '.join(lost)}, which paid for some, does not pay for yours: choose another."
    warning = el("span.bh-sub.bh-warn", none) if lost and not several.sponsor else None
    return _choice(
        "sponsor", "Paid by", several.sponsor, options, [warning, sponsors.refusals(paying, several.sponsor)]
    )


def _choice(name: str, label: str, chosen: str, options: Sequence[Element], hint: Child = None) -> Element:
    ident = f"several-{name}"
    return el(
        "div.bh-field",
        el("label", label, for_=ident),
        el("select", AS_THEY_WERE, options, id=ident, name=name, value=chosen),
        el("p.bh-hint", hint),
        key=name,
    )


def _hold(several: Several, profiles: Sequence[Profile]) -> str:
    chosen = next((p for p in profiles if p.name == several.profile), None)
    asked = [chosen or job.profile for job in several.jobs]
    most = sum(p.cpus * p.walltime for p in asked)
    return f"Sets aside at most {cpu_hours(most)}; only what they use is charged."
