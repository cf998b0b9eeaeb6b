"""Responses to OPTIONS."""

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope


async def allow_all(message: Message, scope: Scope) -> None:
    """Set the Allow header of a response to OPTIONS to all methods of the path (RFC 9110, 9.3.7).

    Litestar lists the methods of one handler only, even if several handlers share the path.
    """
    if scope.get("method") != "OPTIONS" or message["type"] != "http.response.start":
        return
    path, headers = scope.get("path_template"), MutableScopeHeaders.from_message(message)
    if message["status"] >= 400:  # noqa: PLR2004  # errors set Allow themselves
        return
    methods = {
        str(method)
        for route in scope["litestar_app"].routes
        if route.path_format == path
        for method in getattr(route, "methods", ())
    }
    if methods:
        headers["Allow"] = ", ".join(sorted(methods))
