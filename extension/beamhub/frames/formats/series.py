"""Series of one file a frame, numbered in their names: miniCBF as DECTRIS PILATUS writes it, and TIFF.

Nothing announces a series: it has as many frames as files come. Frames are counted from the lowest number.
fabio decodes them (CBF's byte offsets, TIFF); it is imported by whoever reads, which the service does not.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import math
import os
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from beamhub.frames.format import (
    Contents,
    DatasetInfo,
    Frames,
    MissingFrameError,
    Part,
    check_size,
    plain_text,
)
from beamhub.frames.outside import HostileFile, UnreadableFile, open_confined
from beamhub.schemas import DatasetKind, Quantity

if TYPE_CHECKING:  # an ingest process, which shows no frames, does without numpy
    import numpy as np
    from numpy.typing import NDArray

DIGITS = "[0-9]{3,7}"  # of a file's number
MAX_HEADER = 1 << 16  # bytes; a PILATUS's has 1500
MAX_FILE = 1 << 30  # bytes
_BINARY = b"\x0c\x1a\x04\xd5"  # begins the binary section of a CBF
_DTYPES = {
    f"{sign} {bits}-bit integer": f"{letter}int{bits}"
    for sign, letter in (("signed", ""), ("unsigned", "u"))
    for bits in (8, 16, 32)
}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"


@dataclass(frozen=True)
class Image:
    """What a file's header says. `told` are the lines of a PILATUS header, name -> the rest of the line."""

    shape: tuple[int, int]
    dtype: str
    told: dict[str, str]


