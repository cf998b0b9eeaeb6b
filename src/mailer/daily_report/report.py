"""The daily report: outcomes of messages on one day, and counts of mailings active that day.

`mail.py` sends it, `schedule.py` decides when, and `render.py` makes text and HTML of it.
"""

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import ColumnElement, Row, and_, func, literal_column, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.daily_report.outcomes import (
    FailureCount,
    count_awaiting,
    count_by_gateway,
    count_failures,
)
from mailer.db.engine import snapshot
from mailer.db.tables.mailing import ACTIVE_PERIOD, mailing
from mailer.errors import FieldError, InvalidError
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT
from mailer.mailing.store import NOT_DELETED, UNSETTLED, select_mailings, to_mailing
from mailer.message.outcomes import HOUR_SECONDS, count_by_hour
from mailer.statistics.model import Bucket, GatewayCounts
from mailer.statistics.service import counts_from_mailing
from mailer.statistics.store import counts_from_row, sum_columns
from mailer.statuses import DRAFT, OUTCOMES, MailingStatus, MessageCounts, OutcomeCounts

MAX_LISTED = 50
"""Mailings that a report lists; sums include all mailings.

Mail programs cut off mails that are longer than about 100 kB."""


class ReportedMailing(msgspec.Struct, frozen=True):
    """A mailing as listed in a report: by its id and its name, without its text."""

    id: int
    name: str | None
    status: MailingStatus
    datetime_start: datetime
    datetime_end: datetime
    clients_count: int
    messages: MessageCounts


class DailyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a day, with all times in `time_zone`."""

    day: date
    time_zone: str
    as_of: datetime
    """When the counts were read."""
    mailings_count: int
    """Number of mailings that were active on that day."""
    clients_count: int
    """Sum of the sizes of their audiences."""
    messages: MessageCounts
    """Sum of their current counts, not only of that day."""
    mailings: list[ReportedMailing]
    """The newest mailings that were active on that day, at most `MAX_LISTED`."""
    gateways: list[GatewayCounts]
    """Outcomes of that day by gateway, without messages that were never tried."""
    failures: list[FailureCount]
    """Messages of all mailings that failed on that day, largest first: by status and reason, and by
    gateway if several were used."""
    awaiting: int
    """Messages accepted on that day that still await a receipt. An outcome counts for the time at
    which its message was sent, so the outcomes of the day change when their receipts come."""
    hours: list[Bucket]
    """Outcomes of messages by hour; 23 or 25 hours when the clocks change.

    Includes deleted mailings, so that the reports of all days add up to all outcomes."""

    @property
    def busy_hours(self) -> list[Bucket]:
        """Return the hours that have an outcome."""
        return [hour for hour in self.hours if any(msgspec.structs.astuple(hour.messages))]

    @property
    def max_per_hour(self) -> int:
        """Return the outcomes of the hour with most of them: its bar has the full width."""
        return max((hour.messages.total for hour in self.hours), default=0)

    @property
    def outcomes(self) -> OutcomeCounts:
        """Return the outcomes of the whole day."""
        hours = [hour.messages for hour in self.hours]
        return OutcomeCounts(
            **{name: sum(getattr(counts, name) for counts in hours) for name in OUTCOMES}
        )


async def daily_report(engine: AsyncEngine, day: date, time_zone: str) -> DailyReport:
    """Return the report of a day in an IANA time zone.

    Raises `InvalidError` for a day outside the range of mailings' dates.
    """
    zone = ZoneInfo(time_zone)
    start, end = day_bounds(day, zone)
    is_active = was_active(start, end)
    async with snapshot(engine) as connection:
        total = await _get_total(connection, is_active)
        gateways = await count_by_gateway(connection, start, end)
        return DailyReport(
            day=day,
            time_zone=time_zone,
            as_of=total.as_of.astimezone(zone),
            mailings_count=total.mailings,
            clients_count=int(total.clients),
            messages=counts_from_row(total),
            mailings=await _list_mailings(connection, is_active, zone),
            gateways=gateways,
            failures=await count_failures(connection, start, end, names_gateway=len(gateways) > 1),
            awaiting=await count_awaiting(connection, start, end),
            hours=await _list_hours(connection, start, end, zone),
        )


def day_bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the start of a local day and of the next day, in UTC.

    The day is longer or shorter than 24 hours when the clocks change. Raises `InvalidError` for a
    day outside the range of mailings' dates.
    """
    if not FIRST_MOMENT.date() < day < LAST_MOMENT.date():
        raise InvalidError([FieldError("date", "must lie between the years 1970 and 9000")])
    start, end = (
        datetime.combine(midnight, time(), zone).astimezone(UTC)
        for midnight in (day, day + timedelta(days=1))
    )
    return start, end


def was_active(start: datetime, end: datetime) -> ColumnElement[bool]:
    """Return the SQL condition that a mailing was active between two moments.

    A draft is not active. Any other mailing is active from its start until it is settled. That may
    be some time after its end, because its unsent messages are cancelled then. `updated_at` of a
    settled mailing is the time at which it was settled. It is before the start if the mailing was
    cancelled before.

    The two cases are the conditions of two partial indexes, so that the cost depends on the
    mailings that were active, not on all.
    """
    was_settled_later = and_(
        mailing.c.is_settled,
        NOT_DELETED,
        literal_column(ACTIVE_PERIOD).op("&&")(func.tstzrange(start, end)),
        mailing.c.updated_at >= start,
    )
    is_unsettled = and_(UNSETTLED, mailing.c.status != DRAFT, mailing.c.datetime_start < end)
    return or_(is_unsettled, was_settled_later)


async def _get_total(connection: AsyncConnection, is_active: ColumnElement[bool]) -> Row[Any]:
    """Return a row with the time, the number of active mailings, and the sums of their counts."""
    active_mailings = select_mailings().where(is_active).subquery()
    statement = select(
        func.now().label("as_of"),
        func.count().label("mailings"),
        func.coalesce(func.sum(active_mailings.c.clients_count), 0).label("clients"),
        *sum_columns(active_mailings),
    ).select_from(active_mailings)
    return (await connection.execute(statement)).one()


async def _list_mailings(
    connection: AsyncConnection, is_active: ColumnElement[bool], zone: ZoneInfo
) -> list[ReportedMailing]:
    """Return the newest active mailings, at most `MAX_LISTED`."""
    # MATERIALIZED, or PostgreSQL might read all newer mailings, in the order of their ids
    active = select(mailing.c.id).where(is_active).cte("active").prefix_with("MATERIALIZED")
    statement = (
        select_mailings()
        .where(mailing.c.id.in_(select(active.c.id)))
        .order_by(mailing.c.id.desc())
        .limit(MAX_LISTED)
    )
    return [
        ReportedMailing(
            listed.id,
            listed.name,
            listed.status,
            listed.datetime_start.astimezone(zone),
            listed.datetime_end.astimezone(zone),
            listed.clients_count,
            counts_from_mailing(listed),
        )
        for listed in map(to_mailing, await connection.execute(statement))
    ]


async def _list_hours(
    connection: AsyncConnection, start: datetime, end: datetime, zone: ZoneInfo
) -> list[Bucket]:
    """Return the outcomes of messages in each hour between two moments."""
    outcomes_by_hour = await count_by_hour(connection, start, end)
    hour_starts = range(int(start.timestamp()), int(end.timestamp()), HOUR_SECONDS)
    return [
        Bucket(
            datetime.fromtimestamp(hour_start, zone),
            OutcomeCounts.of(**outcomes_by_hour.get(index, {})),
        )
        for index, hour_start in enumerate(hour_starts)
    ]
