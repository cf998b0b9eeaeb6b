"""ASGI wrappers around the whole application, for headers, hosts, proxies and the request log.

A wrapper is an ASGI application that changes a request or response and calls the next one.
"""

from collections.abc import Callable, Iterable

from litestar.types import ASGIApp, Receive, Scope, Send

from mailer.web.headers import add_security_headers
from mailer.web.hosts import require_loopback_host, validate_host
from mailer.web.request_log import log_requests
from mailer.web.server.header_limits import limit_headers
from mailer.web.trusted_proxies import TrustedProxies, trust_proxies


def wrap_asgi(
    app: ASGIApp,
    trusted_proxies: Iterable[str],
    *,
    is_auth_enabled: bool,
    intercept: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """Return the application inside all wrappers, ready for a server.

    If one of `trusted_proxies` sent a request, its client address and its scheme come from
    X-Forwarded-For and X-Forwarded-Proto, otherwise from the connection. Without authentication, a
    request that no trusted proxy sent must have a loopback name as its Host. `intercept` wraps the
    application to answer frequent calls of programs early, without log line and request id.
    """
    proxies = TrustedProxies(trusted_proxies)

    def wrap(app: ASGIApp) -> ASGIApp:
        """Put an application inside the wrappers that every request passes."""
        # a request passes these from left to right; `limit_headers` comes before all that uses
        # Litestar, which caches headers when they are first read
        inner = limit_headers(add_security_headers(log_requests(validate_host(app))))
        return trust_proxies(intercept(inner), proxies)

    if is_auth_enabled:
        return wrap(app)
    through_proxy, direct = wrap(app), wrap(require_loopback_host(app))

    async def choose_wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        # chosen out here, because `trust_proxies` replaces the address of the connection's peer
        peer = (scope.get("client") or ("",))[0]
        await (through_proxy if peer in proxies else direct)(scope, receive, send)

    return choose_wrapper
