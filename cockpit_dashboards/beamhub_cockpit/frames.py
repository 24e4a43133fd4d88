"""Frames for the browser: counts, compressed, each fetched once."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import anywidget
import numpy as np
import traitlets
from beamhub.client import ApiError, Client, Unreachable
from beamhub.schemas import Dataset, Quantity
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from beamhub_cockpit.region import FRONT, reference

KEPT: Final = 96 * 2**20  # bytes of compressed frames that one page remembers
AHEAD: Final = 2  # frames fetched before they are asked for


class Wanted(BaseModel):
    """What the browser asks for: a region of a frame, max-binned. x1 and y1 are exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str
    id: int
    frame: int = Field(ge=1, le=2**31)
    x0: int = Field(ge=0, le=100_000)
    y0: int = Field(ge=0, le=100_000)
    x1: int = Field(ge=1, le=100_000)
    y1: int = Field(ge=1, le=100_000)
    bin: int = Field(ge=1, le=256)

    @model_validator(mode="after")
    def _not_empty(self) -> Wanted:
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError("an empty region")
        return self


@dataclass(frozen=True)
class Packed:
    """Counts as the browser takes them: little-endian, deflated; the largest value means "masked"."""

    width: int
    height: int
    depth: int  # bytes a pixel: 1, 2 or 4
    data: bytes


def pack(counts: NDArray[Any]) -> Packed:
    """Counts in the smallest unsigned type that holds them; masked pixels get its largest value."""
    if counts.dtype.kind != "u":
        counts = np.clip(counts, 0, None).astype(np.uint32)
    masked = counts == np.iinfo(counts.dtype).max
    top = int(counts.max(initial=0, where=~masked))
    chosen = next(t for t in (np.uint8, np.uint16, np.uint32) if top < np.iinfo(t).max or t is np.uint32)
    small = np.minimum(counts, np.iinfo(chosen).max).astype(chosen)
    small[masked] = np.iinfo(chosen).max
    little = np.ascontiguousarray(small.astype(small.dtype.newbyteorder("<")))
    height, width = counts.shape
    return Packed(width, height, little.itemsize, zlib.compress(little.tobytes(), 1))


class Frames:
    """Fetches packed frames of one dataset, each once, on a few threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._kept: OrderedDict[tuple[int, int, int, int, int, int, int], Packed] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="beamhub-frames")

    def get(self, dataset: int, wanted: Wanted, done: Callable[[Packed | str], None]) -> None:
        """Fetch, and tell `done` (on a thread of this object) the frame, or in words why there is none."""
        self._pool.submit(self._work, dataset, wanted, done)

    def ahead(self, dataset: int, wanted: Wanted, last: int) -> None:
        """Fetch the next frames before they are asked for."""
        for n in range(wanted.frame + 1, min(wanted.frame + AHEAD, last) + 1):
            following = wanted.model_copy(update={"frame": n})
            if self._key(dataset, following) not in self._kept:
                self._pool.submit(self._work, dataset, following, lambda _packed: None)

    def forget(self) -> None:
        """What has been fetched may not be the same any more."""
        with self._lock:
            self._kept.clear()
            self._size = 0

    def _work(self, dataset: int, wanted: Wanted, done: Callable[[Packed | str], None]) -> None:
        key = self._key(dataset, wanted)
        with self._lock:
            packed = self._kept.get(key)
            if packed is not None:
                self._kept.move_to_end(key)
        if packed is None:
            try:
                region = (wanted.x0, wanted.y0, wanted.x1, wanted.y1)
                packed = pack(self._client.frame(dataset, wanted.frame, bin=wanted.bin, region=region))
            except (ApiError, Unreachable) as error:
                done(str(error))
                return
            self._keep(key, packed)
        done(packed)

    def _keep(self, key: tuple[int, int, int, int, int, int, int], packed: Packed) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = packed
            self._size += len(packed.data)
            while self._size > KEPT:
                _, old = self._kept.popitem(last=False)
                self._size -= len(old.data)

    @staticmethod
    def _key(dataset: int, wanted: Wanted) -> tuple[int, int, int, int, int, int, int]:
        return (dataset, wanted.frame, wanted.bin, wanted.x0, wanted.y0, wanted.x1, wanted.y1)


class FrameCanvas(anywidget.AnyWidget):
    """Frames of one dataset in the browser. `frame` is the one shown; `live` follows the newest."""

    _esm = (FRONT / "frames.js").read_text()
    info = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(1).tag(sync=True)
    live = traitlets.Bool(False).tag(sync=True)

    def __init__(self, frames: Frames, loop: asyncio.AbstractEventLoop, **state: Any) -> None:
        super().__init__(**state)
        self._frames = frames
        self._loop = loop
        self.on_msg(self._heard)

    @property
    def ref(self) -> str:
        return reference(self)

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        try:
            wanted = Wanted.model_validate(content)
        except ValidationError:
            return
        dataset, last = self.info["id"], self.info["frames"]
        about = wanted.model_dump(exclude={"action"})

        def done(packed: Packed | str) -> None:
            if isinstance(packed, str):
                self._loop.call_soon_threadsafe(lambda: self.send({**about, "error": packed}))
                return
            described = {**about, "width": packed.width, "height": packed.height, "bytes": packed.depth}
            self._loop.call_soon_threadsafe(lambda: self.send(described, [packed.data]))
            self._frames.ahead(dataset, wanted, last)

        self._frames.get(dataset, wanted, done)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What the canvas must know of a dataset: size, and geometry (Å, m, pixels) where it is known."""
    rows, columns = dataset.shape
    meta = dataset.metadata
    return {
        "id": dataset.id,
        "frames": dataset.frames_readable,
        "announced": dataset.frames_announced,
        "rows": rows,
        "columns": columns,
        "wavelength": _value(meta.get("wavelength")),
        "distance": _value(meta.get("detector_distance")),
        "center_x": _value(meta.get("beam_center_x")),
        "center_y": _value(meta.get("beam_center_y")),
        "pixel_x": _value(meta.get("x_pixel_size")),
        "pixel_y": _value(meta.get("y_pixel_size")),
    }


def _value(q: Quantity | None) -> float | None:
    value = q.value if q is not None else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    scale = {"mm": 1e-3, "um": 1e-6, "µm": 1e-6}.get(q.unit, 1.0) if q is not None else 1.0
    return float(value) * scale
