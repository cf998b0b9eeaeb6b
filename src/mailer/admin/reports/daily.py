"""The daily report of any day: as a page, and as the text of its mail."""

from datetime import date, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from litestar import Controller, MediaType, Request, Response, get
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK, HTTP_400_BAD_REQUEST
from msgspec import UNSET, Meta, UnsetType
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.form import Form
from mailer.admin.render import PAGE_HEADERS, PageContext
from mailer.clock import database_clock
from mailer.daily_report.render import bar_widths, render_text
from mailer.daily_report.report import DailyReport, daily_report
from mailer.errors import FieldError, InvalidError
from mailer.settings import Settings
from mailer.validation import Input
from mailer.web.query import read_query

Day = Annotated[date, Meta(extra={"rule": "must be a date"})]


class ReportQuery(Input, frozen=True, kw_only=True):
    """The day of a report. Default: today."""

    date: Day | UnsetType = UNSET


def current_day(settings: Settings) -> date:
    """Return the current day in the time zone of the reports."""
    return database_clock.now().astimezone(ZoneInfo(settings.report_time_zone)).date()


async def read_report(
    engine: AsyncEngine, request: Request[Any, Any, Any], settings: Settings
) -> DailyReport:
    """Return the report of the day in the URL.

    Raises `InvalidError` for a day that has not begun, or that no report can have.
    """
    query = read_query(request, ReportQuery, blank_is_absent=True)
    today = current_day(settings)
    day = today if query.date is UNSET else query.date
    if day > today:
        raise InvalidError([FieldError("date", "must not be in the future")])
    return await daily_report(engine, day, settings.report_time_zone)


class ReportPage(Controller):
    """The daily report. All its times are in the time zone of the setting `report_time_zone`."""

    path = "/reports"

    @get(required_scope="read")
    async def show_report(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        context: NamedDependency[PageContext],
        settings: NamedDependency[Settings],
    ) -> Response[str]:
        """Show the report of the day in the URL, by default of today so far."""
        today = current_day(settings)
        form, report = Form({"date": request.query_params.get("date", "")}), None
        try:
            report = await read_report(engine, request, settings)
        except InvalidError as error:
            form = form.with_errors(error)
        else:
            form = Form({"date": report.day.isoformat()})
        return await context.render_page(
            "reports/daily.html",
            HTTP_400_BAD_REQUEST if report is None else HTTP_200_OK,
            form=form,
            report=report,
            today=today,
            one_day=timedelta(days=1),
            retention_days=settings.retention_days,
            bar_widths=bar_widths,
        )

    @get("/text", required_scope="read")
    async def show_text(
        self,
        request: Request[Any, Any, Any],
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
    ) -> Response[str]:
        """Return the report of the day in the URL as the text that `mailer report` prints."""
        text = render_text(await read_report(engine, request, settings))
        return Response(text, media_type=MediaType.TEXT, headers=PAGE_HEADERS)