class Series(ABC):
    """What series have in common; a subclass says how one file is read."""

    name: str
    suffixes: tuple[str, ...]

    def part(self, path: PurePosixPath) -> Part | None:
        match = re.fullmatch(rf"(.+_)({DIGITS})", path.stem)
        if match is None or path.suffix not in self.suffixes:
            return None
        pattern = f"{match[1]}{'#' * len(match[2])}{path.suffix}"
        return Part(self.name, str(path.with_name(pattern)), int(match[2]))

    def title(self, dataset: PurePosixPath) -> str | None:
        match = re.fullmatch(r"(.+)_#{3,7}", dataset.stem)
        return match[1] if match and dataset.suffix in self.suffixes else None

    def look(self, path: Path, root: Path) -> Contents:
        image = self._header(path.name, _content(path, root))
        return Contents(_announced(image), 1)

    def frames(self, dataset: Path, root: Path, first: int | None = None) -> SeriesFrames:
        return SeriesFrames(self, dataset, root, first)

    def read(self, path: Path, root: Path) -> NDArray[Any]:
        """The counts in one file. Raises as `look` does."""
        content = _content(path, root)
        image = self._header(path.name, content)
        try:
            counts = self._decode(content, image)
        except (ArithmeticError, AssertionError, LookupError, OSError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UnreadableFile(path.name, f"its image is damaged ({reason})") from error
        if counts.shape != image.shape or counts.dtype.name != image.dtype:
            raise UnreadableFile(path.name, "its image is not what its header says")
        return counts

    @abstractmethod
    def _header(self, name: str, content: bytes) -> Image:
        """Raises HostileFile, UnreadableFile."""

    @abstractmethod
    def _decode(self, content: bytes, image: Image) -> NDArray[Any]: ...


class Cbf(Series):
    """miniCBF: a DECTRIS header in comments, and an image packed by byte offsets."""

    name = "cbf"
    suffixes = (".cbf",)

    def _header(self, name: str, content: bytes) -> Image:
        if not content.startswith(b"###CBF"):
            raise UnreadableFile(name, "it is not a CBF file")
        begin = content.find(_BINARY, 0, MAX_HEADER)
        if begin < 0:
            raise UnreadableFile(name, "it has no image: it is truncated, or not a miniCBF")
        text = content[:begin].decode("latin-1")
        columns, rows, size = (
            _whole(name, text, key)
            for key in (
                "X-Binary-Size-Fastest-Dimension",
                "X-Binary-Size-Second-Dimension",
                "X-Binary-Size",
            )
        )
        check_size(name, 1, (rows, columns))
        dtype = re.search(r'X-Binary-Element-Type:\s*"([^"]*)"', text)
        if dtype is None or dtype[1] not in _DTYPES:
            raise UnreadableFile(name, "its image is not of whole numbers of at most 32 bits")
        if not re.search(r'conversions="x-CBF_BYTE_OFFSET"', text):
            raise UnreadableFile(name, "its image is packed in another way than by byte offsets")
        if size > len(content) - begin - len(_BINARY):
            raise UnreadableFile(name, "it is truncated; send it again")
        if rows * columns != _whole(name, text, "X-Binary-Number-of-Elements"):
            raise UnreadableFile(name, "its header contradicts itself about how many pixels there are")
        if size < rows * columns:  # a pixel takes a byte or more
            raise UnreadableFile(name, "it holds fewer pixels than it claims")
        return Image((rows, columns), _DTYPES[dtype[1]], _pilatus(text))

    def _decode(self, content: bytes, image: Image) -> NDArray[Any]:
        import numpy as np
        from fabio.compression import decByteOffset

        begin = content.find(_BINARY, 0, MAX_HEADER) + len(_BINARY)
        text = content[:begin].decode("latin-1")
        packed = content[begin : begin + _whole("it", text, "X-Binary-Size")]
        told = re.search(r"Content-MD5:\s*(\S+)", text)
        digest = base64.b64encode(hashlib.md5(packed, usedforsecurity=False).digest()).decode()
        if told is not None and told[1] != digest:
            raise ValueError("its bytes are not those that its checksum was made of")
        pixels = math.prod(image.shape)
        counts: NDArray[Any] = np.asarray(decByteOffset(packed, size=pixels, dtype=image.dtype))
        return counts.astype(image.dtype, copy=False).reshape(image.shape)


class Tiff(Series):
    """TIFF of one grey image of 16 or 32 bits, in which a PILATUS leaves its header as a description."""

    name = "tiff"
    suffixes = (".tif", ".tiff")

    def _header(self, name: str, content: bytes) -> Image:
        try:
            told = _tiff(content).getInfo(0)
            rows, columns, bits = (int(told[key]) for key in ("nRows", "nColumns", "nBits"))
            floating, plain = int(told["sampleFormat"]) == 3, not told["compression"]
            kind = {1: "uint", 2: "int"}.get(int(told["sampleFormat"]))
            text = str(told.get("imageDescription", ""))
        except Exception as error:  # fabio raises what it likes
            raise UnreadableFile(name, "it is not a TIFF file of a detector") from error
        check_size(name, 1, (rows, columns))
        if kind is None or floating or bits not in (16, 32) or not plain:
            raise UnreadableFile(name, "it is not a plain image of whole numbers of 16 or 32 bits")
        if rows * columns * bits // 8 > len(content):
            raise UnreadableFile(name, "it is truncated, or holds fewer pixels than it claims")
        return Image((rows, columns), f"{kind}{bits}", _pilatus(text))

    def _decode(self, content: bytes, image: Image) -> NDArray[Any]:
        counts: NDArray[Any] = _tiff(content).getData(0)
        return counts.astype(image.dtype, copy=False)


class SeriesFrames(Frames):
    """The frames of a series: what lies in its folder under its numbers. Raises as `Series.look` does.

    The first file says what is announced. Files below it may still come: with 0 or 1 it has begun for sure.
    """

    def __init__(self, series: Series, dataset: Path, root: Path, first: int | None) -> None:
        self._told = first
        self.name = dataset.name
        self._series = series
        self._root = root
        self._folder = dataset.parent
        digits = re.search(r"#+$", dataset.stem)
        self._width = len(digits[0]) if digits else 0
        self._prefix = dataset.stem.rstrip("#")
        self._suffix = dataset.suffix
        first = self._first()
        if first is None:
            raise FileNotFoundError(f"there is no file of {self.name}")
        info = series.look(self._path(first), root).info
        if info is None:
            raise UnreadableFile(self.name, "it announces nothing")
        self.info = info

    @property
    def first_number(self) -> int:  # type: ignore[override]
        return self._first() or 0

    def __len__(self) -> int:
        numbers = self._numbers()
        return max(numbers) - min(numbers) + 1 if numbers else 0

    @property
    def begun(self) -> bool:
        return self._first() in (0, 1)

    def has(self, index: int) -> bool:
        first = self._first()
        return index >= 0 and first is not None and self._path(first + index).is_file()

    def readable(self) -> int:
        numbers = self._numbers()
        first = self._first() or 0
        return next(count for count in itertools.count() if first + count not in numbers)

    def file(self, index: int) -> Path:
        return self._path((self._first() or 0) + index)

    def files_arrived(self) -> int:
        return len(self._numbers())

    def counts(self, index: int) -> NDArray[Any]:
        first = self._first()
        if index < 0 or first is None:
            raise MissingFrameError(f"{self.name} has no frame {index + 1}")
        path = self._path(first + index)
        try:
            counts = self._series.read(path, self._root)
        except FileNotFoundError as error:
            raise MissingFrameError(f"frame {index + 1} of {self.name} has not arrived") from error
        if counts.shape != self.info.shape:
            raise UnreadableFile(path.name, "its frame is of another size than the first of its series")
        return counts.astype(self.info.dtype, copy=False)

    def quiet(self) -> float:
        numbers = self._numbers()
        try:
            newest = self._path(max(numbers)).stat().st_mtime
        except (FileNotFoundError, ValueError):
            return 0.0
        return max(0.0, time.time() - newest)

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """A PILATUS marks gaps with -1 and bad pixels with -2; they are the same in all frames."""
        first = next((index for index in range(len(self)) if self.has(index)), 0)
        bad: NDArray[np.bool_] = self.counts(first) < 0
        return bad

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._prefix}{number:0{self._width}}{self._suffix}"

    def _first(self) -> int | None:
        """The number of the first frame: as was told, or the lowest that is there."""
        if self._told is not None:
            return self._told
        for number in (0, 1):
            if self._path(number).is_file():
                return number
        return min(self._numbers(), default=None)

    def _numbers(self) -> set[int]:
        pattern = re.compile(re.escape(self._prefix) + rf"([0-9]{{{self._width}}})" + re.escape(self._suffix))
        with os.scandir(self._folder) as entries:
            names = (pattern.fullmatch(entry.name) for entry in entries)
            return {int(match[1]) for match in names if match}


