"""Pages by key: the cost of a page does not depend on how deep it lies."""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection


class Position(msgspec.Struct, frozen=True):
    """Which page: the newest, or the one just before or just after an id.

    `limit` is the number of rows, 1 to 1,000.
    """

    limit: int
    before: int | None = None
    after: int | None = None


class Slice(msgspec.Struct, frozen=True):
    """The rows of a page, newest first, and whether there are older and newer ones."""

    rows: list[Row[Any]]
    count: int
    has_older: bool
    has_newer: bool


async def fetch_slice(
    connection: AsyncConnection, rows: Select[Any], key: ColumnElement[int], position: Position
) -> Slice:
    """Return the page of `rows` at `position`, `key` being their id."""
    counted = select(func.count()).select_from(rows.order_by(None).subquery())
    count = (await connection.execute(counted)).scalar_one()
    if position.after is not None:
        newer = rows.where(key > position.after).order_by(key.asc())
        found = list(await connection.execute(newer.limit(position.limit + 1)))
        page = found[: position.limit][::-1]
        return Slice(page, count, has_older=bool(page), has_newer=len(found) > len(page))
    older = rows if position.before is None else rows.where(key < position.before)
    found = list(await connection.execute(older.order_by(key.desc()).limit(position.limit + 1)))
    page = found[: position.limit]
    has_newer = position.before is not None and bool(page)
    return Slice(page, count, has_older=len(found) > len(page), has_newer=has_newer)
