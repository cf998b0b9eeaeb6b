"""Pages of lists, by keyset pagination: a page is the rows before or after an id.

The cost of a page does not depend on its position in the list, as it does with OFFSET.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    UnaryExpression,
    asc,
    desc,
    func,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

Order = Callable[[ColumnElement[int]], UnaryExpression[int]]
"""SQLAlchemy's function `asc` or `desc`."""

MAX_BIGINT = 2**63 - 1
"""Largest bigint of PostgreSQL; above any id."""


class Cursor(msgspec.Struct, frozen=True):
    """Position of a page: the newest rows, or the rows next to an id.

    A page has at most `limit` rows, 1 to 1,000. With `before` it has the next older rows, of ids
    smaller than `before`. With `after` it has the next newer rows, of ids greater than `after`. At
    most one of the two is given; without both the page has the newest rows.

    In a list that another column sorts, ids are not enough: `key` is the `sort_key` of the row
    `before` or `after`. "Older" rows are then those that follow in the list.
    """

    limit: int
    before: int | None = None
    after: int | None = None
    key: int | None = None


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def sort_key(value: datetime | int) -> int:
    """Return the value of a column as the number that stands for it in URLs.

    It is exact: a moment becomes the microseconds since 1970.
    """
    return value if isinstance(value, int) else (value - EPOCH) // MICROSECOND


def from_sort_key(key: int, *, is_moment: bool) -> datetime | int:
    """Return the value of a column for which a number stands in a URL."""
    return EPOCH + key * MICROSECOND if is_moment else key


class RowPage(msgspec.Struct, frozen=True):
    """Rows of a page, newest first. `count` is the number of rows on all pages."""

    rows: list[Row[Any]]
    count: int
    has_older: bool
    has_newer: bool
    sort_column: str | None = None
    """The column that sorts the rows, the largest value first; None: they are the newest first."""

    def older_position(self) -> dict[str, int] | None:
        """Return the position of the page with the next older rows, as parameters of a URL."""
        if not self.has_older:
            return None
        return {"before": self.rows[-1].id, **self._key_of(self.rows[-1])}

    def newer_position(self) -> dict[str, int] | None:
        """Return the position of the page with the next newer rows, as parameters of a URL."""
        if not self.has_newer:
            return None
        return {"after": self.rows[0].id, **self._key_of(self.rows[0])}

    def _key_of(self, row: Row[Any]) -> dict[str, int]:
        if self.sort_column is None:
            return {}
        return {"key": sort_key(getattr(row, self.sort_column))}


POSITION_PARAMETERS = frozenset({"before", "after", "key"})
"""Parameters of a URL that hold the position of a page."""


async def fetch_page(  # noqa: PLR0913  # each parameter is a part of the query
    connection: AsyncConnection,
    rows: Select[Any],
    key: ColumnElement[int],
    cursor: Cursor,
    *,
    count: int | None = None,
    branches: Sequence[ColumnElement[bool]] = (),
    page_columns: Sequence[ColumnElement[Any]] = (),
) -> RowPage:
    """Return the page of `rows` at `cursor`; `key` is the column of their ids.

    `count` is the number of all rows; when it is None they are counted here.

    `branches` are conditions of which every row meets exactly one. Each branch is read by its own
    index, and the page is merged from the rows of all branches.

    `page_columns` are columns of the table of `key`. With them, `rows` must select the keys alone:
    these are found in an index, and the columns are read for the rows of the page only.
    """

    def select_page(rows: Select[Any], order: Order) -> Select[Any]:
        """Return the query for the first rows in an order; one more row shows if others follow."""
        first_rows = _select_first(rows, key, order, cursor.limit + 1, branches)
        if not page_columns:
            return first_rows
        # correlate(None): the inner query reads the table of `key` itself, not the outer row
        return select(*page_columns).where(key.in_(first_rows.correlate(None))).order_by(order(key))

    if count is None:
        count_rows = select(func.count()).select_from(rows.subquery())
        count = (await connection.execute(count_rows)).scalar_one()
    if count == 0:  # skips the query, which may scan a whole index to find nothing
        return RowPage([], 0, has_older=False, has_newer=False)
    if cursor.after is not None:
        newer = rows.where(key > cursor.after)
        fetched = list(await connection.execute(select_page(newer, asc)))
    else:
        older = rows if cursor.before is None else rows.where(key < cursor.before)
        fetched = list(await connection.execute(select_page(older, desc)))
    return to_page(fetched, cursor, count)


def to_page(
    fetched: list[Row[Any]], cursor: Cursor, count: int, sort_column: str | None = None
) -> RowPage:
    """Return the page of the rows that were fetched at `cursor`: its own, and one more if there is.

    The rows are in the order of the list, or in the opposite one if the cursor has `after`.
    """
    page = fetched[: cursor.limit]
    has_more = len(fetched) > len(page)
    if cursor.after is not None:
        # the row `after` itself is older than the page; a row over the limit is newer
        return RowPage(page[::-1], count, bool(page), has_more, sort_column)
    has_newer = cursor.before is not None and bool(page)  # the row `before` itself
    return RowPage(page, count, has_more, has_newer, sort_column)


def _select_first(
    rows: Select[Any],
    key: ColumnElement[int],
    order: Order,
    limit: int,
    branches: Sequence[ColumnElement[bool]],
) -> Select[Any]:
    """Return a query for the first `limit` rows.

    The first rows over all branches are among the first rows of each branch, so only those are
    read and sorted together.
    """
    if not branches:
        return rows.order_by(order(key)).limit(limit)
    first_of_branches = (
        rows.where(branch).order_by(order(key)).limit(limit).subquery() for branch in branches
    )
    merged = union_all(*(select(first_rows) for first_rows in first_of_branches)).subquery()
    return select(merged).order_by(order(merged.c.id)).limit(limit)
