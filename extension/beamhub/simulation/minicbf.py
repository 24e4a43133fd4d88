"""The files of a DECTRIS PILATUS: one miniCBF a frame, packed by byte offsets."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beamhub.simulation.acquisition import GAP, Acquisition

COUNT_CUTOFF = 1_048_500  # counts; a PILATUS counts to 2²⁰
PADDING = 4095  # bytes, as CBFlib leaves them behind the image


def write_frame(path: Path, scan: Acquisition, index: int, image: NDArray[Any], period: float) -> None:
    """Write a frame.

    Args:
        path: where to.
        index: number (from 0) of the frame.
        image: its counts; what they are in masked pixels doesn't matter.
        period: seconds from frame to frame.
    """
    from fabio.compression import compByteOffset  # an EIGER needs none of it

    counts = np.minimum(image.astype(np.int64), COUNT_CUTOFF).astype(np.int32)
    counts[scan.mask != 0] = -2
    counts[scan.mask & GAP != 0] = -1
    packed = compByteOffset(counts)
    rows, columns = counts.shape
    lines = [
        "###CBF: VERSION 1.5, beamhub simulation",
        "",
        f"data_{path.name.strip('.').partition('.')[0]}",
        "",
        '_array_data.header_convention "PILATUS_1.2"',
        "_array_data.header_contents",
        ";",
        *(f"# {line}" for line in _header(scan, index, period)),
        ";",
        "",
        "_array_data.data",
        ";",
        "--CIF-BINARY-FORMAT-SECTION--",
        "Content-Type: application/octet-stream;",
        '     conversions="x-CBF_BYTE_OFFSET"',
        "Content-Transfer-Encoding: BINARY",
        f"X-Binary-Size: {len(packed)}",
        "X-Binary-ID: 1",
        'X-Binary-Element-Type: "signed 32-bit integer"',
        "X-Binary-Element-Byte-Order: LITTLE_ENDIAN",
        f"Content-MD5: {base64.b64encode(hashlib.md5(packed, usedforsecurity=False).digest()).decode()}",
        f"X-Binary-Number-of-Elements: {rows * columns}",
        f"X-Binary-Size-Fastest-Dimension: {columns}",
        f"X-Binary-Size-Second-Dimension: {rows}",
        f"X-Binary-Size-Padding: {PADDING}",
        "",
        "",
    ]
    with path.open("wb") as file:
        file.write("\r\n".join(lines).encode())
        file.write(b"\x0c\x1a\x04\xd5" + packed + bytes(PADDING))
        file.write(b"\r\n--CIF-BINARY-FORMAT-SECTION----\r\n;\r\n")


def _header(scan: Acquisition, index: int, period: float) -> list[str]:
    detector, (fast, slow) = scan.detector, scan.beam_centre
    width = 0.0 if scan.grid else scan.width
    return [
        f"Detector: {detector.name}, S/N 00-0000 (simulated)",
        datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3],
        f"Pixel_size {detector.pixel:.6g} m x {detector.pixel:.6g} m",
        f"Silicon sensor, thickness {detector.sensor:.6f} m",
        f"Exposure_time {scan.exposure:.7f} s",
        f"Exposure_period {period:.7f} s",
        f"Count_cutoff {min(scan.saturation, COUNT_CUTOFF)} counts",
        f"Threshold_setting: {scan.energy * 500:.0f} eV",
        f"Wavelength {scan.wavelength:.6f} A",
        f"Detector_distance {scan.distance:.6f} m",
        f"Beam_xy ({fast:.2f}, {slow:.2f}) pixels",
        "Filter_transmission 1.0000",
        f"Start_angle {scan.angles[index]:.4f} deg.",
        f"Angle_increment {width:.4f} deg.",
    ]
