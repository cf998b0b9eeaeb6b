"""Validation of the Host header; without authentication it must be a loopback name.

This protects against DNS rebinding: https://owasp.org/www-community/attacks/DNS_Rebinding. A
malicious website can make its own name resolve to 127.0.0.1 after its page has loaded. The page's
scripts can then call a mailer on the user's machine, because the browser takes it for that website.
Only the Host header, which still has the website's name, shows the difference.
"""

import re
from http import HTTPStatus

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.urls import MAX_PORT, is_loopback
from mailer.web.problems import Problem, problem, to_response

HOST_PATTERN = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
)
"""A Host header with a host name or an IP address: the part of RFC 3986, section 3.2, in use."""
# the problems with which requests are refused
INVALID_HOST = problem(
    HTTPStatus.BAD_REQUEST, "Host must be one name or address, with an optional port."
)
INVALID_QUERY = problem(HTTPStatus.BAD_REQUEST, "The query must be UTF-8.")
MISDIRECTED = problem(
    HTTPStatus.MISDIRECTED_REQUEST,
    "With MAILER_AUTH=none mailer accepts only loopback names as Host, such as localhost. A proxy"
    " that passes on another name must be listed in MAILER_TRUSTED_PROXIES.",
)


def validate_host(app: ASGIApp) -> ASGIApp:
    """Wrap an application to reject requests with an invalid Host or a query that is not UTF-8.

    Host must be present once and be valid (RFC 9112, section 3.2). A request in HTTP/1.0 may have
    none; it gets the server's own address as its Host.
    """

    async def validate(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            hosts = _hosts(scope)
            if not hosts and scope["http_version"] == "1.0":
                scope["headers"] = [*scope["headers"], (b"host", _server_address(scope))]
            elif len(hosts) != 1 or _parse(hosts[0]) is None:
                await _refuse(send, INVALID_HOST)
                return
            if not _is_utf8(scope["query_string"]):
                await _refuse(send, INVALID_QUERY)
                return
        await app(scope, receive, send)

    return validate


def require_loopback_host(app: ASGIApp) -> ASGIApp:
    """Wrap an application to reject requests whose Host is not a loopback name or address."""

    async def require(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and not all(map(is_loopback_host, _hosts(scope))):
            await _refuse(send, MISDIRECTED)
            return
        await app(scope, receive, send)

    return require


def _hosts(scope: Scope) -> list[str]:
    """Return the values of all Host headers of a request."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]


def _server_address(scope: Scope) -> bytes:
    """Return the server's address and port in the form of a Host header."""
    address, port = scope.get("server") or ("", None)
    if port is None:  # not a network address, such as a Unix socket
        return b"localhost"
    return (f"[{address}]:{port}" if ":" in address else f"{address}:{port}").encode()


def _is_utf8(query: bytes) -> bool:
    try:
        query.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _refuse(send: Send, refusal: Problem) -> None:
    """Respond with a problem, without calling the application."""
    headers, body = to_response(refusal)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _parse(host: str) -> re.Match[str] | None:
    """Match the name and the port in a Host header; None if the header is invalid."""
    match = HOST_PATTERN.fullmatch(host)
    return None if match is None or int(match["port"] or 0) > MAX_PORT else match


def is_loopback_host(host: str) -> bool:
    """Return whether a Host header is localhost, a name under it, or a loopback address."""
    match = _parse(host)
    if match is None:
        return False
    name = match["name"].lower()
    return name.endswith(".localhost") or is_loopback(name.strip("[]"))  # RFC 6761, section 6.3
