"""How much of each request header is read: work on a header never grows with what a sender puts in.

Headers that are lists are taken apart by the framework, entry by entry, at several microseconds
each; of cookies some values even take time by the square of their length.
"""

from collections.abc import Mapping

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

LONGEST_LIST = 500
"""Bytes of a list that are read, which no browser fills: up to the last entry that is whole."""
LISTS: Mapping[bytes, bytes] = {
    b"accept": b",",
    b"accept-encoding": b",",
    b"accept-language": b",",
    b"content-type": b";",
}
"""Headers that are read as lists, and what stands between entries."""
MOST_COOKIES = 100
LONGEST_COOKIE = 1000
"""Bytes of a cookie that is read: ours are shorter."""


def bounded(app: ASGIApp) -> ASGIApp:
    """Wrap an application: of each header that is a list it sees a bounded part."""

    async def bound(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            scope["headers"] = [(name, _bounded(name, value)) for name, value in scope["headers"]]
        await app(scope, receive, send)

    return bound


def _bounded(name: bytes, value: bytes) -> bytes:
    separator = LISTS.get(name)
    if separator is not None and len(value) > LONGEST_LIST:
        return value[:LONGEST_LIST].rpartition(separator)[0]
    if name == b"cookie":
        return b";".join(_cookies(value))
    return value


def _cookies(value: bytes) -> list[bytes]:
    """Return the cookies that may be ours: no other site's long ones, nor any with escapes."""
    cookies = value.split(b";", MOST_COOKIES)[:MOST_COOKIES]
    return [each for each in cookies if len(each) <= LONGEST_COOKIE and b"\\" not in each]
