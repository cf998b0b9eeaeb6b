"""What is seen of every HTTP request: its id, a line in the log, a count and its time."""

import re
import time
from uuid import uuid4

import structlog
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from mailer import metrics

log = structlog.get_logger()

HEADER = "X-Request-ID"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a caller's own id may be; another is not carried on, since logs would hold it."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
API = "/api/"


def observed(app: ASGIApp) -> ASGIApp:
    """Wrap an application: each request gets an id, which its answer and its log lines carry.

    Requests to the API are logged at info, those for pages, pictures and probes at debug. A path
    is logged and a query is not: it may hold a phone.
    """

    async def observe(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        method = str(scope.get("method"))
        began = time.perf_counter()
        request_id = _given_id(scope) or uuid4().hex
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableScopeHeaders.from_message(message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            asked = {"method": method, "path": scope["path"]}
            log.debug("request_received", **asked)
            try:
                await app(scope, receive, send_on)
            finally:
                seconds = time.perf_counter() - began
                counted = method if method in METHODS else "other"
                metrics.request_answered(counted, _route(scope), status, seconds)
                level = "info" if scope["path"].startswith(API) else "debug"
                answered = {"status": status, "seconds": round(seconds, 6)}
                getattr(log, level)("request_answered", **asked, **answered)

    return observe


def _given_id(scope: Scope) -> str | None:
    given = Headers.from_scope(scope).get(HEADER, "")
    return given if GIVEN_ID.fullmatch(given) else None


def _route(scope: Scope) -> str:
    """Return the route that answered, as it is declared, and never what somebody made up."""
    return str(scope.get("path_template") or "none")
