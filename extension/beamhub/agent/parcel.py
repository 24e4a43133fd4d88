"""Small files that are sent together: each read once, whole, and hashed on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from beamhub.schemas import DigestAlgorithm

from .file import ChangedError, Digesting, GoneError, opened, rest
from .queue import Item


@dataclass(frozen=True, slots=True)
class Parcel:
    """A small file as it was when it was read."""

    item: Item
    content: bytes
    digest: str
    key: str  # of its announcement


def pack(
    items: Sequence[tuple[Item, str]], algorithm: DigestAlgorithm
) -> tuple[list[Parcel], list[tuple[Item, Exception]]]:
    """Reads these files (each with its key); and those that can't be read, with ChangedError, GoneError or
    OSError."""
    parcels, problems = list[Parcel](), list[tuple[Item, Exception]]()
    for item, key in items:
        try:
            with opened(item.watch.path, item.name, item.stamp) as file:
                content = rest(file, item.path, item.stamp)
        except (ChangedError, GoneError, OSError) as problem:
            problems.append((item, problem))
            continue
        digesting = Digesting(algorithm)
        digesting.add(content, 0)
        parcels.append(Parcel(item, content, digesting.digest(), key))
    return parcels, problems


def body(parcels: Sequence[Parcel]) -> bytes:
    """What the service gets of them: a line that says what they are, then their bytes."""
    files = [
        {
            "filename": parcel.item.watch.destination(parcel.item.name),
            "size": len(parcel.content),
            "digest": parcel.digest,
            "key": parcel.key,
        }
        for parcel in parcels
    ]
    head = json.dumps({"files": files}, separators=(",", ":")).encode()
    return b"".join([head, b"\n", *(parcel.content for parcel in parcels)])
