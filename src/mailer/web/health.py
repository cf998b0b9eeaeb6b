"""Health probes for service managers: whether this worker is alive, and whether it is ready."""

from collections.abc import Callable

from litestar import Router, get
from litestar.di import NamedDependency
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.db.migrate import is_current
from mailer.errors import UnavailableError
from mailer.web.openapi import MONITORING_SECURITY
from mailer.web.startup_gate import Startup


class Health(Struct, frozen=True):
    """The answer to a successful probe. `status` is always "ok": a failed one gets a problem."""

    status: str


class NotMigratedError(UnavailableError):
    """The database has another schema than this program; run `mailer migrate`."""


@get("/live", required_scope="monitoring")
async def live() -> Health:
    """Answer 200 while the worker is running."""
    return Health("ok")


WhyNotReady = Callable[[], str | None]
"""Returns a sentence on why the worker cannot send; None while it can."""


@get("/ready", required_scope="monitoring")
async def ready(
    engine: NamedDependency[AsyncEngine],
    startup: NamedDependency[Startup],
    why_not_ready: NamedDependency[WhyNotReady],
) -> Health:
    """Answer 200 if the worker is ready, and 503 with the reason otherwise.

    A worker is ready if it can reach the database, the schema is up to date, and no loop of the
    dispatcher keeps failing.
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
    return Router(
        "/health", route_handlers=[live, ready], tags=["operation"], security=MONITORING_SECURITY
    )
