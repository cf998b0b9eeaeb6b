"""What a request names as its host: it must be a name, and this machine where nobody is asked.

A page of another site may have its own name point at 127.0.0.1 after it is loaded. Then the browser
takes what listens here for the same site, and only the name it asks for tells:
https://owasp.org/www-community/attacks/DNS_Rebinding
"""

import re
from http import HTTPStatus

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.settings import is_loopback
from mailer.web.problems import Problem, plain, problem

HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
)
"""As much of RFC 3986, section 3.2, as names and addresses of the network are made of."""
HIGHEST_PORT = 65_535
UNNAMED = problem(
    HTTPStatus.BAD_REQUEST, "Host must be one name or address, and a port if need be."
)
UNREADABLE = problem(HTTPStatus.BAD_REQUEST, "The query must be UTF-8.")
MISDIRECTED = problem(
    HTTPStatus.MISDIRECTED_REQUEST,
    "Without keys and accounts mailer answers to loopback names alone, such as localhost. A proxy"
    " that passes on another name must stand in MAILER_TRUSTED_PROXIES.",
)


def addressed(app: ASGIApp) -> ASGIApp:
    """Wrap an application: a request is refused whose address nobody could read.

    That is one whose Host names nothing, or several, or is missing from HTTP/1.1 (RFC 9112, section
    3.2), or whose query is no text. HTTP/1.0 without Host is for the address that it came to.
    """

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            hosts = _hosts(scope)
            if not hosts and scope["http_version"] == "1.0":
                scope["headers"] = [*scope["headers"], (b"host", _reached(scope))]
            elif len(hosts) != 1 or _parsed(hosts[0]) is None:
                await _refuse(send, UNNAMED)
                return
            if not _is_text(scope["query_string"]):
                await _refuse(send, UNREADABLE)
                return
        await app(scope, receive, send)

    return look


def local_only(app: ASGIApp) -> ASGIApp:
    """Wrap an application: a request whose Host is no loopback name or address is refused."""

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and not all(map(is_local, _hosts(scope))):
            await _refuse(send, MISDIRECTED)
            return
        await app(scope, receive, send)

    return look


def _hosts(scope: Scope) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]


def _reached(scope: Scope) -> bytes:
    """Return the address that a request came to, as a Host names it."""
    address, port = scope.get("server") or ("", None)
    if port is None:  # no address of a network
        return b"localhost"
    return (f"[{address}]:{port}" if ":" in address else f"{address}:{port}").encode()


def _is_text(query: bytes) -> bool:
    try:
        query.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _refuse(send: Send, refusal: Problem) -> None:
    headers, body = plain(refusal)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _parsed(host: str) -> re.Match[str] | None:
    """Return the name and the port in a Host header; None if it does not have this form."""
    found = HOST.fullmatch(host)
    return None if found is None or int(found["port"] or 0) > HIGHEST_PORT else found


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost, a name under it, a loopback address."""
    found = _parsed(host)
    if found is None:
        return False
    name = found["name"].lower()
    return name.endswith(".localhost") or is_loopback(name.strip("[]"))  # RFC 6761, section 6.3
