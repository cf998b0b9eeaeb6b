"""The overview: what runs, what comes next, how it goes with the gateway, what became of a day."""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import Live, Sections
from mailer.admin.render import Show
from mailer.clock import database_clock
from mailer.db import processes
from mailer.db.paging import Position
from mailer.gateway.breaker import Breaker
from mailer.gateway.pace import Pace
from mailer.mailing import store
from mailer.mailing.hold import with_hold
from mailer.report import backlog, forecast, lately, progress

RUNNING, NEXT = 20, 5
"""Mailings shown: the newest that run, and the first to start."""
SECTIONS = ("gateway", "backlog", "running", "next", "lately")


async def look(engine: AsyncEngine, breaker: Breaker | None, pace: Pace | None) -> dict[str, Any]:
    """Return what the overview shows, by name."""
    usable = forecast.usable_pace(pace, breaker)
    async with engine.connect() as connection:
        found = await store.page(connection, Position(RUNNING), "running")
        mailings = [with_hold(store.to_mailing(row), breaker) for row in found.rows]
        at_work = await processes.at_work(connection)
        bases = await forecast.read_running(connection, mailings, usable, len(at_work) or 1)
        facts = {
            "running": await progress.of_mailings(connection, mailings),
            "running_count": found.count,
            "next": await store.next_to_start(connection, NEXT),
            "backlog": await backlog.look(connection),
            "most_due": backlog.MOST_DUE,
            "hours": await lately.outcomes(connection, database_clock.now()),
        }
    return facts | {"expected_ends": await forecast.expected_ends(bases)}


class Overview(Controller):
    """What an operator looks at first."""

    path = "/"

    @get(needs="read")
    async def show_overview(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        pace: NamedDependency[Pace | None],
        show: NamedDependency[Show],
    ) -> Response[str]:
        """Show what goes on."""
        return show.page("overview.html", **await look(engine, breaker, pace))

    @get("/live/overview", needs="read", by_itself=True)
    async def watch_overview(
        self,
        engine: NamedDependency[AsyncEngine],
        breaker: NamedDependency[Breaker | None],
        pace: NamedDependency[Pace | None],
        show: NamedDependency[Show],
        live: NamedDependency[Live],
    ) -> ServerSentEvent:
        """Keep the overview up to date."""

        async def sections() -> Sections:
            return show.sections("overview", SECTIONS, **await look(engine, breaker, pace))

        return live.stream(("overview", show.viewer), sections, show.caller)
