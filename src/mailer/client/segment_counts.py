"""Counts of clients by segment: the length of client lists and the size of audiences.

A segment is all clients with the same operator code, tag and time zone, the only fields of a
filter; lists are no field of a client. A trigger on the clients writes each change as a delta, such
as 1 for a new client. The periodic job `merge_counters` merges the deltas every 2 seconds into one
row for each segment. Of each segment, the clients who have opted out are also counted apart.
"""

from sqlalchemy import ColumnElement, FromClause, column, func, select, table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.engine import SEGMENT_MERGE_LOCK

ALL_SEGMENT_COUNTS = table(
    "all_segment_counts",
    *map(column, ("operator_code", "tag", "time_zone", "clients", "opted_out")),
)
"""A view of the merged counts and of the deltas that are not merged yet.

A segment may have several rows; the sum of their `clients` is its size. The sum of their
`opted_out` is the number of those who have opted out.
"""


def sum_of(
    *, opted_out: bool | None = None, segments: FromClause = ALL_SEGMENT_COUNTS
) -> ColumnElement[int]:
    """Return the number of clients of several rows of `segments`.

    `opted_out` is whether the clients have opted out; None for both. `segments` has the columns of
    `ALL_SEGMENT_COUNTS`.
    """
    counts = segments.c
    match opted_out:
        case None:
            return func.sum(counts.clients)
        case True:
            return func.sum(counts.opted_out)
        case False:
            return func.sum(counts.clients - counts.opted_out)


async def count(
    connection: AsyncConnection,
    *conditions: ColumnElement[bool],
    opted_out: bool | None = None,
    segments: FromClause = ALL_SEGMENT_COUNTS,
) -> int:
    """Return how many clients of `segments` meet all conditions on them; see `sum_of`."""
    clients = sum_of(opted_out=opted_out, segments=segments)
    statement = select(func.coalesce(clients, 0)).select_from(segments).where(*conditions)
    return int((await connection.execute(statement)).scalar_one())


async def count_by_zone(
    connection: AsyncConnection,
    *,
    opted_out: bool | None = None,
    segments: FromClause = ALL_SEGMENT_COUNTS,
) -> dict[str, int]:
    """Return how many clients there are by time zone; as `count`."""
    clients = sum_of(opted_out=opted_out, segments=segments)
    time_zone = segments.c.time_zone
    statement = select(time_zone, clients).group_by(time_zone).having(clients > 0)
    return {zone: int(size) for zone, size in await connection.execute(statement)}


MERGE_LOCK = {"lock": SEGMENT_MERGE_LOCK}
# Returns whether this worker may merge: there are deltas, and no other worker is merging. The lock
# ends with the transaction.
HAS_DELTAS_AND_LOCK = text("""
    SELECT EXISTS (SELECT FROM segment_count_delta) AND pg_try_advisory_xact_lock(:lock)""")
# Deletes up to :limit deltas and adds their sums to the counts; returns the new counts. Deltas that
# are written meanwhile are left for the next merge.
MERGE_SEGMENT_DELTAS = text("""
    WITH deltas AS (
        DELETE FROM segment_count_delta
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM segment_count_delta LIMIT :limit))
        RETURNING *)
    INSERT INTO segment_count (operator_code, tag, time_zone, clients, opted_out)
    SELECT operator_code, tag, time_zone, sum(clients), sum(opted_out) FROM deltas
    GROUP BY operator_code, tag, time_zone
    ON CONFLICT (operator_code, tag, time_zone)
        DO UPDATE SET clients = segment_count.clients + excluded.clients,
            opted_out = segment_count.opted_out + excluded.opted_out
    RETURNING clients""")
DELETE_EMPTY_SEGMENTS = text("DELETE FROM segment_count WHERE clients = 0 AND opted_out = 0")


async def merge_deltas(connection: AsyncConnection, limit: int) -> None:
    """Merge up to `limit` deltas into the counts, unless another worker is merging."""
    if not (await connection.execute(HAS_DELTAS_AND_LOCK, MERGE_LOCK)).scalar_one():
        return
    new_counts = (await connection.scalars(MERGE_SEGMENT_DELTAS, {"limit": limit})).all()
    if 0 in new_counts:
        await connection.execute(DELETE_EMPTY_SEGMENTS)
