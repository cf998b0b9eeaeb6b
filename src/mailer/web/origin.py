"""Refuses what another site has a browser send here on behalf of whoever sits before it."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.exceptions import PermissionDeniedException

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OURS = frozenset({"same-origin", "none"})
"""What Sec-Fetch-Site says of a page of ours, and of a person who typed the address."""


def refuse_other_sites(request: Request[Any, Any, Any], *, is_form: bool) -> None:
    """Let through what changes nothing, and what our own pages send.

    Browsers tell where a request comes from by Sec-Fetch-Site, and older ones by Origin: what says
    neither is sent by a program, to which the API is open but no form of a page (`is_form`).
    https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html,
    "Fetch Metadata headers". Raises HTTPException 403.
    """
    if request.method in SAFE:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_ours = site in OURS
    elif origin is not None:
        is_ours = _host_of(origin) == request.headers.get("Host", "")
    else:
        is_ours = not is_form
    if not is_ours:
        raise PermissionDeniedException("Another site asked for this.")


def _host_of(origin: str) -> str | None:
    """Return the host that an origin names; None of what names none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
