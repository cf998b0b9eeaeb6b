"""The answer 503 to requests while the worker starts: until its database is open."""

from typing import Any

from litestar import Request
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.errors import UnavailableError

STARTING_DETAIL = "mailer is starting; try again in a moment."
ALWAYS_SERVED = ("/health", "/metrics", "/static")
"""Starts of paths that need no database, or report themselves that it is missing."""


class Startup:
    """The state of this worker's startup: done, or the reason why it is not."""

    def __init__(self, why_not_done: str | None = None) -> None:
        self.why_not_done = why_not_done
        """Why the worker cannot work yet, as a sentence; None once it can."""

    def ensure_done(self) -> None:
        """Raise `UnavailableError` with the reason while the worker cannot work yet."""
        if self.why_not_done is not None:
            raise UnavailableError(self.why_not_done)


class StartupGate(ASGIMiddleware):
    """Answers 503 with the reason while the worker waits for its database."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, startup: Startup) -> None:
        self._startup = startup

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass on a request that can be answered now; raises `UnavailableError`."""
        request: Request[Any, Any, Any] = Request(scope)
        if not request.url.path.startswith(ALWAYS_SERVED):
            self._startup.ensure_done()
        await next_app(scope, receive, send)
