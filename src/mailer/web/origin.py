"""Refuses what another site has a browser send here on behalf of whoever sits before it."""

from typing import Any
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.exceptions import PermissionDeniedException
from litestar.handlers import BaseRouteHandler

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OURS = frozenset({"same-origin", "none"})
"""What Sec-Fetch-Site says of a page of ours, and of a person who typed the address."""


def same_origin(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let through what changes nothing, what our own pages send, and what no browser sends.

    Browsers tell where a request comes from by Sec-Fetch-Site, and older ones by Origin:
    https://owasp.org/www-community/attacks/csrf, "Fetch Metadata headers".
    """
    if connection.scope.get("method") in SAFE:
        return
    site, origin = connection.headers.get("Sec-Fetch-Site"), connection.headers.get("Origin")
    if site is not None:
        is_ours = site in OURS
    else:
        is_ours = origin is None or urlsplit(origin).netloc == connection.headers.get("Host")
    if not is_ours:
        raise PermissionDeniedException("Another site asked for this.")
