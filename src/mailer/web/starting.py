"""What the API and the pages answer until the database is open for the first time."""

from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.errors import UnavailableError

STARTING = "mailer is starting; try again in a moment."
ALWAYS_SERVED = ("/health", "/metrics", "/static")
"""These need no database, or say themselves that it is missing."""


class Startup:
    """What this process waits for before it can work, as a sentence; None once it works."""

    def __init__(self, waits_for: str | None = None) -> None:
        self.waits_for = waits_for

    def ensure_done(self) -> None:
        """Raise `UnavailableError` while the process still waits."""
        if self.waits_for is not None:
            raise UnavailableError(self.waits_for)


class StartupGate(ASGIMiddleware):
    """Answers 503 with the reason while the process waits for its database."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, startup: Startup) -> None:
        self._startup = startup

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Let a request through that can be answered now; raises `UnavailableError`."""
        request: Request[Any, Any, Any] = Request(scope)
        if not request.url.path.startswith(ALWAYS_SERVED):
            self._startup.ensure_done()
        await next_app(scope, receive, send)
