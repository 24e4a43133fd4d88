"""What a trigger rule would have started, and what it is to start on now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from beamhub.schemas import Job, Template, TriggerEvent, TriggerSubject, TriggerTrial

from beamhub_cockpit.draft import CHOSEN, Draft, key
from beamhub_cockpit.format import number, plural
from beamhub_cockpit.html import Child, Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import ago
from beamhub_cockpit.ruletext import EVENTS, parameters

SUBJECTS: Final = {
    TriggerEvent.FILE_COMPLETE: "file",
    TriggerEvent.JOB_FINISHED: "job",
    TriggerEvent.EXPERIMENT_ACTIVATED: "experiment",
}


def show(draft: Draft, jobs: Sequence[Job], templates: Mapping[str, Template], links: Links) -> Element:
    """What the rule would have started; on what it would have, it can be started now."""
    trials, template = draft.trials, templates.get(draft.template)
    done = [job for job in jobs if job.template == draft.template]
    if trials is None:
        said: list[Child] = [el("p.bh-empty", "As soon as the rule is complete, it is tried out here.")]
    elif not trials:
        said = [el("p.bh-empty", summed(draft))]
    else:
        may_choose = draft.may_start and any(trial.starts for trial in trials)
        said = [
            el(
                "p.bh-trials-said",
                el("strong", summed(draft)),
                " Tick on which to start it now, once it is saved." if may_choose else None,
            ),
            el(
                "div.bh-trials-scroll",
                el(
                    "table.bh-table.bh-trials",
                    el(
                        "thead",
                        el(
                            "tr",
                            el("th", el("span.bh-unseen", "Start now"), scope="col")
                            if draft.may_start
                            else None,
                            [el("th", title, scope="col") for title in ("On", "The rule", "Done already")],
                        ),
                    ),
                    el("tbody", [_trial(trial, draft, done, template, links) for trial in trials]),
                ),
                tabindex="0",
                role="region",
                aria_label="What the rule would have started",
            ),
        ]
    return el("fieldset.bh-fieldset.bh-rule-trials", el("legend", "Tried out"), said, key="trials")


def _trial(
    trial: TriggerTrial, draft: Draft, jobs: Sequence[Job], template: Template | None, links: Links
) -> Element:
    name = key(trial)
    ids = {int(one.id) for one in trial.subjects if one.kind == "dataset"}
    done = [job for job in jobs if any(i.kind == "dataset" and i.id in ids for i in job.inputs)]
    startable = trial.starts and not trial.reason and trial.subjects[0].kind != "job"
    told = ", ".join(parameters(trial.parameters, template))
    return el(
        "tr.bh-trial",
        el(
            "td",
            el(
                "input",
                type="checkbox",
                name=CHOSEN + name,
                checked=name in draft.chosen or None,
                aria_label=f"Start now on {_names(trial.subjects)}",
            )
            if startable
            else None,
        )
        if draft.may_start
        else None,
        el(
            "td",
            linked(trial.subjects, links),
            el(
                "span.bh-sub", f"{trial.experiment} · " if draft.experiment is None else None, ago(trial.time)
            ),
        ),
        el(
            "td",
            el("span.bh-trial-starts", "starts"),
            el("span.bh-sub", told) if told else None,
            el("span.bh-sub.bh-warn", f"but {trial.reason}") if trial.reason else None,
        )
        if trial.starts
        else el("td.bh-quiet", trial.reason or "starts nothing"),
        el("td", _done(done, links)),
        key=name,
        data_trial=name,
        data_starts="true" if trial.starts else "false",
    )


def _done(jobs: Sequence[Job], links: Links) -> list[Child]:
    shown: list[Child] = []
    for job in jobs[:2]:
        shown += [", "] if shown else []
        shown += [el("a.bh-link", f"#{job.id}", href=links.job(job.id)), f" {job.state}"]
    return [*shown, f" and {number(len(jobs) - 2)} more"] if len(jobs) > 2 else shown


def _names(subjects: Sequence[TriggerSubject]) -> str:
    return ", ".join(one.name or one.id for one in subjects)


def linked(found: Sequence[TriggerSubject], links: Links) -> Element:
    """What something has happened to, each with a link where there is a page."""
    shown: list[Child] = []
    for one in found[:5]:
        href = ""
        if one.kind == "dataset" and one.id.isdigit():
            href = links.frame(int(one.id))
        elif one.kind == "job" and one.id.isdigit():
            href = links.job(int(one.id))
        elif one.kind == "experiment":
            href = links.cockpit(one.id)
        name = one.name or one.id
        shown += [", "] if shown else []
        shown.append(el("a.bh-link", name, href=href) if href else name)
    if len(found) > 5:
        shown.append(f" and {number(len(found) - 5)} more")
    return el("span.bh-trial-names", shown)


def summed(draft: Draft) -> str:
    """In one line."""
    trials = draft.trials or []
    if not trials:
        return f"It has not happened yet that {EVENTS[draft.event]}."
    starts = sum(trial.starts for trial in trials)
    looked = plural(sum(len(trial.subjects) for trial in trials), SUBJECTS.get(draft.event, "dataset"))
    return f"On the last {looked}, it would have started {plural(starts, 'job')}."
