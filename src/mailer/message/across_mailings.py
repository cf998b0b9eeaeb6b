"""SQL that reads the messages of all mailings, newest first: all, by status, or of one client.

Messages of deleted mailings, which are purged in the background, are left out. While there are such
mailings, all messages are found status by status, as those with one status are: by their mailings.
In the order of the ids, those of a deleted mailing would be read one by one until they are purged.

A page is found in two steps: the ids of its messages, and then their columns. The first step reads
each status in an index of its own, because the indexes have the status before the id. It compares
and sorts rows by all columns of the index. With the id alone, the planner might read the messages
of everybody in the order of their ids until enough of them match.
"""

from collections.abc import Sequence

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import MAX_BIGINT, Cursor, RowPage, fetch_page
from mailer.db.sql import has_id
from mailer.db.tables.mailing import OPEN_MAILING
from mailer.db.tables.message import HAS_OUTCOME, message
from mailer.message.reading import MESSAGE_COLUMNS
from mailer.statuses import MESSAGE_STATUSES, OPEN, OUTCOMES, MessageStatus

MAX_COUNTED_MESSAGES = 10_000
"""Messages that a list counts exactly; if there are more, its count is one more than this."""

# SQL below is formatted: {order} is DESC or ASC, and {exists} is one of the next two conditions.
ANY_DELETED = text("SELECT EXISTS (SELECT FROM mailing WHERE deleted_at IS NOT NULL)")
NOT_OF_DELETED = "mailing_id <> ALL (ARRAY(SELECT id FROM mailing WHERE deleted_at IS NOT NULL))"
NONE_DELETED = "true"
"""As nearly always. Then an index alone has what is counted."""


async def page(
    connection: AsyncConnection, cursor: Cursor, status: MessageStatus | None = None
) -> RowPage:
    """Return a page of the messages of all clients: all, or those with one status."""
    if status is not None:
        ids, count = await _find_with_status(connection, cursor, status)
        return await _fetch(connection, cursor, ids, count)
    if not await connection.scalar(ANY_DELETED):
        ids, count = await _find(connection, cursor, MESSAGE_IDS, COUNT_MESSAGES)
        return await _fetch(connection, cursor, ids, count)
    all_ids, total = list[int](), 0
    for each in MESSAGE_STATUSES:
        ids, count = await _find_with_status(connection, cursor, each)
        all_ids += ids
        total += count
    all_ids.sort(reverse=cursor.after is None)
    first = all_ids[: cursor.limit + 1]
    return await _fetch(connection, cursor, first, min(total, MAX_COUNTED_MESSAGES + 1))


async def page_of_client(
    connection: AsyncConnection,
    cursor: Cursor,
    client_id: int,
    status: MessageStatus | None = None,
) -> RowPage:
    """Return a page of the messages of a client: all, or those with one status."""
    wanted = MESSAGE_STATUSES if status is None else (status,)
    ids, count = await _find(
        connection,
        cursor,
        MESSAGE_IDS_OF_CLIENT,
        COUNT_MESSAGES_OF_CLIENT,
        client_id=client_id,
        outcomes=[name for name in OUTCOMES if name in wanted],
        open=[name for name in OPEN if name in wanted],
    )
    return await _fetch(connection, cursor, ids, count)


async def _find_with_status(
    connection: AsyncConnection, cursor: Cursor, status: MessageStatus
) -> tuple[Sequence[int], int]:
    """Return what `_find` does, of the messages of all clients with one status."""
    return await _find(
        connection,
        cursor,
        MESSAGE_IDS_OF_STATUS.replace("{status}", status),
        COUNT_MESSAGES_OF_STATUS.replace("{status}", status),
    )


async def _find(
    connection: AsyncConnection, cursor: Cursor, ids_sql: str, count_sql: str, **filters: object
) -> tuple[Sequence[int], int]:
    """Return the ids of the messages of a page, and one more; and the number on all pages.

    The number is `MAX_COUNTED_MESSAGES` + 1 when there are more.
    """
    exists = NOT_OF_DELETED if await connection.scalar(ANY_DELETED) else NONE_DELETED
    counted = text(count_sql.format(exists=exists))
    count = await connection.scalar(counted, {"max": MAX_COUNTED_MESSAGES + 1, **filters})
    order = "DESC" if cursor.after is None else "ASC"
    values = {
        "after": cursor.after or 0,
        "before": cursor.before or MAX_BIGINT,
        "limit": cursor.limit + 1,
        **filters,
    }
    ids = text(ids_sql.format(exists=exists, order=order))
    return (await connection.scalars(ids, values)).all(), int(count)


