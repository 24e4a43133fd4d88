"""Fingerprints: two jobs that have the same one give the same result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from beamhub import software
from beamhub.schemas import Dataset, DatasetState, Experiment, JobInput, Template, Upload
from beamhub.store import Transaction


def fingerprint(
    tx: Transaction,
    experiment: Experiment,
    template: Template,
    parameters: Mapping[str, JsonValue],
    inputs: Sequence[JobInput],
) -> str | None:
    """A digest of all that a job's result depends on: the version of its template, its parameters, the
    digests of what it works on, and the software. None while that cannot be told: a dataset still grows, or
    it is not known what is in a file. How many CPUs a job has, and who pays, makes no difference."""
    data = [_content(tx, experiment, one) for one in inputs]
    if any(one is None for one in data):
        return None
    whole = {
        "template": [template.notebook or template.name, template.version],
        "parameters": dict(parameters),
        "inputs": data,
        "packages": software.versions(template.requires.get("python", [])),
        "programs": software.builds(template.requires.get("programs", [])),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _content(tx: Transaction, experiment: Experiment, one: JobInput) -> JsonValue:
    """What is in an input; None if that cannot be told."""
    if one.kind == "job":
        return ["job", one.id]  # what a job has made never changes
    if one.kind == "file":
        return _digests(tx.uploads.published(experiment.id, [one.name]), [one.name])
    dataset = tx.datasets.get(one.id or 0)
    if dataset is None or dataset.state is DatasetState.RECEIVING:
        return None
    paths = _paths(tx, dataset)
    return _digests(tx.uploads.published(dataset.experiment, paths), paths)


def _paths(tx: Transaction, dataset: Dataset) -> list[str]:
    """Of all files of a dataset that have arrived."""
    files = [file.path for file in tx.datasets.files(dataset.id) if file.frames is not None]
    series = "#" in dataset.path  # its path stands for all of its files
    return files if series else [dataset.path, *files]


def _digests(published: Mapping[str, Upload], paths: Sequence[str]) -> JsonValue:
    digests: list[JsonValue] = [
        [path, upload.digest] for path in paths if (upload := published.get(path)) and upload.digest
    ]
    return digests if paths and len(digests) == len(paths) else None
