"""Protection against cross-site request forgery (CSRF).

The page of another website can make the user's browser send a request to mailer, with the user's
cookie. A request that changes something must therefore come from a page of mailer itself.
"""

from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.exceptions import PermissionDeniedException

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods of requests that change nothing (RFC 9110, section 9.2.1)."""
ALLOWED_FETCH_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site for our own pages, and for a URL that the user typed."""


def check_same_origin(request: Request[Any, Any, Any], *, is_form: bool) -> None:
    """Reject a request that changes something if a page of another website has sent it.

    The header Sec-Fetch-Site says whether a page of the same website sent the request. Older
    browsers send Origin, which names the page's host. A request without both comes from a program,
    which may use the API but no form of a page; `is_form` says which one it is. See
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
    """Return the host and port in an Origin header such as `https://a.example:80`; None if none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
