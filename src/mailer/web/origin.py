"""Protection against cross-site request forgery (CSRF)."""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.exceptions import PermissionDeniedException

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ALLOWED_FETCH_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for our own pages, and for a URL that the user typed."""


def check_same_origin(request: Request[Any, Any, Any], *, is_form: bool) -> None:
    """Reject a request that changes something and was triggered by another website.

    Browsers send the origin of a request in Sec-Fetch-Site, older ones in Origin. A request without
    both comes from a program, which may use the API but not the forms of pages (`is_form`). See
    https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html,
    "Fetch Metadata headers". Raises HTTPException 403.
    """
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:
        is_allowed = site in ALLOWED_FETCH_SITES
    elif origin is not None:
        is_allowed = _host_of(origin) == request.headers.get("Host", "")
    else:
        is_allowed = not is_form
    if not is_allowed:
        raise PermissionDeniedException("Blocked: the request came from another website.")


def _host_of(origin: str) -> str | None:
    """Return the host of an origin, with its port; None if it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
