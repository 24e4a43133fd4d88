"""Keyset pages: each page is found by the key of the last row before it, so that lists may grow meanwhile."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    String,
    func,
    literal,
    select,
    tuple_,
)

from beamhub.errors import Invalid
from beamhub.schemas import Page
from beamhub.store.tables import UTCDateTime

T = TypeVar("T")


def among(connection: Connection, column: Column[Any], values: Collection[str]) -> ColumnElement[bool]:
    """As `column.in_(values)`, but one parameter however many texts there are: taking a list of names apart
    into a hundred parameters costs more than looking them up."""
    if connection.dialect.name == "postgresql":
        return column == func.any(literal(list(values), ARRAY(String)))
    return column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value").c.value))


MAX_LIMIT = 1000


def paginate(
    connection: Connection,
    query: Select[Any],
    order: Sequence[Column[Any]],
    convert: Callable[[Row[Any]], T],
    *,
    after: str | None,
    limit: int,
    descending: bool = False,
) -> Page[T]:
    """One page of `query`, ordered by the columns of `order` (unique together, selected by the query).

    `after` is the `next` of the page before. Raises Invalid for a cursor that no page of this list has given.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid(f"A page has 1 to {MAX_LIMIT} items, not {limit}.", "Ask for fewer, and follow `next`.")
    if after is not None:
        key = tuple_(*order)
        last = tuple_(*(literal(v, c.type) for c, v in zip(order, _decode(after, order), strict=True)))
        query = query.where(key < last if descending else key > last)
    ordering = [column.desc() if descending else column.asc() for column in order]
    rows = connection.execute(query.order_by(*ordering).limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    cursor = _encode([rows[-1]._mapping[column] for column in order]) if more else None
    return Page[T](items=[convert(row) for row in rows], next=cursor)


def _encode(values: list[Any]) -> str:
    plain = [v.isoformat() if isinstance(v, datetime) else v for v in values]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def _decode(cursor: str, order: Sequence[Column[Any]]) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(order):
            raise ValueError("another number of keys")
        return [_value(value, column) for value, column in zip(values, order, strict=True)]
    except (ValueError, binascii.Error) as error:
        raise Invalid(
            "This page cursor was not given by this list.", "Start again without a cursor."
        ) from error


def _value(value: Any, column: Column[Any]) -> Any:
    if isinstance(column.type, UTCDateTime):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is None or moment.tzinfo is None:
            raise ValueError("not a moment")
        return moment
    kind = column.type.python_type
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise ValueError(f"not a key of {column.name}")
    return value
