"""What became of messages in the last day, by the hour, over all mailings."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.schema import OUTCOMES
from mailer.report.model import Bucket, OutcomeCounts

HOURS = 24
HOUR = 3_600

# Of every mailing that moved since then its own seconds alone are read, by the key of the tallies:
# seconds of ten digits, which are in the order of time.
LATELY = text("""
    WITH active AS MATERIALIZED (
        SELECT id FROM mailing
        WHERE NOT is_settled AND deleted_at IS NULL AND datetime_start < now()
        UNION ALL SELECT id FROM mailing
        WHERE is_settled AND NOT is_emptied AND deleted_at IS NULL AND updated_at >= :since)
    SELECT key::bigint / 3600 * 3600 AS at, sum(delivered)::bigint AS delivered,
        sum(undelivered)::bigint AS undelivered, sum("unknown")::bigint AS "unknown",
        sum(cancelled)::bigint AS cancelled
    FROM active CROSS JOIN LATERAL (
        SELECT * FROM tally WHERE mailing_id = active.id AND dimension = 'second' AND key >= :first
        UNION ALL SELECT * FROM tally_move
        WHERE mailing_id = active.id AND dimension = 'second' AND key >= :first) AS moved
    GROUP BY 1""")


async def outcomes(connection: AsyncConnection, now: datetime) -> list[Bucket]:
    """Return what became of messages in each of the last 24 hours and the one that goes on.

    Hours are UTC's. Of a mailing that took days a whole hour may be counted where it begins.
    """
    this_hour = int(now.timestamp()) // HOUR * HOUR
    first = this_hour - HOURS * HOUR
    since = datetime.fromtimestamp(first, UTC)
    found = await connection.execute(LATELY, {"since": since, "first": str(first)})
    hours = {row.at: row for row in found}
    return [
        Bucket(
            since + timedelta(seconds=at - first),
            OutcomeCounts.of(
                # what is taken back may be counted in another hour than it was given: none owes
                **{name: max(0, getattr(hours[at], name)) for name in OUTCOMES if at in hours}
            ),
        )
        for at in range(first, this_hour + 1, HOUR)
    ]
