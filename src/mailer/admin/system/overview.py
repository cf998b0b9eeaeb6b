"""The overview: gateway, backlog, running and upcoming mailings, outcomes of the last 24 hours."""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.clock import database_clock
from mailer.db.paging import Cursor
from mailer.forecast import service as forecast
from mailer.gateway.channel import Channels
from mailer.gateway_control.service import list_gateways
from mailer.mailing import listing, store
from mailer.mailing.activity import with_holds
from mailer.mailing.search import MailingFilter
from mailer.statistics import backlog, progress
from mailer.statistics import service as statistics

MAX_RUNNING, MAX_UPCOMING = 20, 5
"""Maximum number of mailings to show: the newest running ones, and the next ones to start."""
SECTIONS = ("gateway", "backlog", "running", "upcoming", "last-day")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""


async def read_overview(engine: AsyncEngine, channels: Channels) -> dict[str, Any]:
    """Return the template variables of the overview."""
    async with engine.connect() as connection:
        is_running = MailingFilter(statuses=("running",))
        page = await listing.page(connection, Cursor(MAX_RUNNING), is_running)
        mailings = await with_holds(
            connection, [store.to_mailing(row) for row in page.rows], channels
        )
        forecast_bases = await forecast.read_current(connection, mailings, channels)
        variables = {
            "running": await progress.get_progress(connection, mailings),
            "running_count": page.count,
            "upcoming": await store.list_upcoming(connection, MAX_UPCOMING),
            "backlog": await backlog.get_backlog(connection),
            "max_counted_due": backlog.MAX_COUNTED_DUE,
            "hours": await statistics.get_outcomes_last_24_hours(connection, database_clock.now()),
        }
    with_counts = await list_gateways(engine, channels)
    return variables | {
        "forecasts": {
            mailing.id: await forecast.compute(basis)
            for mailing, basis in zip(mailings, forecast_bases, strict=True)
        },
        "drops": [gateway for gateway in with_counts if gateway.delivery_drop],
    }


class Overview(Controller):
    """The overview page."""

    path = "/"

    @get(required_scope="read")
    async def show_overview(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """Show the overview."""
        return await context.render_page("overview.html", **await read_overview(engine, channels))

    @get("/live/overview", required_scope="read", is_polled=True)
    async def watch_overview(
        self,
        engine: NamedDependency[AsyncEngine],
        channels: NamedDependency[Channels],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
    ) -> ServerSentEvent:
        """Stream the sections of the overview whenever they change."""

        async def sections() -> Sections:
            variables = await read_overview(engine, channels)
            return await context.render_sections("overview", SECTIONS, **variables)

        return live.stream(("overview", context.viewer), sections, context.quota_key)
