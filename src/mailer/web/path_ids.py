"""Numbers in paths have one way of being written: another one names nothing."""

from litestar.enums import ScopeType
from litestar.exceptions import NotFoundException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send


class PathIds(ASGIMiddleware):
    """Refuses ids such as `+1`, `001`, `1_0` and digits of other scripts.

    Python's `int`, by which Litestar reads them, takes all of these: one thing would have many
    addresses, and logs and proxies would know it by each.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Let a request through; raises HTTPException 404."""
        given: dict[str, object] = dict(scope["path_params"])
        places = (filter(None, path.split("/")) for path in (scope["path_template"], scope["path"]))
        for name, part in zip(*places, strict=False):
            number = given.get(name[1:-1]) if name.startswith("{") else None
            if isinstance(number, int) and part != str(number):
                raise NotFoundException
        await next_app(scope, receive, send)
