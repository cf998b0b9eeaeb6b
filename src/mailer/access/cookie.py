"""Cookies by which a browser shows who it is, here alone and to no script."""

from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import Cookie

COOKIE = "session"


class Purpose(msgspec.Struct, frozen=True):
    """What a cookie is for: its name, the path it is sent to, and its seconds of life.

    Without them it ends with the browser.
    """

    name: str
    path: str = "/"
    age: int | None = None


SESSION = Purpose(COOKIE)


def shown_by(request: Request[Any, Any, Any], purpose: Purpose = SESSION) -> str | None:
    """Return what a cookie of a request shows."""
    return request.cookies.get(_name(request, purpose))


def cookie(
    request: Request[Any, Any, Any], secret: str | None, purpose: Purpose = SESSION
) -> Cookie:
    """Return the cookie that shows a secret, or takes it away."""
    return Cookie(
        _name(request, purpose),
        value=secret or "",
        path=purpose.path,
        max_age=purpose.age if secret else 0,
        httponly=True,
        samesite="lax",
        secure=_is_secure(request),
    )


def _name(request: Request[Any, Any, Any], purpose: Purpose) -> str:
    """Return the name of a cookie, which behind TLS says that it came by TLS.

    Of one for all paths it says also that it is from this host alone (RFC 6265bis, 4.1.3). It ends
    with the mark of the database that knows the secret: browsers send the cookies of a host to all
    its ports, and two instances there would overwrite each other's.
    """
    mark = request.app.state.database_mark
    name = f"{purpose.name}-{mark}" if mark else purpose.name
    if not _is_secure(request):
        return name
    return f"{'__Host-' if purpose.path == '/' else '__Secure-'}{name}"


def _is_secure(request: Request[Any, Any, Any]) -> bool:
    """Whether a request came by TLS, to us or to a trusted proxy."""
    return request.url.scheme == "https"
