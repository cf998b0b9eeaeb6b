"""Redirects back to the page that a user came from."""

import re
from typing import Any
from urllib.parse import quote, urlsplit

from litestar import Request

from mailer.web.origin import SAFE_METHODS

OWN_PATH = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\]*")
"""A path on this site. Not allowed: `//host`, which leads to another host; a backslash, which
browsers read as a slash; tabs and line ends, which they remove, so that `/<tab>/host` becomes
`//host` (https://url.spec.whatwg.org/#concept-basic-url-parser)."""

MAX_PATH_LENGTH = 2000
"""Maximum length of a path to redirect to, in characters. The longest path of a page is shorter."""


def own_path(path: str) -> str:
    """Return `path` if it is a path on this site, else the path of the overview."""
    return path if len(path) <= MAX_PATH_LENGTH and OWN_PATH.fullmatch(path) else "/"


def redirect_back_url(path: str, request: Request[Any, Any, Any]) -> str:
    """Return the URL of the page at `path`, from which the user is redirected back.

    The URL has the path to redirect to as its parameter `return_path`, unless that is the overview.
    """
    if "HX-Request" in request.headers:  # a script requested a part of the page that is open
        return_path = _path_on_site(request, request.headers.get("HX-Current-URL", ""))
    elif request.method in SAFE_METHODS:
        query = request.url.query
        return_path = f"{request.url.path}?{query}" if query else request.url.path
    else:  # a form was sent: the page of the form
        return_path = referring_path(request)
    if own_path(return_path) == "/":
        return path
    return f"{path}?return_path={quote(return_path, safe='/')}"


def referring_path(request: Request[Any, Any, Any]) -> str:
    """Return the path and the query of the page whose form was sent; `/` if it is not known."""
    return own_path(_path_on_site(request, request.headers.get("Referer", "")))


def _path_on_site(request: Request[Any, Any, Any], url: str) -> str:
    """Return the path and the query of a URL of this site; `/` for any other URL."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "/"
    if parts.netloc != request.headers.get("Host"):
        return "/"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path
