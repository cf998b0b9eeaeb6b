"""The application as the network meets it: what stands before every route."""

from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.settings import Settings
from mailer.web.bounds import bounded
from mailer.web.headers import guarded
from mailer.web.hosts import addressed, local_only
from mailer.web.observing import observed
from mailer.web.proxies import TrustedProxies, believing


def served(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Wrap an application for a server.

    Who a request comes from, and whether by https, is what X-Forwarded-For and X-Forwarded-Proto
    say where a trusted proxy sends them, and the connection's own else.
    """
    proxies = TrustedProxies(settings.proxies)

    def behind(app: ASGIApp) -> ASGIApp:
        # bounded first: the framework keeps headers as they are when they are first read
        return bounded(believing(guarded(observed(addressed(app))), proxies))

    if settings.auth != "none":
        return behind(app)
    through_proxy, direct = behind(app), behind(local_only(app))

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # `believing` replaces the address of the peer by the one that the proxy names
        peer = (scope.get("client") or ("",))[0]
        await (through_proxy if peer in proxies else direct)(scope, receive, send)

    return serve
