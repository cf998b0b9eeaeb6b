"""Responses to requests that are still running when the worker stops."""

import asyncio

import structlog
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from mailer.errors import UnavailableError

log = structlog.get_logger()

STOPPING_DETAIL = "mailer is stopping and did not finish this request; send it again."


class AnswerAbortedRequests(ASGIMiddleware):
    """Answers 503 to a request that the server cancels because the worker stops.

    A response that has started already stays incomplete, and the server closes the connection.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass a request on; raises `UnavailableError` if it is cancelled before its response."""
        has_started = False

        async def note_start_and_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await next_app(scope, receive, note_start_and_send)
        except asyncio.CancelledError as error:
            log.info("request_aborted", has_started=has_started)
            if not has_started:
                raise UnavailableError(STOPPING_DETAIL) from error
