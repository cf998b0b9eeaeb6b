"""The application as the network meets it: what stands before every route."""

from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from mailer.settings import Settings
from mailer.web.headers import guarded
from mailer.web.hosts import addressed, local_only
from mailer.web.observing import observed


def served(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap an application for a server.

    Who a request comes from, and whether by https, is what X-Forwarded-For and X-Forwarded-Proto
    say where a trusted proxy sends them, and the connection's own else.
    """
    whole = guarded(observed(addressed(app)))
    passed_on = ProxyHeadersMiddleware(whole, trusted_hosts=settings.proxies)  # type: ignore[arg-type]  # each names the types of ASGI anew
    if settings.auth != "none":
        return passed_on  # type: ignore[return-value]  # likewise
    direct = guarded(observed(addressed(local_only(app))))
    trusted = passed_on.trusted_hosts

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # by whom the connection is: a proxy's word on who asks through it comes later
        peer = (scope.get("client") or ("",))[0]
        await (passed_on if peer in trusted else direct)(scope, receive, send)  # type: ignore[arg-type]  # likewise

    return serve
