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
    # bounded first: the framework keeps the headers as whoever asks for them first sees them
    proxies = TrustedProxies(settings.proxies)
    passed_on = bounded(believing(guarded(observed(addressed(app))), proxies))
    if settings.auth != "none":
        return passed_on
    direct = bounded(believing(guarded(observed(addressed(local_only(app)))), proxies))

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # by whom the connection is: a proxy's word on who asks through it comes later
        peer = (scope.get("client") or ("",))[0]
        await (passed_on if peer in proxies else direct)(scope, receive, send)

    return serve
