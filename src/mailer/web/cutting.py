"""Requests that are still under way when the process stops: their clients get an answer."""

import asyncio

import structlog
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from mailer.errors import UnavailableError

log = structlog.get_logger()

STOPPING = "mailer is stopping and did not finish this request; send it again."


class CutRequests(ASGIMiddleware):
    """Answers 503 where the server cancels a request.

    An answer that has begun stays incomplete; the server closes its connection.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Let a request through; raises `UnavailableError` when it is cut before its answer."""
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await next_app(scope, receive, send_on)
        except asyncio.CancelledError as error:
            log.info("request_cut", has_begun=has_begun)
            if not has_begun:
                raise UnavailableError(STOPPING) from error
