"""Plans: what a job is made from, checked: a version of a template, its parameters, a profile, a sponsor."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from beamhub import notebooks, templates
from beamhub.catalogue import Catalogue
from beamhub.errors import Invalid, NotFound
from beamhub.schemas import Job, Profile
from beamhub.templates import Entry


@dataclass(frozen=True)
class Plan:
    """All that a job is made from but its inputs, checked."""

    entry: Entry
    parameters: Mapping[str, JsonValue]
    profile: Profile
    sponsor: str


def profiles(cpus: int) -> list[Profile]:
    """What jobs may ask for on a machine with so many CPUs: 4 GiB of memory per CPU, for an hour."""
    return [
        Profile(
            name=f"cpu-{count}",
            title="1 CPU" if count == 1 else f"{count} CPUs",
            cpus=count,
            memory=count * 4 * 1024**3,
            walltime=3600,
        )
        for count in (1, 2, 4, 8, 16, 32)
        if count <= cpus
    ]


class Plans:
    """Makes plans, and keeps every template version that one was made with.

    Args:
        profiles: what can be asked for; the first is what a template gets whose own profile is not there.
        data_dir: the folder of all experiments.
    """

    def __init__(self, catalogue: Catalogue, profiles: Sequence[Profile], data_dir: Path) -> None:
        self._catalogue = catalogue
        self._profiles = list(profiles)
        self._data_dir = data_dir
        self._versions = data_dir / ".templates"

    def make(
        self,
        experiment: str,
        template: str,
        notebook: str | None,
        parameters: Mapping[str, JsonValue],
        profile: str | None,
        sponsor: str,
    ) -> Plan:
        """For a job in an experiment, whose members' templates count, too; `notebook` is the path of one of
        theirs that is to be run instead of a template. Raises NotFound or Invalid."""
        folder = self._data_dir / experiment
        entry = (
            self._catalogue.get(template, folder)
            if notebook is None
            else self._catalogue.notebook(folder, notebook)
        )
        return self.of(entry, parameters, profile, sponsor)

    def of(
        self, entry: Entry, parameters: Mapping[str, JsonValue], profile: str | None, sponsor: str
    ) -> Plan:
        """Raises NotFound or Invalid."""
        if entry.template.missing:
            raise Invalid(
                f"{entry.template.title} cannot run here: {', '.join(entry.template.missing)} is missing.",
                "Ask the facility to install it, or choose another template.",
            )
        values = templates.validate(entry.template, parameters)
        plan = Plan(entry, values, self.profile(profile, entry.template.profile), sponsor)
        self._keep(entry)
        return plan

    def profile(self, name: str | None, default: str) -> Profile:
        """The one of this name, or where none is named the default. Raises Invalid."""
        known = {profile.name: profile for profile in self._profiles}
        if name is None:
            return known.get(default, self._profiles[0])
        if name not in known:
            raise Invalid(f"There is no profile {name!r} here.", f"Choose one of: {', '.join(known)}.")
        return known[name]

    def declared(self, job: Job) -> Mapping[str, str]:
        """The metrics that the job's template declares, with their units; none where it is not kept."""
        try:
            return notebooks.metrics(self.template(job))
        except NotFound:
            return {}

    def template(self, job: Job) -> bytes:
        """The notebook that the job was made from, in the version of that moment. Raises NotFound for a job
        that was never made from any, because its rule could not be followed."""
        try:
            return self._version(job.template, job.template_version).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                f"The notebook that job {job.id} was to run is not kept here.", "Run its template again."
            ) from error

    def _keep(self, entry: Entry) -> None:
        """Keeps this version of the template: the job must run it, even if the file is changed meanwhile."""
        path = self._version(entry.template.name, entry.template.version)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{secrets.token_hex(8)}.part")  # others may keep it, too
            with temporary.open("wb") as file:
                file.write(entry.content)
                file.flush()
                os.fsync(file.fileno())  # a half written one would be taken for it for ever
            temporary.rename(path)

    def _version(self, template: str, version: str) -> Path:
        return self._versions / f"{template}-{version}.ipynb"
