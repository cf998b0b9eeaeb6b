"""The cookie by which a browser shows its session."""

from typing import Any

from litestar import Request
from litestar.datastructures import Cookie

COOKIE = "session"


def shown_by(request: Request[Any, Any, Any]) -> str | None:
    """Return what the cookie of a request shows."""
    return request.cookies.get(_name(request))


def cookie(request: Request[Any, Any, Any], secret: str | None) -> Cookie:
    """Return the cookie that shows a session, or takes it away.

    Behind TLS its name says that it comes by TLS and from this host alone (RFC 6265bis, 4.1.3).
    """
    return Cookie(
        _name(request),
        value=secret or "",
        path="/",
        max_age=None if secret else 0,
        httponly=True,
        samesite="lax",
        secure=is_secure(request),
    )


def _name(request: Request[Any, Any, Any]) -> str:
    return f"__Host-{COOKIE}" if is_secure(request) else COOKIE


def is_secure(request: Request[Any, Any, Any]) -> bool:
    """Whether a request came by TLS, to us or to a trusted proxy."""
    return request.url.scheme == "https"
