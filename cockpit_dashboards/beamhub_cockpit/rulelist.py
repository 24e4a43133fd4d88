"""What the page of trigger rules shows: rules as they apply, what was missed, what waits, what a rule was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from beamhub.schemas import (
    Experiment,
    Instrument,
    Profile,
    Template,
    Trigger,
    TriggerGathering,
    TriggerTrial,
    TriggerVersion,
)

from beamhub_cockpit import draft, ruletext, trials
from beamhub_cockpit.dialog import dialog
from beamhub_cockpit.format import duration, number, plural
from beamhub_cockpit.html import Element, el
from beamhub_cockpit.links import Links
from beamhub_cockpit.parts import ago, button, card, state, table

SHOWN: Final = 50  # of what was missed
TUNED: Final = frozenset({"enabled", "parameters", "sponsor"})  # what a PI may have different


@dataclass(frozen=True)
class History:
    """All that a rule was, while it is looked at."""

    rule: Trigger
    versions: list[TriggerVersion]


@dataclass(frozen=True)
class Known:
    """What the page knows."""

    experiment: Experiment | None  # None: the rules for all experiments are shown
    base: Mapping[int, Trigger]  # the instrument's rules
    rules: Mapping[int, Trigger]  # as they apply
    templates: Mapping[str, Template]
    profiles: Sequence[Profile]
    missed: Sequence[TriggerTrial]
    waiting: Sequence[TriggerGathering]
    operates: bool  # does the viewer look after the instrument
    tunes: bool  # may the viewer change something of what is shown
    links: Links


def head(known: Known, seen: Instrument) -> Element:
    here = known.experiment
    if here is None:
        back, where = known.links.page("facility"), "Facility"
        title, hint = (
            f"Rules of {seen.title}",
            "They hold in all experiments, unless one has them different.",
        )
    else:
        back, where = known.links.cockpit(here.id), here.title
        title = "Rules in this experiment"
        hint = f"Those of {seen.title}, with what is different in {here.id}, and its own."
    staff_link = here is not None and known.operates
    return el(
        "section.bh-analysis-head",
        el("a.bh-link", f"← {where}", href=back),
        el("h1", title),
        el("p.bh-hint", hint),
        el(
            "div.bh-experiment-tools",
            el("a.bh-button", f"All of {seen.id}", href=known.links.rules(instrument=seen.id))
            if staff_link
            else None,
            button("New rule …", ["rules.new"], css="bh-button-main bh-rule-new") if known.tunes else None,
        ),
        data_instrument=seen.id,
        data_experiment=here.id if here else None,
    )


def automation(known: Known, seen: Instrument) -> list[Element]:
    """Whether rules are followed, and what they were not followed on."""
    found = []
    if not seen.automation:
        found.append(
            el(
                "div.bh-problem.bh-problem-pending.bh-uploads-paused.bh-automation-paused",
                el(
                    "div",
                    el("p.bh-reason", "Automation is paused: no rule starts anything"),
                    el("p.bh-hint", "What would have been started is noted, and can be made up for."),
                ),
                button("Resume", ["automation.set", 1], css="bh-automation-toggle", twin="automation")
                if known.operates
                else None,
            )
        )
    if known.missed:
        found.append(_missed(known, seen))
    return found


def _missed(known: Known, seen: Instrument) -> Element:
    wanted = [trial for trial in known.missed if trial.starts]
    return card(
        "Missed while automation was paused",
        el(
            "table.bh-table.bh-missed",
            el("thead", el("tr", [el("th", t, scope="col") for t in ("On", "Rule", "When")])),
            el(
                "tbody",
                [
                    el(
                        "tr.bh-missed-row",
                        el(
                            "td",
                            trials.linked(trial.subjects, known.links),
                            el("span.bh-sub", trial.experiment),
                        ),
                        el(
                            "td",
                            known.base[trial.rule].title
                            if trial.rule in known.base
                            else f"rule {trial.rule}",
                            el("span.bh-sub", trial.reason) if trial.reason else None,
                        ),
                        el("td", ago(trial.time)),
                        key=f"{trial.rule}-{draft.key(trial)}-{trial.time}",
                    )
                    for trial in wanted[:SHOWN]
                ],
            ),
        ),
        el("p.bh-hint", f"and {number(len(wanted) - SHOWN)} more") if len(wanted) > SHOWN else None,
        aside=el(
            "span.bh-missed-tools",
            None if seen.automation else el("span.bh-hint", "Resume to catch up"),
            button(
                f"Start {plural(len(wanted), 'job')}",
                ["missed.start"],
                css="bh-button-main bh-missed-start",
                disabled=not seen.automation,
            ),
            button("Leave it at that …", ["missed.forget"], css="bh-missed-forget"),
        ),
        css="bh-missed-card",
    )


def rules(known: Known, seen: Instrument) -> Element:
    head = ("State", "Rule", "Runs", "With", "Version")
    ordered = sorted(known.rules.values(), key=lambda rule: rule.id)
    toggle = None
    if known.operates and seen.automation:
        toggle = button(
            "Pause automation", ["automation.set", 0], css="bh-automation-toggle", twin="automation"
        )
    return card(
        "Rules",
        table(".bh-rules", head, [_rule(known, rule, seen) for rule in ordered], last="What can be done")
        if ordered
        else el("p.bh-empty", "None yet: data start no jobs by themselves."),
        aside=toggle,
        css="bh-rules-card",
    )


def _rule(known: Known, rule: Trigger, seen: Instrument) -> Element:
    template = known.templates.get(rule.template)
    given = ruletext.parameters(rule.parameters, template)
    more = f" and {len(given) - 3} more" if len(given) > 3 else ""
    word = "off" if not rule.enabled else "on" if seen.automation else "paused"
    profile = next((p for p in known.profiles if p.name == rule.profile), None)
    differs = [ruletext.NAMES[name] for name in rule.changed]
    return el(
        "tr.bh-rule",
        el("td", state(word, "bh-rule-state")),
        el(
            "td",
            el("strong.bh-rule-title", rule.title),
            el("span.bh-sub", ruletext.when(rule)),
            el("span.bh-rule-differs", f"Differs here: {', '.join(differs)}") if differs else None,
            el("span.bh-rule-differs", "Only in this experiment") if _is_own(known, rule) else None,
        ),
        el(
            "td",
            _title(known, rule.template),
            el("span.bh-sub", ", ".join(given[:3]) + more) if given else None,
        ),
        el(
            "td",
            plural(profile.cpus, "CPU") if profile else rule.profile,
            el("span.bh-sub", f"paid by {rule.sponsor}"),
            el("span.bh-sub", f"priority {number(rule.priority)}") if rule.priority else None,
        ),
        el(
            "td",
            button(
                f"{rule.version}",
                ["rules.history", rule.id],
                look="bh-text-button",
                css="bh-rule-history",
                title="What it was",
                said=f"Version {rule.version}: what {rule.title} was",
            ),
        ),
        el("td.bh-rule-tools", _tools(known, rule)) if known.tunes else el("td"),
        key=rule.id,
        data_rule=str(rule.id),
        data_state=word,
    )


def _title(known: Known, template: str) -> str:
    found = known.templates.get(template)
    return found.title if found else f"{template} (not here)"


def _is_own(known: Known, rule: Trigger) -> bool:
    """Is it for the experiment alone?"""
    return rule.experiment is not None and rule.id not in known.base


def _tools(known: Known, rule: Trigger) -> list[Element | None]:
    on = rule.enabled
    may_reset = bool(rule.changed) and (known.operates or TUNED.issuperset(rule.changed))
    own = known.experiment is None or _is_own(known, rule)
    return [
        button("Change …", ["rules.change", rule.id], css="bh-small bh-rule-change"),
        button(
            "Switch off" if on else "Switch on",
            ["rules.switch", rule.id],
            css="bh-small bh-rule-switch",
        ),
        button("Delete …", ["rules.delete", rule.id], css="bh-small bh-rule-delete") if own else None,
        el(
            "div",
            button(
                "As on the instrument",
                ["rules.reset", rule.id],
                css="bh-small bh-rule-reset",
                title="Take back all that differs here",
            ),
        )
        if may_reset
        else None,
    ]


def gatherings(known: Known) -> Element:
    lines = []
    for one in sorted(known.waiting, key=lambda one: one.id, reverse=True):
        rule = known.rules.get(one.rule)
        least = rule.group.at_least if rule and rule.group else 1
        left = max(one.due - datetime.now(UTC), timedelta()) if one.due else None
        if left is None:
            until = "waits while automation is paused"
        elif one.count < least:
            until = f"gives up in {duration(left)}, unless {least} are together by then"
        else:
            until = f"starts in {duration(left)}, unless more comes"
        lines.append(
            el(
                "li.bh-gathering",
                el("strong", rule.title if rule else f"rule {one.rule}"),
                el("span", f"{one.value} · " if one.value else None, f"{number(one.count)} so far"),
                el("span.bh-sub", f"{one.experiment} · since ", ago(one.started), f" · {until}"),
                key=one.id,
                data_gathering=str(one.id),
            )
        )
    return card("Waiting for what belongs together", el("ul.bh-gatherings", lines), css="bh-gatherings-card")


def history(known: Known, seen: History) -> Element:
    newest = seen.versions[0].version if seen.versions else 0
    told = ruletext.history(seen.versions, known.templates)
    return dialog(
        "bh-rule-past",
        f"What {seen.rule.title} was",
        el("ol.bh-versions", [_version(known, *one, newest) for one in told]),
        None,
        hint="The newest first.",
        close="history.close",
        key="history",
    )


def _version(known: Known, version: TriggerVersion, told: list[ruletext.Difference], newest: int) -> Element:
    words = {"created": "made it", "changed": "changed it", "deleted": "deleted it"}
    where = f" in {version.experiment}" if version.experiment else ""
    rule = ruletext.as_written(version.data) if version.change == "created" else None
    may_restore = (
        version.experiment is None
        and known.experiment is None
        and version.change != "deleted"
        and version.version != newest
    )
    return el(
        "li.bh-version",
        el(
            "p",
            el("strong", f"{version.version}"),
            f" · {version.author} {words[version.change]}{where} · ",
            ago(version.time),
        ),
        el("p.bh-sub", f"{ruletext.when(rule)} → {_title(known, rule.template)}") if rule else None,
        el(
            "ul",
            [
                el(
                    "li",
                    f"{one.name}: ",
                    el("span.bh-was", one.before),
                    " → ",
                    el("strong", one.after),
                )
                for one in told
            ],
        )
        if told
        else None,
        button(
            "Go back to this …",
            ["history.restore", version.version],
            look="bh-text-button",
            css="bh-version-restore",
        )
        if may_restore
        else None,
        key=f"{version.version}-{version.experiment}-{version.time}",
        data_version=str(version.version),
    )
