"""The calendar of mailings: days of a week or a month, and the mailings that last on each."""

from calendar import monthrange
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from mailer.db.paging import Cursor
from mailer.mailing import listing, store
from mailer.mailing.model import Mailing
from mailer.mailing.search import MailingFilter
from mailer.statuses import MailingStatus

CalendarView = Literal["week", "month"]
CALENDAR_STATUSES: tuple[MailingStatus, ...] = ("scheduled", "running", "paused")
"""The mailings of the calendar: those that still send, or will."""
MAX_MAILINGS = 200
"""Most mailings of a calendar, those with the latest start."""
DAYS_OF_WEEK = 7


class Period(msgspec.Struct, frozen=True):
    """The whole weeks that a calendar shows, from Monday to Sunday, in a time zone."""

    first: date
    last: date
    time_zone: str

    @property
    def weeks(self) -> list[list[date]]:
        """The days, by week."""
        days = [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]
        return [days[start : start + DAYS_OF_WEEK] for start in range(0, len(days), DAYS_OF_WEEK)]

    def begins(self, day: date) -> datetime:
        """Return the moment at which a day begins."""
        return datetime.combine(day, time(), ZoneInfo(self.time_zone))

    def by_day(self, mailings: Sequence[Mailing]) -> dict[date, list[Mailing]]:
        """Return for each day the mailings that last on it, for a moment at least."""
        days = [day for week in self.weeks for day in week]
        # Python compares moments of one zone by their local time, so all are timestamps
        edges = [self.begins(day).timestamp() for day in (*days, self.last + timedelta(days=1))]
        lasting = [
            (mailing.datetime_start.timestamp(), mailing.datetime_end.timestamp(), mailing)
            for mailing in mailings
        ]
        return {
            day: [mailing for start, end, mailing in lasting if start < ends and end > begins]
            for day, (begins, ends) in zip(days, pairwise(edges), strict=True)
        }


def period_of(view: CalendarView, day: date, time_zone: str) -> Period:
    """Return the week of a day, or the weeks of its month."""
    first = last = day
    if view == "month":
        first = day.replace(day=1)
        last = day.replace(day=monthrange(day.year, day.month)[1])
    first -= timedelta(days=first.weekday())
    last += timedelta(days=DAYS_OF_WEEK - 1 - last.weekday())
    return Period(first, last, time_zone)


def step(view: CalendarView, day: date, direction: Literal[-1, 1]) -> date:
    """Return a day of the previous or the next week or month."""
    if view == "week":
        return day + direction * timedelta(days=DAYS_OF_WEEK)
    edge = day.replace(day=1 if direction < 0 else monthrange(day.year, day.month)[1])
    return edge + direction * timedelta(days=1)


class CalendarMailings(msgspec.Struct, frozen=True):
    """The mailings of a period."""

    mailings: Sequence[Mailing]
    """By their start; `MAX_MAILINGS` at most."""
    count: int
    """How many there are; more than `listing.MAX_COUNTED_MAILINGS` are not counted."""

    @property
    def is_complete(self) -> bool:
        """Whether these are all mailings of the period."""
        return self.count <= len(self.mailings)


async def read_mailings(connection: AsyncConnection, period: Period) -> CalendarMailings:
    """Return the mailings that are scheduled, running or paused, and last in a period."""
    conditions = MailingFilter(
        statuses=CALENDAR_STATUSES,
        ends_after=period.begins(period.first),
        starts_before=period.begins(period.last + timedelta(days=1)),
    )
    page = await listing.page(connection, Cursor(limit=MAX_MAILINGS), conditions, "start")
    mailings = [store.to_mailing(row) for row in page.rows]
    return CalendarMailings(mailings[::-1], page.count)
