"""The calendar of mailings: a week or a month, and the clients whom mailings share."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.form import Form
from mailer.admin.render import PageContext
from mailer.clock import database_clock
from mailer.errors import FieldError, InvalidError
from mailer.gateway.channel import Channels
from mailer.mailing.activity import with_holds
from mailer.mailing.calendar import (
    CALENDAR_STATUSES,
    CalendarMailings,
    CalendarView,
    period_of,
    read_mailings,
    step,
)
from mailer.mailing.model import FIRST_MOMENT, LAST_MOMENT
from mailer.mailing.overlap import MAX_PAIRS, count_overlaps, count_pairs, find_pairs
from mailer.validation import Input
from mailer.web.query import read_query

CalendarDay = Annotated[date, Meta(extra={"rule": "must be a date"})]
PATH = "/calendar"
MAX_PER_DAY = 8
"""Most mailings that a day of the calendar names; the others are in the table below it."""


class CalendarQuery(Input, frozen=True, kw_only=True):
    """What the calendar shows. Default: the week of today."""

    view: Annotated[CalendarView, Meta(extra={"rule": "must be week or month"})] = "week"
    date: CalendarDay | UnsetType = UNSET
    overlaps: (
        Annotated[Literal["yes"], Meta(extra={"rule": "must be yes or be left out"})] | UnsetType
    ) = UNSET

    @classmethod
    def broken_rules(cls, values: Mapping[str, Any], at: datetime) -> Iterable[FieldError]:  # noqa: ARG003  # it does not depend on the moment
        """Reject a day that no mailing can have."""
        day = values.get("date")
        if day and not FIRST_MOMENT.date().year < day.year < LAST_MOMENT.date().year:
            yield FieldError("date", "must lie between the years 1970 and 9000")


class Calendar(Controller):
    """The calendar of what is scheduled and running. Days are those of the viewer's time zone."""

    path = PATH

    @get(required_scope="read")
    async def show_calendar(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """Show the mailings of a week or a month, and on demand the clients whom they share."""
        zone = context.viewer.time_zone
        today = database_clock.now().astimezone(ZoneInfo(zone)).date()
        form, status = Form({"date": request.query_params.get("date", "")}), HTTP_200_OK
        try:
            query = read_query(request, CalendarQuery, blank_is_absent=True)
        except InvalidError as error:
            form, status, query = form.with_errors(error), HTTP_400_BAD_REQUEST, CalendarQuery()
        day = today if query.date is UNSET else query.date
        period = period_of(query.view, day, zone)
        async with engine.connect() as connection:
            found = await read_mailings(connection, period)
            mailings = await with_holds(connection, found.mailings, channels)
            has_overlaps = query.overlaps is not UNSET
            pairs = find_pairs(mailings) if has_overlaps else []
            overlaps = await count_overlaps(connection, pairs)
        return await context.render_page(
            "mailings/calendar.html",
            status,
            form=form if form.errors else Form({"date": day.isoformat()}),
            view=query.view,
            day=day,
            today=today,
            previous=step(query.view, day, -1),
            next=step(query.view, day, 1),
            period=period,
            found=CalendarMailings(mailings, found.count),
            by_day=period.by_day(mailings),
            calendar_statuses=CALENDAR_STATUSES,
            max_per_day=MAX_PER_DAY,
            pairs_count=count_pairs(mailings),
            max_pairs=MAX_PAIRS,
            has_overlaps=has_overlaps,
            overlaps=overlaps,
        )
