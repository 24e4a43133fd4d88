"""Routes of datasets and their frames."""

from __future__ import annotations

import asyncio
from typing import Literal, Self

from pydantic import Field, model_validator

from beamhub.api.routes import Call, Content, Paging, route
from beamhub.schemas import BigInt, Dataset, DatasetMove, DatasetState, Line, Page, Request


class FrameQuery(Request):
    bin: int = Field(1, ge=1, le=64, description="take the maximum of bin x bin pixels")
    x0: int | None = Field(None, ge=0, description="region in pixels of the full frame: first column")
    y0: int | None = Field(None, ge=0, description="first row")
    x1: int | None = Field(None, ge=1, description="column after the last")
    y1: int | None = Field(None, ge=1, description="row after the last")
    format: Literal["npy", "png"] = "npy"

    @model_validator(mode="after")
    def _whole_region(self) -> Self:
        region = (self.x0, self.y0, self.x1, self.y1)
        if None in region and region != (None,) * 4:
            raise ValueError("a region needs all of x0, y0, x1, y1")
        return self

    @property
    def region(self) -> tuple[int, int, int, int] | None:
        if self.x0 is None or self.y0 is None or self.x1 is None or self.y1 is None:
            return None
        return self.x0, self.y0, self.x1, self.y1


class DatasetQuery(Paging):
    name: Line | None = Field(
        None, description="only those that have this in their name or path, in any case"
    )


@route("GET", "experiments/{experiment}/datasets")
async def list_datasets(call: Call, experiment: str, query: DatasetQuery) -> Page[Dataset]:
    """An experiment's datasets, newest first."""
    return await call.service.datasets.list(call.principal, experiment, **query.model_dump())


@route("GET", "datasets/{dataset}")
async def get_dataset(call: Call, dataset: BigInt) -> Dataset:
    """A dataset: how many frames can be read now, and the NeXus metadata with units."""
    return await call.service.datasets.get(call.principal, dataset)


@route("GET", "datasets/{dataset}/frames/{n}", media=("application/x-npy", "image/png"))
async def get_frame(call: Call, dataset: BigInt, n: BigInt, query: FrameQuery) -> Content:
    """Frame n (from 1) as an array of counts in NumPy's .npy format, rows by columns; masked pixels have the
    largest value of its type. Or as a picture."""
    found = await call.service.datasets.get(call.principal, dataset)
    array = await call.service.datasets.frame(call.principal, dataset, n, bin=query.bin, region=query.region)
    from beamhub.frames import picture  # numpy, which an ingest process does without

    # a frame never changes once its file is published; one that is still written may begin anew
    headers = {"Cache-Control": f"private, max-age={10 if found.state is DatasetState.RECEIVING else 3600}"}
    if query.format == "png":
        return Content(await asyncio.to_thread(picture.to_png, array), "image/png", headers)
    return Content(await asyncio.to_thread(picture.to_npy, array), "application/x-npy", headers)


@route("POST", "datasets/{dataset}/end", status=200)
async def end_dataset(call: Call, dataset: BigInt) -> Dataset:
    """Say that no more frames will come of a dataset (staff): what waits for its end goes on now."""
    return await call.service.datasets.end(call.principal, dataset)


@route("POST", "datasets/{dataset}/move", status=200)
async def move_dataset(call: Call, dataset: BigInt, body: DatasetMove) -> Dataset:
    """Move a dataset with its files to another experiment of the same instrument (staff)."""
    return await call.service.moves.move(call.principal, dataset, body.experiment, body.reason)
