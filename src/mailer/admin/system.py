"""The system: settings in force, the database, processes at work, the last failures."""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import Live, Sections
from mailer.admin.render import Show
from mailer.db import facts, processes
from mailer.log import recent_failures
from mailer.settings import Settings
from mailer.variables import PREFIX

SECTIONS = ("gateway", "processes", "failures")


async def look(engine: AsyncEngine) -> dict[str, Any]:
    """Return what may change while one looks, by name."""
    async with engine.connect() as connection:
        return {
            "processes": await processes.at_work(connection),
            "failures": recent_failures(),
        }


class System(Controller):
    """What runs here, and how."""

    path = "/"

    @get("/system", needs="admin")
    async def show_system(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        show: NamedDependency[Show],
    ) -> Response[str]:
        """Show what runs here, and how."""
        unless_set = Settings().shown()
        rows = [
            (f"{PREFIX}{name.upper()}", value, value != unless_set[name])
            for name, value in settings.shown().items()
        ]
        async with engine.connect() as connection:
            database = await facts.look(connection)
        return show.page("system.html", settings=rows, database=database, **await look(engine))

    @get("/live/system", needs="admin", by_itself=True)
    async def watch_system(
        self,
        engine: NamedDependency[AsyncEngine],
        show: NamedDependency[Show],
        live: NamedDependency[Live],
    ) -> ServerSentEvent:
        """Keep up to date what may change."""

        async def sections() -> Sections:
            return show.sections("system", SECTIONS, **await look(engine))

        return live.stream(("system", show.viewer), sections, show.caller)
