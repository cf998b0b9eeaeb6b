"""Redirects back to the page that a user came from."""

import re
from typing import Any
from urllib.parse import quote, urlsplit

from litestar import Request

from mailer.web.origin import SAFE_METHODS

OWN_PATH = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\]*")
"""A path on this site. `//host` would lead to another host. Browsers remove tabs and line ends, and
read a backslash as a slash (https://url.spec.whatwg.org/#concept-basic-url-parser)."""

MAX_PATH_LENGTH = 2000
"""Maximum length of a path to redirect to, in characters. The longest path of a page is shorter."""


def own_path(path: str) -> str:
    """Return `path` if it is a path on this site, else the path of the overview."""
    return path if len(path) <= MAX_PATH_LENGTH and OWN_PATH.fullmatch(path) else "/"


def redirect_back_url(path: str, request: Request[Any, Any, Any]) -> str:
    """Return the URL of the page at `path`, with the path of the page that a request came from."""
    if "HX-Request" in request.headers:
        return_path = _path_on_site(request, request.headers.get("HX-Current-URL", ""))
    elif request.method in SAFE_METHODS:
        query = request.url.query
        return_path = f"{request.url.path}?{query}" if query else request.url.path
    else:
        return_path = _path_on_site(request, request.headers.get("Referer", ""))
    if own_path(return_path) == "/":
        return path
    return f"{path}?return_path={quote(return_path, safe='/')}"


def _path_on_site(request: Request[Any, Any, Any], url: str) -> str:
    """Return the path and the query of a URL of this site; `/` for any other URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "/"
    if parts.netloc != request.headers.get("Host"):
        return "/"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
