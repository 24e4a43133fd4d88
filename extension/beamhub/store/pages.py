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
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    LargeBinary,
    Row,
    Select,
    String,
    case,
    cast,
    collate,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)

from beamhub.errors import Invalid
from beamhub.schemas import Page
from beamhub.store.tables import UTCDateTime

T = TypeVar("T")


def among(
    connection: Connection, column: Column[Any], values: Collection[str] | Collection[int]
) -> ColumnElement[bool]:
    """As `column.in_(values)`, but one parameter however many texts or numbers there are: taking a list of
    names apart into a hundred parameters costs more than looking them up."""
    if len(values) == 1:
        return column == next(iter(values))
    if connection.dialect.name == "postgresql":
        kind = BigInteger if column.type.python_type is int else String
        return column == func.any(literal(list(values), ARRAY(kind)))
    return column.in_(select(func.json_each(json.dumps(list(values))).table_valued("value").c.value))


MAX_LIMIT = 1000
APART = 50  # values that rows are looked for by one by one


def each(column: Column[str], values: Collection[str]) -> list[ColumnElement[bool]]:
    """`column.in_(values)` in parts that exclude each other, for `first`; they are not too many."""
    if len(values) > APART:
        return [column.in_(values)]
    return [column == value for value in sorted(values)]


def containing(connection: Connection, text: str, *columns: Column[str]) -> ColumnElement[bool]:
    """Whether one of the columns has this text somewhere in it, whatever case its letters are in: of all
    alphabets, and alike on both databases.

    No index knows that: the rows are read in the order of the list until a page is full. Where none of
    200,000 rows has it, that takes a quarter of a second to half of one.
    """
    capitals = text.upper()
    return or_(*(_upper(connection, column).contains(capitals, autoescape=True) for column in columns))


def _upper(connection: Connection, column: Column[str]) -> ColumnElement[str]:
    """The column in capitals, as `str.upper` writes them."""
    if connection.dialect.name == "postgresql":  # of its own accord it goes by the language it was set up in
        return func.upper(collate(column, "und-x-icu"))
    # by itself SQLite knows ASCII only, and to ask Python for each row takes longer than all the rest
    beyond_ascii = func.length(column) < func.length(cast(column, LargeBinary))
    return case((beyond_ascii, func.python_upper(column)), else_=func.upper(column))


def unindexed(column: Column[str]) -> ColumnElement[str]:
    """The column, where an index on it would mislead the database, which does not know that another condition
    leaves far fewer rows."""
    return column.concat("")


def first(
    query: Select[Any],
    key: ColumnElement[Any],
    limit: int,
    *,
    descending: bool,
    parts: Sequence[ColumnElement[bool]],
) -> Select[Any]:
    """The first rows of `query` in the order of its `key`, of those that one of these conditions holds for
    (never two of them).

    An index has the rows of one experiment in their order, but not those of several: each part is asked for
    its own first rows, or the database would read and sort all that there are.
    """
    query = query.order_by(key.desc() if descending else key).limit(limit)
    if not parts:
        return query.where(false())
    if len(parts) == 1:
        return query.where(parts[0])
    keys = query.with_only_columns(key)
    return query.where(key.in_(union_all(*(select(keys.where(part).subquery()) for part in parts))))


def paginate(
    connection: Connection,
    query: Select[Any],
    order: Sequence[ColumnElement[Any]],
    convert: Callable[[Row[Any]], T],
    *,
    after: str | None,
    limit: int,
    descending: bool = False,
    parts: Sequence[ColumnElement[bool]] | None = None,
) -> Page[T]:
    """One page of `query`, ordered by the columns of `order` (unique together, selected by the query; where
    it makes groups, what it groups by).

    `after` is the `next` of the page before. With `parts`, which needs an order of one column, only rows that
    one of these conditions holds for: see `first`. Raises Invalid for a cursor that no page of this list has
    given.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid(f"A page has 1 to {MAX_LIMIT} items, not {limit}.", "Ask for fewer, and follow `next`.")
    if after is not None:
        key = tuple_(*order)
        last = tuple_(*(literal(v, c.type) for c, v in zip(order, _decode(after, order), strict=True)))
        query = query.where(key < last if descending else key > last)
    if parts is None:
        ordering = [column.desc() if descending else column.asc() for column in order]
        query = query.order_by(*ordering).limit(limit + 1)
    else:
        query = first(query, order[0], limit + 1, descending=descending, parts=parts)
    rows = connection.execute(query).all()
    more = len(rows) > limit
    rows = rows[:limit]
    cursor = _encode([rows[-1]._mapping[column] for column in order]) if more else None
    return Page[T](items=[convert(row) for row in rows], next=cursor)


def _encode(values: list[Any]) -> str:
    plain = [v.isoformat() if isinstance(v, datetime) else v for v in values]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def _decode(cursor: str, order: Sequence[ColumnElement[Any]]) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(values, list) or len(values) != len(order):
            raise ValueError("another number of keys")
        return [_value(value, column) for value, column in zip(values, order, strict=True)]
    except (ValueError, binascii.Error) as error:
        raise Invalid(
            "This page cursor was not given by this list.", "Start again without a cursor."
        ) from error


def _value(value: Any, column: ColumnElement[Any]) -> Any:
    if isinstance(column.type, UTCDateTime):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is None or moment.tzinfo is None:
            raise ValueError("not a moment")
        return moment
    kind = column.type.python_type
    if type(value) is not kind or (kind is int and abs(value) >= 2**63):
        raise ValueError(f"not a key of {column}")
    return value
