"""Refuses requests for another host than this machine: DNS that is rebound leads them here.

A page of another site may have its own name point at 127.0.0.1 after it is loaded. Then the browser
takes what listens here for the same site, and only the name it asks for tells:
https://owasp.org/www-community/attacks/DNS_Rebinding
"""

import ipaddress
import re
from http import HTTPStatus

import msgspec
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.web.problems import MEDIA_TYPE, Problem

HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[^:\[\]]{1,253})(?::[0-9]{1,5})?")
MISDIRECTED = Problem(
    "about:blank",
    HTTPStatus.MISDIRECTED_REQUEST.phrase,
    HTTPStatus.MISDIRECTED_REQUEST.value,
    "Without keys and accounts mailer answers to loopback names alone, such as localhost. A proxy"
    " that passes on another name must stand in MAILER_TRUSTED_PROXIES.",
)


def local_only(app: ASGIApp) -> ASGIApp:
    """Wrap an application: a request whose Host is no loopback name or address is refused.

    One without Host, as HTTP/1.0 allows, passes: no browser sends such.
    """
    body = msgspec.json.encode(MISDIRECTED)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
    ]

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or all(
            is_local(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"
        ):
            await app(scope, receive, send)
            return
        status = HTTPStatus.MISDIRECTED_REQUEST
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return look


def is_local(host: str) -> bool:
    """Whether a Host header names this machine: localhost, a name under it, a loopback address."""
    found = HOST.fullmatch(host)
    if found is None:
        return False
    name = found["name"].lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
