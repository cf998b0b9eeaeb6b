"""Outcomes of messages of all mailings in the last 24 hours, by hour."""

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.message.outcomes import count_by_hour
from mailer.report.model import Bucket, OutcomeCounts

HOURS = 24
HOUR = timedelta(hours=1)


async def get_outcomes(connection: AsyncConnection, now: datetime) -> list[Bucket]:
    """Return the outcomes in each of the last 24 full hours and in the current hour, in UTC."""
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start = this_hour - HOURS * HOUR
    outcomes_by_hour = await count_by_hour(connection, start, this_hour + HOUR)
    return [
        Bucket(start + index * HOUR, OutcomeCounts.of(**outcomes_by_hour.get(index, {})))
        for index in range(HOURS + 1)
    ]
