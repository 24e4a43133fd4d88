"""NXmx files by their names. `beamhub.frames.nxmx` and `nxmx_frames` read them, with large libraries, of
which a process that only takes files in has no need."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from beamhub.frames.format import Contents, Frames, Part

MASTER = re.compile(r"(?P<name>.+?)(?:_master\.h5|(?:_master)?\.nxs)")


class Nxmx:
    """Datasets of a master `<name>_master.h5` or `<name>.nxs` and the data files, `.h5`, that it names."""

    name = "nxmx"

    def part(self, path: PurePosixPath) -> Part | None:
        is_master = MASTER.fullmatch(path.name) is not None
        return (
            Part(self.name, str(path) if is_master else None) if is_master or path.suffix == ".h5" else None
        )

    def title(self, dataset: PurePosixPath) -> str | None:
        match = MASTER.fullmatch(dataset.name)
        return match["name"] if match else None

    def look(self, path: Path, root: Path) -> Contents:
        from beamhub.frames import nxmx

        if self.title(PurePosixPath(path.name)) is None:
            return Contents(None, nxmx.inspect_data_file(path, root).frames)
        info = nxmx.inspect_master(path, root)
        own = [file.link for file in info.files if file.name == path.name]  # it holds frames itself
        return Contents(info, nxmx.inspect_data_file(path, root, own[0]).frames if own else None)

    def frames(self, dataset: Path, root: Path, first: int | None = None) -> Frames:  # noqa: ARG002
        from beamhub.frames.nxmx_frames import NxmxFrames

        return NxmxFrames(dataset, root)