# --- the headers --------------------------------------------------------------------------------------------


def _content(path: Path, root: Path) -> bytes:
    fd = open_confined(path, root)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_size > MAX_FILE:
            raise HostileFile(path.name, f"it has more than {MAX_FILE} bytes for one frame")
        return file.read()


def _whole(name: str, text: str, key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d{{1,12}})\s*$", text, re.MULTILINE)
    if found is None:
        raise UnreadableFile(name, f"its header lacks {key}")
    return int(found[1])


def _tiff(content: bytes) -> Any:
    from fabio.TiffIO import TiffIO

    return TiffIO(io.BytesIO(content))


def _pilatus(text: str) -> dict[str, str]:
    """The lines `# Name value` of a DECTRIS header; in some there is a colon or an equals sign between."""
    lines = re.findall(r"^#[ \t]+([A-Za-z_]\w*)[ \t]*[:=]?[ \t]+([^\r\n]*)", text, re.MULTILINE)
    return dict(lines)


def _announced(image: Image) -> DatasetInfo:
    """In NXmx's names and units."""
    told = image.told
    found: dict[str, Quantity] = {}

    def number(name: str, unit: str, key: str, pattern: str = _NUMBER, scale: float = 1) -> None:
        match = re.match(pattern, told.get(key, ""))
        if match and math.isfinite(value := float(match[1]) * scale):
            found[name] = Quantity(value=value, unit=unit)

    number("wavelength", "angstrom", "Wavelength")
    number("photon_energy", "eV", "Photon_energy")
    number("detector_distance", "m", "Detector_distance")
    number("detector_distance", "m", "Detector_distance", _NUMBER + r"\s*mm\b", 1e-3)
    number("beam_center_x", "pixel", "Beam_xy", rf"\(\s*{_NUMBER}")
    number("beam_center_y", "pixel", "Beam_xy", rf"\([^,]*,\s*{_NUMBER}")
    number("x_pixel_size", "m", "Pixel_size")
    number("y_pixel_size", "m", "Pixel_size", rf"[^x]*x\s*{_NUMBER}")
    for key, material in (("Silicon", "Si"), ("CdTe", "CdTe")):
        if key in told:
            found["sensor_material"] = Quantity(value=material)
            number("sensor_thickness", "m", key, rf".*?thickness\s+{_NUMBER}")
    number("count_time", "s", "Exposure_time")
    number("frame_time", "s", "Exposure_period")
    number("saturation_value", "", "Count_cutoff")
    number("threshold_energy", "eV", "Threshold_setting")
    number("total_flux", "Hz", "Flux")
    number("attenuator_transmission", "", "Filter_transmission")
    number("omega_start", "deg", "Start_angle")
    number("omega_increment", "deg", "Angle_increment")
    if description := plain_text(told.get("Detector", "")):
        found["description"] = Quantity(value=description)
    turned = found.get("omega_increment")
    kind = DatasetKind.ROTATION if turned and turned.value else DatasetKind.STILL
    return DatasetInfo(kind, None, image.shape, image.dtype, (), found)
