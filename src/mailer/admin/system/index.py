"""The system page: gateway, database, active workers, recent failures, settings."""

from typing import Any

from litestar import Controller, Response, get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.admin.live import LiveUpdates, Sections
from mailer.admin.render import PageContext
from mailer.db import database_info, workers
from mailer.log import recent_failures
from mailer.notice import recipients
from mailer.settings import Settings
from mailer.variables import PREFIX

SECTIONS = ("gateway", "notices", "workers", "failures")
"""The sections that are updated live: the names of their templates, and their ids in the HTML."""


async def read_system(engine: AsyncEngine, settings: Settings) -> dict[str, Any]:
    """Return the template variables of the sections that change while the page is open."""
    async with engine.connect() as connection:
        return {
            "workers": await workers.active_workers(connection),
            "failures": recent_failures(),
            "notices": await recipients.summarize(connection),
            "can_mail": settings.smtp_url is not None,
        }


class System(Controller):
    """The system page, for admins."""

    path = "/"

    @get("/system", required_scope="admin")
    async def show_system(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
    ) -> Response[str]:
        """Show the system page."""
        defaults = Settings().redacted()
        rows = [  # name of the environment variable, value, and whether it is not the default
            (f"{PREFIX}{name.upper()}", value, value != defaults[name])
            for name, value in settings.redacted().items()
        ]
        async with engine.connect() as connection:
            database = await database_info.get_database_info(connection)
        return await context.render_page(
            "system.html", settings=rows, database=database, **await read_system(engine, settings)
        )

    @get("/live/system", required_scope="admin", is_polled=True)
    async def watch_system(
        self,
        engine: NamedDependency[AsyncEngine],
        settings: NamedDependency[Settings],
        context: NamedDependency[PageContext],
        live: NamedDependency[LiveUpdates],
    ) -> ServerSentEvent:
        """Stream the changing sections whenever they change."""

        async def sections() -> Sections:
            variables = await read_system(engine, settings)
            return await context.render_sections("system", SECTIONS, **variables)

        return live.stream(("system", context.viewer), sections, context.quota_key)
