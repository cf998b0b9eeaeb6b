"""Counts of clients by segment: the length of client lists and the size of audiences.

A segment is all clients with the same operator code, tag and time zone, the only fields of a
filter. As with the counters of messages, triggers write deltas, and a job merges them every second
into one row for each segment.
"""

from sqlalchemy import ColumnElement, column, func, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import SEGMENT_MERGE_LOCK

ALL_SEGMENT_COUNTS = table(
    "all_segment_counts", *map(column, ("operator_code", "tag", "time_zone", "clients"))
)
"""A view of counts and deltas. A segment may have several rows; their sum is its size."""


async def count(connection: AsyncConnection, *conditions: ColumnElement[bool]) -> int:
    """Return how many clients meet all conditions on `ALL_SEGMENT_COUNTS`."""
    statement = select(func.coalesce(func.sum(ALL_SEGMENT_COUNTS.c.clients), 0)).where(*conditions)
    return int((await connection.execute(statement)).scalar_one())


async def count_by_zone(
    connection: AsyncConnection, *conditions: ColumnElement[bool]
) -> dict[str, int]:
    """Return how many clients meet all conditions on `ALL_SEGMENT_COUNTS`, by time zone."""
    clients = func.sum(ALL_SEGMENT_COUNTS.c.clients)
    time_zone = ALL_SEGMENT_COUNTS.c.time_zone
    statement = (
        select(time_zone, clients).where(*conditions).group_by(time_zone).having(clients > 0)
    )
    return {zone: int(size) for zone, size in await connection.execute(statement)}


# One worker merges at a time; deltas written meanwhile wait for the next merge.
MERGE_LOCK = {"lock": SEGMENT_MERGE_LOCK}
HAS_DELTAS_AND_LOCK = text("""
    SELECT EXISTS (SELECT FROM segment_count_delta) AND pg_try_advisory_xact_lock(:lock)""")
MERGE_SEGMENT_DELTAS = text("""
    WITH deltas AS (
        DELETE FROM segment_count_delta
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM segment_count_delta LIMIT :limit))
        RETURNING *)
    INSERT INTO segment_count (operator_code, tag, time_zone, clients)
    SELECT operator_code, tag, time_zone, sum(clients) FROM deltas
    GROUP BY operator_code, tag, time_zone
    ON CONFLICT (operator_code, tag, time_zone)
        DO UPDATE SET clients = segment_count.clients + excluded.clients
    RETURNING clients""")
DELETE_EMPTY = text("DELETE FROM segment_count WHERE clients = 0")


async def merge_deltas(connection: AsyncConnection, limit: int) -> None:
    """Merge up to `limit` deltas into the counts, unless another worker is merging."""
    if not (await connection.execute(HAS_DELTAS_AND_LOCK, MERGE_LOCK)).scalar_one():
        return
    # only a merge can make a count zero
    if 0 in (await connection.scalars(MERGE_SEGMENT_DELTAS, {"limit": limit})).all():
        await connection.execute(DELETE_EMPTY)
