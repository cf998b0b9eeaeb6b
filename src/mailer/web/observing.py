"""What is seen of every HTTP request: its id, a line in the log, a count and its time."""

import re
import time
from http import HTTPStatus
from uuid import uuid4

import structlog
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

from mailer import metrics

log = structlog.get_logger()

HEADER = "X-Request-ID"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a caller's own id may be; another is not carried on, since logs would hold it."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
API = "/api/"
CLIENT_GONE = 499
"""Counted where a client went away before its request was whole; it never sees a status."""


def observed(app: ASGIApp) -> ASGIApp:
    """Wrap an application: each request gets an id, which its answer and its log lines carry.

    Requests to the API are logged at info, those for pages, pictures and probes at debug. Of what
    was asked for only a path that a route knows is logged, which holds declared words and ids:
    another, and a query, may hold anything.
    """

    async def observe(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        method = str(scope.get("method"))
        began = time.perf_counter()
        request_id = _given_id(scope) or uuid4().hex
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR
        is_gone = False

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableScopeHeaders.from_message(message)[HEADER] = request_id
            await send(message)

        async def receive_on() -> ReceiveMessage:
            nonlocal is_gone
            message = await receive()
            is_gone = message["type"] == "http.disconnect"
            return message

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            counted = method if method in METHODS else "other"
            log.debug("request_received", method=counted)
            try:
                await app(scope, receive_on, send_on)
            finally:
                seconds = time.perf_counter() - began
                if is_gone and status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    status = CLIENT_GONE
                route = scope.get("path_template")
                metrics.request_answered(counted, str(route or "none"), status, seconds)
                level = "info" if scope["path"].startswith(API) else "debug"
                getattr(log, level)(
                    "request_answered",
                    method=counted,
                    path=scope["path"] if route else None,
                    status=status,
                    seconds=round(seconds, 6),
                )

    return observe


def _given_id(scope: Scope) -> str | None:
    given = Headers.from_scope(scope).get(HEADER, "")
    return given if GIVEN_ID.fullmatch(given) else None
