"""Log lines and metrics of all HTTP requests, and the id that connects a request's log lines."""

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

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The form of an id that a client may choose. Any other is replaced, because ids are logged."""
LOGGED_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods that are logged and counted under their own names; any other is `other`."""
API_PREFIX = "/api/"
CLIENT_GONE = 499
"""The status in log and metrics if the client closed the connection before its request was
complete. It is never sent. (nginx logs the same number.)"""


def log_requests(app: ASGIApp) -> ASGIApp:
    """Wrap an application to give each request an id, log it and count it.

    The id is in the response and in all log lines of the request. Requests to the API are logged at
    info, all others at debug. A path is logged only if it matches a route, because it then consists
    of fixed words and ids. Queries and other paths may contain anything, and are not logged.
    """

    async def log_request(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await app(scope, receive, send)
            return
        method = _logged_method(scope)
        started_at = time.perf_counter()
        request_id = _id_of_client(scope) or uuid4().hex
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR  # unless a response starts
        is_client_gone = False

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableScopeHeaders.from_message(message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        async def receive_and_note_disconnect() -> ReceiveMessage:
            nonlocal is_client_gone
            message = await receive()
            is_client_gone = message["type"] == "http.disconnect"
            return message

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            log.debug("request_received", method=method)
            try:
                await app(scope, receive_and_note_disconnect, send_with_id)
            finally:
                seconds = time.perf_counter() - started_at
                if is_client_gone and status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    status = CLIENT_GONE
                _record_answer(scope, method, status, seconds)

    return log_request


def _logged_method(scope: Scope) -> str:
    """Return the method of a request, or "other" for an unusual one: a client may send any word."""
    method = str(scope.get("method"))
    return method if method in LOGGED_METHODS else "other"


def _record_answer(scope: Scope, method: str, status: int, seconds: float) -> None:
    """Count and log the answer to a request."""
    route = scope.get("path_template")
    metrics.http_request_answered(method, str(route or "none"), status, seconds)
    level = "info" if scope["path"].startswith(API_PREFIX) else "debug"
    getattr(log, level)(
        "request_answered",
        method=method,
        path=scope["path"] if route else None,
        status=status,
        seconds=round(seconds, 6),
    )


def _id_of_client(scope: Scope) -> str | None:
    """Return the request id that the client has chosen; None without one in the right form."""
    header = Headers.from_scope(scope).get(REQUEST_ID_HEADER, "")
    return header if REQUEST_ID_PATTERN.fullmatch(header) else None
