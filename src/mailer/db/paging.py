"""Pages by key: the cost of a page does not depend on how deep it lies."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, UnaryExpression, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.operators import desc_op


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


async def fetch_slice(  # noqa: PLR0913  # what a page is made of
    connection: AsyncConnection,
    rows: Select[Any],
    key: ColumnElement[int],
    position: Position,
    *,
    count: int | None = None,
    branches: Sequence[ColumnElement[bool]] = (),
    shown: Sequence[ColumnElement[Any]] = (),
) -> Slice:
    """Return the page of `rows` at `position`, `key` being their id.

    All rows are counted unless their `count` is known. With `branches`, conditions of which every
    row meets exactly one, each branch is read by its own index and the page merged from them. With
    `shown`, columns of the key's table, `rows` are keys alone, which an index may tell, and those
    columns are read of the page's rows only.
    """

    def first(rows: Select[Any], order: UnaryExpression[int]) -> Select[Any]:
        firsts = _merged(rows, order, position.limit + 1, branches)
        if not shown:
            return firsts
        return select(*shown).where(key.in_(firsts.correlate(None))).order_by(order)

    if count is None:
        counted = select(func.count()).select_from(rows.subquery())
        count = (await connection.execute(counted)).scalar_one()
    if count == 0:  # to find nothing may take a walk over everything
        return Slice([], 0, has_older=False, has_newer=False)
    if position.after is not None:
        newer = rows.where(key > position.after)
        found = list(await connection.execute(first(newer, key.asc())))
        page = found[: position.limit][::-1]
        return Slice(page, count, has_older=bool(page), has_newer=len(found) > len(page))
    older = rows if position.before is None else rows.where(key < position.before)
    found = list(await connection.execute(first(older, key.desc())))
    page = found[: position.limit]
    has_newer = position.before is not None and bool(page)
    return Slice(page, count, has_older=len(found) > len(page), has_newer=has_newer)


def _merged(
    rows: Select[Any],
    order: UnaryExpression[int],
    limit: int,
    branches: Sequence[ColumnElement[bool]],
) -> Select[Any]:
    """Return the first `limit` of `rows`, taken from the firsts of each branch."""
    if not branches:
        return rows.order_by(order).limit(limit)
    firsts = (rows.where(branch).order_by(order).limit(limit).subquery() for branch in branches)
    merged = union_all(*(select(first) for first in firsts)).subquery()
    by_id = merged.c.id.desc() if order.modifier is desc_op else merged.c.id.asc()
    return select(merged).order_by(by_id).limit(limit)
