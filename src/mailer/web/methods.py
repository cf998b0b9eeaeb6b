"""What OPTIONS says of a path."""

from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope


async def allow_all(message: Message, scope: Scope) -> None:
    """Let an answer to OPTIONS name every method of its path (RFC 9110, 9.3.7).

    Litestar's names one alone where several handlers share a path.
    """
    if scope.get("method") != "OPTIONS" or message["type"] != "http.response.start":
        return
    path, headers = scope.get("path_template"), MutableScopeHeaders.from_message(message)
    if message["status"] >= 400:  # noqa: PLR2004  # a refusal has said already what is allowed
        return
    methods = {
        str(method)
        for route in scope["litestar_app"].routes
        if route.path_format == path
        for method in getattr(route, "methods", ())
    }
    if methods:
        headers["Allow"] = ", ".join(sorted(methods))
