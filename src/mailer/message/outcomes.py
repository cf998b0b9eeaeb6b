"""Outcomes of all messages by the time at which they happened; they outlive their mailings.

Days begin at a quarter of an hour in every time zone, so that outcomes are counted by that. What is
not merged yet stands among the moves of the tallies.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import OUTCOMES
from mailer.message.model import Status

HOUR = 3_600
NAMES = ", ".join(f'"{name}"' for name in OUTCOMES)
SUMS = ", ".join(f'sum("{name}")::bigint AS "{name}"' for name in OUTCOMES)
# Only a move of an outcome has a quarter of an hour in its key, and then a reason or nothing.
QUARTER = """
    CASE WHEN dimension = 'outcome' THEN to_timestamp(split_part(key, ' ', 1)::bigint) END"""
REASON = "nullif(substr(key, strpos(key, ' ') + 1), '')"
COUNTED = f"""(
    SELECT quarter_start, reason, {NAMES} FROM outcome_count
    UNION ALL
    SELECT {QUARTER}, {REASON}, {NAMES} FROM tally_move WHERE dimension = 'outcome') AS counted"""  # noqa: S608  # our own columns

BY_HOUR = text(f"""
    SELECT (extract(epoch FROM quarter_start - :start)::bigint / {HOUR})::int AS place, {SUMS}
    FROM {COUNTED} WHERE quarter_start >= :start AND quarter_start < :end GROUP BY place""")  # noqa: S608  # likewise
FAILURES = text(f"""
    SELECT failed.status, reason, sum(failed.messages)::bigint AS messages
    FROM {COUNTED} CROSS JOIN LATERAL (VALUES
        ('undelivered', undelivered), ('unknown', "unknown"), ('cancelled', cancelled)
    ) AS failed (status, messages)
    WHERE quarter_start >= :start AND quarter_start < :end
    GROUP BY failed.status, reason HAVING sum(failed.messages) > 0
    ORDER BY messages DESC, status, reason""")  # noqa: S608  # likewise


async def by_hour(
    connection: AsyncConnection, start: datetime, end: datetime
) -> Mapping[int, dict[str, int]]:
    """Return the outcomes from `start` to `end` by status, for each hour since `start` with any."""
    found = await connection.execute(BY_HOUR, {"start": start, "end": end})
    return {row.place: {name: _count(row, name) for name in OUTCOMES} for row in found}


def _count(row: Row[Any], name: str) -> int:
    # A correction may land in another bucket than the original, so clamp at zero. (Mailings older
    # than this table have reasons by the day alone.)
    return max(0, int(getattr(row, name)))


async def failures(
    connection: AsyncConnection, start: datetime, end: datetime
) -> list[tuple[Status, str | None, int]]:
    """Return what was not delivered from `start` to `end`, the most frequent first.

    Each is a status, a reason and how many messages have both.
    """
    found = await connection.execute(FAILURES, {"start": start, "end": end})
    return [(row.status, row.reason, row.messages) for row in found]