async def _fetch(
    connection: AsyncConnection, cursor: Cursor, ids: Sequence[int], count: int
) -> RowPage:
    """Return the page whose messages have these ids."""
    rows = select(message.c.id).where(has_id(message.c.id, ids))
    return await fetch_page(
        connection, rows, message.c.id, cursor, count=count, page_columns=MESSAGE_COLUMNS
    )


# ---- all ------------------------------------------------------------------------------------

MESSAGE_IDS = """
    SELECT id FROM message WHERE id > :after AND id < :before AND {exists}
    ORDER BY id {order} LIMIT :limit"""
# Ordered, because a scan of the table may meet many deleted rows first.
COUNT_MESSAGES = """
    SELECT count(*) FROM (
        SELECT FROM message WHERE {exists} ORDER BY id DESC LIMIT :max) AS counted"""

# ---- of one client --------------------------------------------------------------------------

# Only mailings that have started have messages.
OPEN_MESSAGES = f"""
    SELECT message.id FROM mailing JOIN message ON message.mailing_id = mailing.id
    WHERE {OPEN_MAILING} AND audience_until IS NOT NULL AND message.client_id = :client_id
        AND message.status = ANY (:open)"""  # noqa: S608  # no user input
"""The messages of a client without an outcome. They are in open mailings, of each of which the
client has at most one, so they are found by their mailings."""
MESSAGE_IDS_OF_CLIENT = f"""
    SELECT id FROM (
        SELECT of_status.id FROM unnest((:outcomes)::text[]) AS wanted (status) CROSS JOIN LATERAL (
            SELECT id FROM message WHERE {HAS_OUTCOME} AND {{exists}}
                AND (client_id, message.status, id) > (:client_id, wanted.status, :after)
                AND (client_id, message.status, id) < (:client_id, wanted.status, :before)
            ORDER BY client_id {{order}}, message.status {{order}}, id {{order}} LIMIT :limit
        ) AS of_status
        UNION ALL {OPEN_MESSAGES}
    ) AS found
    WHERE id > :after AND id < :before
    ORDER BY id {{order}} LIMIT :limit"""  # noqa: S608  # no user input
COUNT_MESSAGES_OF_CLIENT = f"""
    SELECT count(*) FROM (
        SELECT * FROM (
            SELECT id FROM message WHERE client_id = :client_id
                AND status = ANY (:outcomes) AND {HAS_OUTCOME} AND {{exists}}
            UNION ALL {OPEN_MESSAGES}
        ) AS found
        LIMIT :max) AS counted"""  # noqa: S608  # no user input

# ---- with one status ------------------------------------------------------------------------

# `newest` are the mailings whose first messages in the order of the page come first: others cannot
# be on the page. So the cost depends on the number of mailings, not on that of messages. `{status}`
# is also the name of a column of `mailing_counts`.
MESSAGES_OF_MAILING = """
    SELECT id FROM message
    WHERE (mailing_id, status, id) > ({mailing_id}, '{status}', :after)
        AND (mailing_id, status, id) < ({mailing_id}, '{status}', :before)
    ORDER BY mailing_id {order}, status {order}, id {order}"""
MESSAGE_IDS_OF_STATUS = f"""
    WITH newest AS MATERIALIZED (
        SELECT mailing.id
        FROM mailing JOIN mailing_counts ON mailing_id = mailing.id CROSS JOIN LATERAL (
            {MESSAGES_OF_MAILING.replace("{mailing_id}", "mailing.id")} LIMIT 1
        ) AS first_message
        WHERE deleted_at IS NULL AND mailing_counts."{{status}}" > 0
        ORDER BY first_message.id {{order}} LIMIT :limit
    )
    SELECT found.id FROM newest CROSS JOIN LATERAL (
        {MESSAGES_OF_MAILING.replace("{mailing_id}", "newest.id")} LIMIT :limit
    ) AS found
    ORDER BY found.id {{order}} LIMIT :limit"""  # noqa: S608  # no user input
# The messages of a mailing whose retention has begun are being deleted; its counts stay.
COUNT_MESSAGES_OF_STATUS = """
    SELECT least(coalesce(sum(mailing_counts."{status}"), 0)::bigint, (:max)::bigint)
    FROM mailing JOIN mailing_counts ON mailing_id = mailing.id
    WHERE deleted_at IS NULL AND purge_started_at IS NULL"""
