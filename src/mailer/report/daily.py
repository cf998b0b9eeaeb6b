"""The daily report: what became of messages on one day, and where the day's mailings stand."""

from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from sqlalchemy import ColumnElement, Row, and_, func, not_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from mailer.db.schema import OUTCOMES, mailing
from mailer.errors import FieldError, InvalidError
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT, Status
from mailer.mailing.store import ALIVE, select_mailings, to_mailing
from mailer.message.outcomes import by_hour, failures
from mailer.report.chart import COLOURS, HEIGHT, WIDTH
from mailer.report.model import Bucket, MessageCounts, OutcomeCounts, ReasonCount
from mailer.report.snapshot import snapshot
from mailer.report.statistics import ledger_of, message_counts, sums

LISTED = 50
"""Mailings that a report names; all of them are in its sums. Mail programs cut what is longer than
about 100 kB."""
HOUR = 3_600


class ReportedMailing(msgspec.Struct, frozen=True):
    """A mailing as a report shows it: by its id, without what it says."""

    id: int
    status: Status
    datetime_start: datetime
    datetime_end: datetime
    clients_count: int
    messages: MessageCounts


class DailyReport(msgspec.Struct, frozen=True, kw_only=True):
    """A day's report as of `made_at`; every moment in it is on the clock of `time_zone`."""

    day: date
    time_zone: str
    made_at: datetime
    mailings_count: int
    clients_count: int
    messages: MessageCounts
    """The sum of the ledgers of all mailings under way that day, as they stand."""
    mailings: list[ReportedMailing]
    """The newest of them."""
    failures: list[ReasonCount]
    """What was not delivered on that day, and why, the most frequent first: of every mailing."""
    hours: list[Bucket]
    """What became of messages on that day, by the hour: 23 or 25 when the clocks change. Of every
    mailing, also of one that is deleted: the days add up to all outcomes that there were."""

    @property
    def busy_hours(self) -> list[Bucket]:
        """The hours in which anything became of a message."""
        return [hour for hour in self.hours if any(msgspec.structs.astuple(hour.messages))]

    @property
    def outcomes(self) -> OutcomeCounts:
        """What became of messages on that day."""
        hours = [hour.messages for hour in self.hours]
        return OutcomeCounts(
            **{name: sum(getattr(counts, name) for counts in hours) for name in OUTCOMES}
        )


async def daily_report(engine: AsyncEngine, day: date, time_zone: str) -> DailyReport:
    """Report on a day in an IANA time zone.

    Raises `InvalidError` for a day that no mailing can have.
    """
    zone = ZoneInfo(time_zone)
    start, end = bounds(day, zone)
    active = _active(start, end)
    async with snapshot(engine) as connection:
        total = await _total(connection, active)
        return DailyReport(
            day=day,
            time_zone=time_zone,
            made_at=total.made_at.astimezone(zone),
            mailings_count=total.mailings,
            clients_count=int(total.clients),
            messages=message_counts(total),
            mailings=await _mailings(connection, active, zone),
            failures=[ReasonCount(*row) for row in await failures(connection, start, end)],
            hours=await _hours(connection, start, end, zone),
        )


def bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the moments in UTC at which a local day begins and at which the next one does.

    With a change of the clocks it is longer or shorter than 24 hours.
    """
    if not FIRST_MOMENT.date() < day < LAST_MOMENT.date():
        raise InvalidError([FieldError("date", "must lie between the years 1970 and 9000")])
    first, last = (
        datetime.combine(midnight, time(), zone).astimezone(UTC)
        for midnight in (day, day + timedelta(days=1))
    )
    return first, last


def _active(start: datetime, end: datetime) -> ColumnElement[bool]:
    """Return the condition that a mailing was under way between two moments.

    That is until it is through, which may be some time after its end: what it had still to send is
    cancelled then. What is through was last written at that moment.
    """
    return and_(
        ALIVE,
        mailing.c.datetime_start < end,
        or_(not_(mailing.c.is_settled), mailing.c.updated_at >= start),
    )


async def _total(connection: AsyncConnection, active: ColumnElement[bool]) -> Row[Any]:
    shown = select_mailings().where(active).subquery()
    statement = select(
        func.now().label("made_at"),
        func.count().label("mailings"),
        func.coalesce(func.sum(shown.c.clients_count), 0).label("clients"),
        *sums(shown),
    ).select_from(shown)
    return (await connection.execute(statement)).one()


async def _mailings(
    connection: AsyncConnection, active: ColumnElement[bool], zone: ZoneInfo
) -> list[ReportedMailing]:
    statement = select_mailings().where(active).order_by(mailing.c.id.desc()).limit(LISTED)
    return [
        ReportedMailing(
            found.id,
            found.status,
            found.datetime_start.astimezone(zone),
            found.datetime_end.astimezone(zone),
            found.clients_count,
            ledger_of(found),
        )
        for found in map(to_mailing, await connection.execute(statement))
    ]


async def _hours(
    connection: AsyncConnection, start: datetime, end: datetime, zone: ZoneInfo
) -> list[Bucket]:
    """Return what became of messages in each hour between two moments."""
    found = await by_hour(connection, start, end)
    moments = range(int(start.timestamp()), int(end.timestamp()), HOUR)
    return [
        Bucket(datetime.fromtimestamp(at, zone), OutcomeCounts.of(**found.get(place, {})))
        for place, at in enumerate(moments)
    ]


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("mailer.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = "{:,}".format
    templates.filters["moment"] = "{:%Y-%m-%d %H:%M}".format
    templates.filters["hour"] = _hour
    templates.filters["percent"] = _percent
    templates.globals["statuses"] = MessageCounts.__struct_fields__
    templates.globals["colours"] = COLOURS
    templates.globals["chart_size"] = (WIDTH, HEIGHT)
    return templates


def render_text(report: DailyReport) -> str:
    """Return the report as plain text, to be printed or mailed."""
    return _templates().get_template("daily.txt").render(report=report)


def render_html(report: DailyReport, chart_url: str) -> str:
    """Return the report as a page that mail programs show: tables, and no outside host.

    `chart_url` is where the picture of the day is, as it comes with the page.
    """
    return _templates().get_template("daily.html").render(report=report, chart_url=chart_url)


def _hour(start: datetime) -> str:
    """Return when an hour begins; one that the clocks are set back to comes again."""
    return f"{start:%H:%M}{' again' if start.fold else ''}"


def _percent(part: int, whole: int) -> str:
    """Return a share with one decimal, and 100 only of all, 0 only of nothing."""
    if part in (0, whole):
        return f"{100 * part // max(whole, 1)}%"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f}%"
