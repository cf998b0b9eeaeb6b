"""Cookies for sessions and pending sign-ins: HttpOnly, SameSite=Lax, and Secure behind TLS."""

from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import Cookie

SESSION_COOKIE = "session"
"""The short name of the session cookie; its full name is longer, see `_name`."""


class CookieKind(msgspec.Struct, frozen=True):
    """The attributes that differ between our cookies. `name` is the short name."""

    name: str
    path: str = "/"
    max_age: int | None = None
    """Seconds; None: until the browser is closed."""


SESSION = CookieKind(SESSION_COOKIE)
"""The cookie that identifies the session of a user who has signed in."""


def read_cookie(request: Request[Any, Any, Any], kind: CookieKind = SESSION) -> str | None:
    """Return the secret in a request's cookie of this kind; None if there is no such cookie."""
    return request.cookies.get(_name(request, kind))


def create_cookie(
    request: Request[Any, Any, Any], secret: str | None, kind: CookieKind = SESSION
) -> Cookie:
    """Return a cookie that holds `secret`, or that deletes the cookie if `secret` is None."""
    return Cookie(
        _name(request, kind),
        value=secret or "",
        path=kind.path,
        max_age=kind.max_age if secret else 0,
        httponly=True,
        samesite="lax",
        secure=_is_secure(request),
    )


def _name(request: Request[Any, Any, Any], kind: CookieKind) -> str:
    """Return the full name of a cookie.

    It ends with the fingerprint of the database: browsers send a cookie to all ports of a host, so
    that two mailers on one host would overwrite each other's cookies. Behind TLS it has the prefix
    `__Host-`, or `__Secure-` if the cookie is for one path only: browsers then refuse the cookie
    from an insecure page (RFC 6265bis, 4.1.3).
    """
    fingerprint = request.app.state.database_fingerprint
    name = f"{kind.name}-{fingerprint}" if fingerprint else kind.name
    if not _is_secure(request):
        return name
    return f"{'__Host-' if kind.path == '/' else '__Secure-'}{name}"


def _is_secure(request: Request[Any, Any, Any]) -> bool:
    """Return whether a request came over TLS, to mailer or to a trusted proxy."""
    return request.url.scheme == "https"
