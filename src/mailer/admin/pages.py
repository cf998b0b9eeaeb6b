"""Pages for people, rendered on the server."""

from pathlib import Path
from typing import Any

from litestar import Controller, get
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Template
from litestar.template import TemplateConfig
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.paging import Position
from mailer.gateway.breaker import Breaker
from mailer.mailing import store
from mailer.web.assets import asset_url

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 50
"""Mailings on the overview, the newest."""

# Everything comes from this server, and nothing on the page runs.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Pages(Controller):
    """What an operator looks at."""

    path = "/"
    include_in_schema = False
    response_headers = (ResponseHeader(name="Content-Security-Policy", value=POLICY),)

    @get()
    async def overview(
        self, engine: NamedDependency[AsyncEngine], breaker: NamedDependency[Breaker | None]
    ) -> Template:
        """Show the newest mailings and how far they are."""
        async with engine.connect() as connection:
            found = await store.page(connection, Position(SHOWN))
        mailings = [store.to_mailing(row) for row in found.rows]
        facts = {"mailings": mailings, "count": found.count, "breaker": breaker}
        return Template("overview.html", context=facts)


def template_config() -> TemplateConfig[Any]:
    """Return what Litestar needs to render the pages."""

    def prepare(engine: JinjaTemplateEngine) -> None:
        engine.engine.globals["asset_url"] = asset_url

    return TemplateConfig(directory=TEMPLATES, engine=JinjaTemplateEngine, engine_callback=prepare)
