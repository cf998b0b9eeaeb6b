"""What became of messages in the last day, by the hour, over all mailings."""

from datetime import UTC, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.message.outcomes import by_hour
from mailer.report.model import Bucket, OutcomeCounts

HOURS = 24
HOUR = timedelta(hours=1)


async def outcomes(connection: AsyncConnection, now: datetime) -> list[Bucket]:
    """Return what became of messages in each of the last 24 hours, UTC's, and the current one."""
    this_hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    start = this_hour - HOURS * HOUR
    found = await by_hour(connection, start, this_hour + HOUR)
    return [
        Bucket(start + place * HOUR, OutcomeCounts.of(**found.get(place, {})))
        for place in range(HOURS + 1)
    ]
