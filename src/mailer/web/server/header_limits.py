"""Limits of request headers that take long to parse.

Litestar parses headers that are lists entry by entry, at several microseconds each. For some
cookies the time even grows with the square of the length. So long headers would block the event
loop.
"""

from collections.abc import Mapping

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

MAX_LIST_LENGTH = 500
"""Bytes of a list that are used, up to the last complete entry. Browsers send less."""
LIST_HEADERS: Mapping[bytes, bytes] = {
    b"accept": b",",
    b"accept-encoding": b",",
    b"accept-language": b",",
    b"content-type": b";",
}
"""Headers that are lists, and their separators."""
MAX_COOKIES = 100
"""Cookies of a request that are used."""
MAX_COOKIE_LENGTH = 1000
"""Bytes of a cookie. Longer cookies are ignored; ours are shorter."""


def limit_headers(app: ASGIApp) -> ASGIApp:
    """Wrap an application to shorten the headers that are lists, and the cookies."""

    async def shorten_headers(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            scope["headers"] = [(name, _shortened(name, value)) for name, value in scope["headers"]]
        await app(scope, receive, send)

    return shorten_headers


def _shortened(name: bytes, value: bytes) -> bytes:
    """Return the value of a header with at most the allowed number of entries."""
    separator = LIST_HEADERS.get(name)
    if separator is not None and len(value) > MAX_LIST_LENGTH:
        return value[:MAX_LIST_LENGTH].rpartition(separator)[0]
    if name == b"cookie":
        return b";".join(_cookies(value))
    return value


def _cookies(value: bytes) -> list[bytes]:
    """Return the cookies in a Cookie header that may be ours.

    Ours are short and contain no backslash, which makes cookies slow to parse.
    """
    cookies = value.split(b";", MAX_COOKIES)[:MAX_COOKIES]
    return [
        cookie for cookie in cookies if len(cookie) <= MAX_COOKIE_LENGTH and b"\\" not in cookie
    ]
