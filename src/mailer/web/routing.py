"""Rules for paths and methods that Litestar lacks: one spelling of an id, and the Allow header."""

from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.exceptions import NotFoundException
from litestar.middleware import ASGIMiddleware
from litestar.status_codes import HTTP_400_BAD_REQUEST
from litestar.types import ASGIApp, Message, Receive, Scope, Send


class PathIds(ASGIMiddleware):
    """Answers 404 to ids in a path such as `+1`, `001`, `1_0`, or with digits of other scripts.

    Litestar parses ids with Python's `int`, which accepts all of these. One object would have many
    URLs in logs and proxies.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass a request on; raises HTTPException 404 for an id that is spelled in another way."""
        values: dict[str, object] = dict(scope["path_params"])
        # for example `/clients/{client_id}` and `/clients/001`
        template_parts = filter(None, scope["path_template"].split("/"))
        path_parts = filter(None, scope["path"].split("/"))
        # not strict: a last parameter of the type `path` may have several parts
        for template_part, path_part in zip(template_parts, path_parts, strict=False):
            is_parameter = template_part.startswith("{")
            number = values.get(template_part[1:-1]) if is_parameter else None
            if isinstance(number, int) and path_part != str(number):
                raise NotFoundException
        await next_app(scope, receive, send)


async def set_allow_header(message: Message, scope: Scope) -> None:
    """Set the Allow header of a response to OPTIONS to all methods of the path (RFC 9110, 9.3.7).

    Litestar lists the methods of one handler only, even if several handlers have the same path.
    `message` is the start of the response or a part of its body.
    """
    if scope.get("method") != "OPTIONS" or message["type"] != "http.response.start":
        return
    if message["status"] >= HTTP_400_BAD_REQUEST:  # errors set Allow themselves
        return
    methods = {
        str(method)
        for route in scope["litestar_app"].routes
        if route.path_format == scope.get("path_template")
        for method in getattr(route, "methods", ())
    }
    if methods:
        MutableScopeHeaders.from_message(message)["Allow"] = ", ".join(sorted(methods))
