"""Datasets and their frames."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from beamhub.client.wire import Wire, quoted
from beamhub.schemas import Dataset, DatasetMove, Page

if TYPE_CHECKING:
    import numpy as np


class Datasets(Wire):
    def datasets(
        self, experiment: str, *, name: str | None = None, limit: int | None = None
    ) -> list[Dataset]:
        """Newest first; with `name`, those that have it in their name or path, in any case."""
        return self._list(Dataset, f"experiments/{quoted(experiment)}/datasets", limit, name=name)

    def dataset_page(
        self, experiment: str, *, name: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[Dataset]:
        """One page of them; `after` is the `next` of the page before."""
        path = f"experiments/{quoted(experiment)}/datasets"
        return self._get(Page[Dataset], path, name=name, after=after, limit=limit)

    def dataset(self, dataset: int) -> Dataset:
        return self._get(Dataset, f"datasets/{dataset}")

    def end_dataset(self, dataset: int) -> Dataset:
        """No more frames will come of it."""
        return self._send(Dataset, "POST", f"datasets/{dataset}/end", None)

    def move_dataset(self, dataset: int, experiment: str, reason: str) -> Dataset:
        """Move a dataset with its files to another experiment of the same instrument."""
        body = DatasetMove(experiment=experiment, reason=reason)
        return self._send(Dataset, "POST", f"datasets/{dataset}/move", body)

    def frame(
        self,
        dataset: int,
        n: int,
        *,
        bin: int = 1,  # noqa: A002
        region: tuple[int, int, int, int] | None = None,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Frame `n` (from 1), rows by columns, in counts; masked pixels have the largest value of the dtype.

        `bin` b takes the maximum of b x b pixels; `region` is (x0, y0, x1, y1) in pixels of the full frame,
        x1 and y1 exclusive.
        """
        import numpy as np

        params: dict[str, Any] = {"bin": bin}
        if region is not None:
            params |= dict(zip(("x0", "y0", "x1", "y1"), region, strict=True))
        answer = self._call("GET", f"datasets/{dataset}/frames/{n}", params=params)
        frame: np.ndarray[Any, np.dtype[Any]] = np.load(io.BytesIO(answer.content), allow_pickle=False)
        return frame

    def frame_png(self, dataset: int, n: int, *, bin: int = 1) -> bytes:  # noqa: A002
        params = {"bin": bin, "format": "png"}
        return self._call("GET", f"datasets/{dataset}/frames/{n}", params=params).content
