"""Counts of the outcomes of all messages, by time; they outlive their mailings.

The daily report and the overview page show them. The counts are kept for every quarter of an hour,
because in every time zone a day begins on one. The view `all_outcome_counts` has the counts and
their deltas that are not merged yet. A quarter may have several rows, which readers add up.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import sums, values_of
from mailer.statuses import FAILURES, OUTCOMES, MessageStatus

HOUR_SECONDS = 3_600

# Hours are counted from :start, not from full hours, because a local day may start at half past.
BY_HOUR = text(f"""
    SELECT (extract(epoch FROM bucket_start - :start)::bigint / {HOUR_SECONDS})::int AS hour_number,
        {sums(OUTCOMES)}
    FROM all_outcome_counts WHERE bucket_start >= :start AND bucket_start < :end
    GROUP BY hour_number""")  # noqa: S608  # inserts our own column names only
COUNTED_FAILURES = values_of(FAILURES, "{name!r}, {name}")
# A row of the view has a column for each outcome. VALUES turns each column that is a failure into
# a row of its own, with the name of the status.
COUNT_FAILURES = text(f"""
    SELECT failed.status, nullif(reason, '') AS reason, sum(failed.messages)::bigint AS messages
    FROM all_outcome_counts CROSS JOIN LATERAL (VALUES
        {COUNTED_FAILURES}
    ) AS failed (status, messages)
    WHERE bucket_start >= :start AND bucket_start < :end
    GROUP BY failed.status, reason HAVING sum(failed.messages) > 0
    ORDER BY messages DESC, status, reason""")  # noqa: S608  # likewise


async def count_by_hour(
    connection: AsyncConnection, start: datetime, end: datetime
) -> Mapping[int, dict[str, int]]:
    """Return the counts from `start` to `end` by status, for each hour that has any.

    The key is the number of the hour since `start`, from 0.
    """
    rows = await connection.execute(BY_HOUR, {"start": start, "end": end})
    return {row.hour_number: {name: _clamp(row, name) for name in OUTCOMES} for row in rows}


def _clamp(row: Row[Any], name: str) -> int:
    """Return the count of an outcome in a row, at least 0 even if counts are wrong."""
    return max(0, int(getattr(row, name)))


async def count_failures(
    connection: AsyncConnection, start: datetime, end: datetime
) -> list[tuple[MessageStatus, str | None, int]]:
    """Return how many messages were not delivered from `start` to `end`, and why.

    Each entry is a status, a reason and the number of messages with both; most frequent first.
    """
    rows = await connection.execute(COUNT_FAILURES, {"start": start, "end": end})
    return [(row.status, row.reason, row.messages) for row in rows]
