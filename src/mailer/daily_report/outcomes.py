"""SQL that counts the outcomes of a day by gateway, and the failures by reason and gateway.

Also the messages of which the outcome may still change.
"""

from datetime import datetime

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.sql import add_up, sums, values_of
from mailer.message.counters import GLOBAL_COUNTS
from mailer.statistics.model import GatewayCounts
from mailer.statuses import FAILURES, OUTCOMES, MessageStatus, OutcomeCounts


class FailureCount(msgspec.Struct, frozen=True):
    """Messages that failed with one status and for one reason, or without a reason."""

    status: MessageStatus
    reason: str | None
    messages: int
    gateway: str | None = None
    """Of the last attempt. None if only one gateway was used, or if there was no attempt."""


COUNT_BY_GATEWAY = text(f"""
    SELECT gateway, {sums(GLOBAL_COUNTS)} FROM all_outcome_counts
    WHERE bucket_start >= :start AND bucket_start < :end AND gateway <> ''
    GROUP BY gateway HAVING sum({add_up(OUTCOMES)}) > 0
    ORDER BY gateway""")  # noqa: S608  # inserts our own column names only
FAILURE_COLUMNS = values_of(FAILURES, "{name!r}, {name}")
# A row of the view has a column for each outcome. VALUES turns each column that is a failure into
# a row of its own, with the name of the status.
COUNT_BY_REASON = text(f"""
    SELECT failed.status, nullif(reason, '') AS reason, sum(failed.messages)::bigint AS messages,
        CASE WHEN :names_gateway THEN nullif(gateway, '') END AS gateway
    FROM all_outcome_counts CROSS JOIN LATERAL (VALUES
        {FAILURE_COLUMNS}
    ) AS failed (status, messages)
    WHERE bucket_start >= :start AND bucket_start < :end
    GROUP BY 1, 2, 4 HAVING sum(failed.messages) > 0
    ORDER BY messages DESC, 1, 2, 4""")  # noqa: S608  # likewise


async def count_by_gateway(
    connection: AsyncConnection, start: datetime, end: datetime
) -> list[GatewayCounts]:
    """Return the outcomes and parts of each gateway from `start` to `end`, by name."""
    rows = await connection.execute(COUNT_BY_GATEWAY, {"start": start, "end": end})
    return [
        GatewayCounts(
            row.gateway,
            OutcomeCounts(**{name: max(0, getattr(row, name)) for name in OUTCOMES}),
            max(0, row.parts),
        )
        for row in rows
    ]


# A message that is `sent` has a reason once its receipt is not awaited any more.
COUNT_AWAITING = text("""
    SELECT greatest(0, coalesce(sum(sent), 0))::bigint FROM all_outcome_counts
    WHERE bucket_start >= :start AND bucket_start < :end AND reason = ''""")


async def count_awaiting(connection: AsyncConnection, start: datetime, end: datetime) -> int:
    """Return how many messages accepted from `start` to `end` still await a receipt."""
    values = {"start": start, "end": end}
    return int((await connection.execute(COUNT_AWAITING, values)).scalar_one())


async def count_failures(
    connection: AsyncConnection, start: datetime, end: datetime, *, names_gateway: bool
) -> list[FailureCount]:
    """Return how many messages were not delivered from `start` to `end`, most frequent first.

    With `names_gateway` they are counted by status, reason and gateway, else by status and reason.
    """
    values = {"start": start, "end": end, "names_gateway": names_gateway}
    return [FailureCount(*row) for row in await connection.execute(COUNT_BY_REASON, values)]
