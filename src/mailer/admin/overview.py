"""The overview: what runs, what comes next, how it goes with the gateway, what became of a day."""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import Live, Sections
from mailer.admin.render import Show
from mailer.clock import database_clock
from mailer.db.paging import Position
from mailer.mailing import store
from mailer.report import backlog, lately, progress

RUNNING, NEXT = 20, 5
"""Mailings shown: the newest that run, and the first to start."""
SECTIONS = ("gateway", "backlog", "running", "next", "lately")


async def look(engine: AsyncEngine) -> dict[str, Any]:
    """Return what the overview shows, by name."""
    async with engine.connect() as connection:
        found = await store.page(connection, Position(RUNNING), "running")
        mailings = [store.to_mailing(row) for row in found.rows]
        return {
            "running": await progress.of_mailings(connection, mailings),
            "running_count": found.count,
            "next": await store.next_to_start(connection, NEXT),
            "backlog": await backlog.look(connection),
            "most_due": backlog.MOST_DUE,
            "hours": await lately.outcomes(connection, database_clock.now()),
        }


class Overview(Controller):
    """What an operator looks at first."""

    path = "/"

    @get(needs="read")
    async def show_overview(
        self, engine: NamedDependency[AsyncEngine], show: NamedDependency[Show]
    ) -> Response[str]:
        """Show what goes on."""
        return show.page("overview.html", **await look(engine))

    @get("/live/overview", needs="read", by_itself=True)
    async def watch_overview(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        live: NamedDependency[Live],
    ) -> ServerSentEvent:
        """Keep the overview up to date."""

        async def sections() -> Sections:
            return show.sections("overview", SECTIONS, **await look(engine))

        return live.stream(("overview", show.viewer), sections, show.caller)
