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

from mailer.db.sql import sums
from mailer.statuses import OUTCOMES

HOUR_SECONDS = 3_600

# Hours are counted from :start, not from full hours, because a local day may start at half past.
BY_HOUR = text(f"""
    SELECT (extract(epoch FROM bucket_start - :start)::bigint / {HOUR_SECONDS})::int AS hour_number,
        {sums(OUTCOMES)}
    FROM all_outcome_counts WHERE bucket_start >= :start AND bucket_start < :end
    GROUP BY hour_number""")  # noqa: S608  # inserts our own column names only


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
