"""The application as the network meets it: what stands before every route."""

from litestar.types import ASGIApp
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
    proxies = settings.proxies
    if settings.auth == "none" and not proxies:
        app = local_only(app)
    app = guarded(observed(addressed(app)))
    if proxies:
        app = ProxyHeadersMiddleware(app, trusted_hosts=proxies)  # type: ignore[arg-type,assignment]  # each names the types of ASGI anew
    return app
