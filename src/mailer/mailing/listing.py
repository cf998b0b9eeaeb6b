"""SQL of the lists of mailings: filtered, in one of several orders, page by page.

The cost of a page must not grow with the number of mailings. So each order has an index, which also
has the status, and the filters decide which orders are possible:

- A search or a label is found by the index of words, newest first (`search.py`). Of the mailings
  that it finds, those of another period are skipped. In another order they are all found first, and
  then sorted; so they may be at most `MAX_COUNTED_MAILINGS`.
- A period is read in the order of starts or of ends. The mailings that start in it are next to each
  other in the index of starts. Those that had started before it and last into it are only as many
  as ran at the same time. The order of ends is the mirror image.
- Without them, a page is read in its order, separately for each status.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    DateTime,
    Select,
    Subquery,
    Table,
    any_,
    func,
    literal,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Cursor, RowPage, from_sort_key, to_page
from mailer.db.tables.mailing import mailing, settled_totals
from mailer.errors import FieldError, InvalidError
from mailer.mailing import search
from mailer.mailing.search import MailingFilter
from mailer.mailing.store import NOT_DELETED, UNSETTLED, select_mailings
from mailer.statuses import MAILING_STATUSES

ListOrder = Literal["newest", "start", "end", "audience"]
"""The order of a list: the newest, the latest start or end, or the largest audience first."""

SORT_COLUMNS: Mapping[ListOrder, str] = {
    "start": "datetime_start",
    "end": "datetime_end",
    "audience": "clients_count",
}
"""The column that sorts a list, by order; `newest` is sorted by the id alone."""

MAX_COUNTED_MAILINGS = 1_000
"""Mailings that are counted one by one at most. A count of one more means that there are more."""

SETTLED_TOTALS = {
    "finished": settled_totals.c.finished,
    "cancelled": settled_totals.c.cancelled_mailings,
}
"""Columns with the number of settled mailings, by status. Triggers keep them up to date."""


def possible_orders(conditions: MailingFilter) -> Sequence[ListOrder]:
    """Return the orders in which mailings with these conditions can be listed, the default first.

    In another order, all mailings that match would have to be read. For a search or a label, that
    is done if they are few enough; see `page`.
    """
    if conditions.has_period and not conditions.has_words:
        return ("start", "end")
    return ("newest", "start", "end", "audience")


async def page(
    connection: AsyncConnection,
    position: Cursor,
    conditions: MailingFilter,
    order: ListOrder | None = None,
) -> RowPage:
    """Return a page of the mailings that meet the conditions.

    `order` is one of `possible_orders(conditions)`; None: the first of them. The count of a search,
    a label or a period is at most `MAX_COUNTED_MAILINGS` + 1. Raises `InvalidError` if more of them
    match a search or a label whose order is not `newest`.
    """
    order = order or possible_orders(conditions)[0]
    sort_column = SORT_COLUMNS.get(order)
    total = await count(connection, conditions)
    if total == 0:  # skips the query, which may scan a whole index to find nothing
        return RowPage([], 0, has_older=False, has_newer=False)
    if conditions.has_words and order != "newest" and total > MAX_COUNTED_MAILINGS:
        error = FieldError(
            "sort",
            "is possible for at most 1,000 mailings of a search or a label: narrow it",
        )
        raise InvalidError([error])
    ids = await _find_ids(connection, conditions, order, position)
    is_listed = mailing.c.id == any_(literal(ids, ARRAY(BigInteger)))
    by_id = {row.id: row for row in await connection.execute(select_mailings().where(is_listed))}
    rows = [by_id[mailing_id] for mailing_id in ids if mailing_id in by_id]
    return to_page(rows, position, total, sort_column)


async def count(connection: AsyncConnection, conditions: MailingFilter) -> int:
    """Return the number of mailings that meet the conditions.

    Without a search, a label or a period, only unsettled mailings are counted one by one: the
    number of settled ones is stored. Otherwise at most `MAX_COUNTED_MAILINGS` + 1 are counted.
    """
    if conditions.has_words or conditions.has_period:
        cursor = Cursor(limit=MAX_COUNTED_MAILINGS)
        order = possible_orders(conditions)[0]
        return len(await _find_ids(connection, conditions, order, cursor))
    unsettled, totals = select(func.count()).where(UNSETTLED), SETTLED_TOTALS
    if conditions.statuses:
        unsettled = unsettled.where(mailing.c.status.in_(conditions.statuses))
        totals = {name: totals[name] for name in conditions.statuses if name in totals}
    settled_count = sum(totals.values(), literal(0))
    statement = select(unsettled.scalar_subquery() + settled_count).select_from(settled_totals)
    return int((await connection.execute(statement)).scalar_one())


async def _find_ids(
    connection: AsyncConnection, conditions: MailingFilter, order: ListOrder, position: Cursor
) -> list[int]:
    """Return the ids of a page, and one more if there are more, in the direction of the page."""
    if conditions.has_words and order != "newest":
        all_ids = await search.find(connection, conditions, Cursor(limit=MAX_COUNTED_MAILINGS))
        is_found = mailing.c.id == any_(literal(all_ids, ARRAY(BigInteger)))
        rows = _from_position(_select_keys(mailing, order).where(is_found), order, position)
        return [row.id for row in await connection.execute(_first(rows, position))]
    if conditions.has_words:
        ids = await search.find(connection, conditions, position)  # ascending
        # the mailing whose id is the search may be one more
        return (ids if position.after is not None else ids[::-1])[: position.limit + 1]
    found = await connection.execute(select_ids(conditions, order, position))
    return [row.id for row in found]


def select_ids(conditions: MailingFilter, order: ListOrder, position: Cursor) -> Select[Any]:
    """Return the query for the ids of a page, and for one more; not for a search or a label.

    The first rows over all branches are among the first rows of each branch, so only those are
    read and sorted together.
    """
    branches = [
        _first(_from_position(branch, order, position), position).subquery()
        for branch in _branches(conditions, order)
    ]
    return _first(select(union_all(*map(select, branches)).subquery()), position)


def _first(rows: Select[Any], position: Cursor) -> Select[Any]:
    """Return the first rows of a page, and one more, in the direction of the page."""
    columns = rows.selected_columns.values()
    is_ascending = position.after is not None
    keys = [column.asc() if is_ascending else column.desc() for column in columns]
    return rows.order_by(*keys).limit(position.limit + 1)


def _branches(conditions: MailingFilter, order: ListOrder) -> Iterator[Select[Any]]:
    """Yield queries that have each mailing of a list in exactly one of them."""
    if order == "newest" and not conditions.statuses:
        yield _select_keys(mailing, order).where(NOT_DELETED)  # the primary key has the order
        return
    statuses = conditions.statuses or MAILING_STATUSES
    for status in statuses:
        of_status = _select_keys(mailing, order).where(NOT_DELETED, mailing.c.status == status)
        yield of_status.where(*_is_inside(conditions, order))
    moment = conditions.ends_after if order == "start" else conditions.starts_before
    if moment is not None and conditions.has_period:
        lasting = _select_lasting(moment)
        is_listed = lasting.c.status.in_(statuses)
        yield _select_keys(lasting, order).where(is_listed, lasting.c.datetime_start < moment)


def _select_keys(source: Table | Subquery, order: ListOrder) -> Select[Any]:
    """Return a select of the columns that sort a list: that of its order, if any, and the id."""
    names = [SORT_COLUMNS[order]] if order in SORT_COLUMNS else []
    return select(*(source.c[name] for name in (*names, "id")))


def _is_inside(conditions: MailingFilter, order: ListOrder) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions that a mailing starts in the period, or ends in it: by its order.

    Such a mailing overlaps the period also at its other side, as its end is after its start.
    """
    lower, upper = conditions.ends_after, conditions.starts_before
    start, end = mailing.c.datetime_start, mailing.c.datetime_end
    if lower is not None:
        yield start >= lower if order == "start" else end > lower
    if upper is not None:
        yield start < upper if order == "start" else end <= upper


def _select_lasting(moment: datetime) -> Subquery:
    """Return the mailings between whose start and end a moment is.

    OFFSET 0 keeps the planner from reading another index, in which there may be many more.
    """
    period = func.tstzrange(mailing.c.datetime_start, mailing.c.datetime_end)
    contains = period.bool_op("@>")(literal(moment, DateTime(timezone=True)))
    return select(mailing).where(NOT_DELETED, contains).offset(0).subquery()


def _from_position(rows: Select[Any], order: ListOrder, position: Cursor) -> Select[Any]:
    """Return the rows after a position, in the direction of the page."""
    mailing_id = position.after if position.before is None else position.before
    if mailing_id is None:
        return rows
    columns = rows.selected_columns.values()
    values: list[object] = [mailing_id]
    if order in SORT_COLUMNS:
        is_moment = order != "audience"
        values.insert(0, from_sort_key(position.key or 0, is_moment=is_moment))
    keys = tuple_(*columns)
    place = tuple_(
        *(literal(value, column.type) for value, column in zip(values, columns, strict=True))
    )
    return rows.where(keys > place if position.before is None else keys < place)
