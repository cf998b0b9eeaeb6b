"""Whether this process lives, and whether it can work."""

from collections.abc import Callable

from litestar import Router, get
from litestar.di import NamedDependency
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.migrate import is_current
from mailer.errors import UnavailableError
from mailer.web.openapi import IF_SET
from mailer.web.starting import Startup


class Health(Struct, frozen=True):
    """A word on how it goes."""

    status: str


class NotMigratedError(UnavailableError):
    """The database has another schema than this program; run `mailer migrate`."""


@get("/live", needs="monitoring")
async def live() -> Health:
    """Answer as long as the process does."""
    return Health("ok")


WhyNotReady = Callable[[], str | None]
"""What tells why the process cannot send, as a sentence; None while it can."""


@get("/ready", needs="monitoring")
async def ready(
    engine: NamedDependency[AsyncEngine],
    startup: NamedDependency[Startup],
    why_not_ready: NamedDependency[WhyNotReady],
) -> Health:
    """Answer 200 when the process can work, else 503 with the reason.

    It can when the database can be reached and has the newest schema, and no loop of the dispatcher
    keeps failing.
    """
    startup.ensure_done()
    async with engine.connect() as connection:
        if not await is_current(connection):
            raise NotMigratedError
    if reason := why_not_ready():
        raise UnavailableError(reason)
    return Health("ok")


def health_router() -> Router:
    """Return the routes under /health."""
    return Router("/health", route_handlers=[live, ready], tags=["operation"], security=IF_SET)
