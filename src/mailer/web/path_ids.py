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
        ids = [value for value in given.values() if isinstance(value, int)]
        if ids:
            parts = set(scope["path"].split("/"))
            if not all(str(number) in parts for number in ids):
                raise NotFoundException
        await next_app(scope, receive, send)
