"""Ways back: where somebody was before they were led to another page."""

import re
from typing import Any
from urllib.parse import quote, urlsplit

from litestar import Request

from mailer.web.origin import SAFE

OWN_PATH = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\]*")
"""A path of ours: `//host` would lead to another host, and browsers leave out tabs and line ends
and take a backslash for a slash (https://url.spec.whatwg.org/#concept-basic-url-parser)."""

LONGEST_PATH = 2000
"""Characters of an address to go back to: the longest of a page, with its filters, is shorter."""


def own_path(back: str) -> str:
    """Return `back` if it is the address of a page of ours, else that of the overview."""
    return back if len(back) <= LONGEST_PATH and OWN_PATH.fullmatch(back) else "/"


def leads_back(path: str, request: Request[Any, Any, Any]) -> str:
    """Return the address of a page that leads back to the one that a request came from."""
    if "HX-Request" in request.headers:
        back = _own(request, request.headers.get("HX-Current-URL", ""))
    elif request.method in SAFE:
        query = request.url.query
        back = f"{request.url.path}?{query}" if query else request.url.path
    else:
        back = _own(request, request.headers.get("Referer", ""))
    return path if own_path(back) == "/" else f"{path}?back={quote(back, safe='/')}"


def _own(request: Request[Any, Any, Any], address: str) -> str:
    """Return the path and the query of an address if it is ours."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    if parts.netloc != request.headers.get("Host"):
        return "/"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
