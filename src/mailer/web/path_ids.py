"""Accept ids in paths in their canonical form only."""

from litestar.enums import ScopeType
from litestar.exceptions import NotFoundException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send


class PathIds(ASGIMiddleware):
    """Answers 404 to ids such as `+1`, `001`, `1_0` and digits of other scripts.

    Litestar parses ids with Python's `int`, which accepts all of these, so that one object would
    have many URLs in logs and proxies.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass a request on; raises HTTPException 404."""
        values: dict[str, object] = dict(scope["path_params"])
        parts = (filter(None, path.split("/")) for path in (scope["path_template"], scope["path"]))
        for name, part in zip(*parts, strict=False):
            number = values.get(name[1:-1]) if name.startswith("{") else None
            if isinstance(number, int) and part != str(number):
                raise NotFoundException
        await next_app(scope, receive, send)
