"""The web application: its routes, and what their handlers need.

`create_app` connects the API, the pages, the health probes and the metrics. `mailer.worker` serves
the application.
"""

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer.access.api import AuditController
from mailer.access.middleware import AUTH_METHOD, AuthMiddleware, actor_of
from mailer.admin.live import LiveUpdates
from mailer.admin.router import HANDLERS, site_router
from mailer.client.api import ClientController
from mailer.client.lists.api import ListController
from mailer.erasure import ErasureController
from mailer.forecast.api import ForecastController
from mailer.gateway.channel import Channels
from mailer.gateway_control.api import (
    TEST_BURST,
    TEST_RATE,
    GatewayController,
    MailingTestController,
)
from mailer.idempotency.middleware import Idempotency, claim_of
from mailer.limits import RateLimiter
from mailer.mailing.api import MailingController
from mailer.message.api import MessageController
from mailer.oidc.provider import create_provider
from mailer.opt_out.api import OptOutController
from mailer.reply.api import ReplyController
from mailer.settings import Settings
from mailer.statistics.api import StatisticsController, show_metrics
from mailer.web.assets import static_router
from mailer.web.body import MAX_BODY_BYTES, TimedRequest
from mailer.web.health import WhyNotReady, health_router
from mailer.web.openapi import KEY_SECURITY, openapi_config
from mailer.web.routing import PathIds, set_allow_header
from mailer.web.server.connection import ConnectionLimits
from mailer.web.shutdown import AnswerAbortedRequests
from mailer.web.startup_gate import Startup, StartupGate
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.api import WebhookController

CONNECTION_LIMITS = ConnectionLimits()
"""The timeouts and the number of HTTP connections."""

OIDC_RATE = 5
"""Requests a second from one network to start or finish a sign-in through the OpenID provider.

They are limited because each start is stored for a while, and each finish may cause a request to
the provider.
"""


def create_app(  # noqa: PLR0913  # the dependencies of the handlers
    engine: AsyncEngine,
    channels: Channels | None = None,
    *,
    live: LiveUpdates | None = None,
    settings: Settings | None = None,
    limits: ConnectionLimits = CONNECTION_LIMITS,
    startup: Startup | None = None,
    why_not_ready: WhyNotReady = lambda: None,
    webhook_addresses: AddressPolicy | None = None,
) -> Litestar:
    """Return the web application; it uses the database through `engine`.

    `channels` are those of the gateways; None if none is configured. Until `startup` is done, most
    requests are answered with 503. The readiness probe fails as long as `why_not_ready` returns a
    reason. `webhook_addresses` says which addresses a webhook may have; None: the settings do.
    """
    settings = settings or Settings()
    startup = startup or Startup()
    channels = channels if channels is not None else Channels()
    provider = create_provider(settings)
    if webhook_addresses is None:
        webhook_addresses = AddressPolicy(allows_private=settings.webhook_private_addresses)
    # handlers get these objects as parameters with the same names
    dependencies = {
        "engine": engine,
        "channels": channels,
        "live": live or LiveUpdates(),
        "settings": settings,
        "provider": provider,
        "oidc_rate": RateLimiter(OIDC_RATE),
        "test_rate": RateLimiter(TEST_RATE, burst=TEST_BURST),
        "startup": startup,
        "why_not_ready": why_not_ready,
        "webhook_addresses": webhook_addresses,
    }
    api = Router(
        "/api/v1",
        route_handlers=[
            ClientController,
            ListController,
            OptOutController,
            ErasureController,
            MailingController,
            MessageController,
            StatisticsController,
            ForecastController,
            GatewayController,
            MailingTestController,
            WebhookController,
            ReplyController,
            AuditController,
        ],
        opt={AUTH_METHOD: "key"},
        security=KEY_SECURITY,
    )
    return Litestar(
        route_handlers=[api, site_router(), health_router(), show_metrics, static_router()],
        dependencies={name: _provide(part) for name, part in dependencies.items()}
        | {  # of each request: the actor, and the claim on its idempotency key
            "by": Provide(actor_of, sync_to_thread=False),
            "claim": Provide(claim_of, sync_to_thread=False),
        },
        # in the order in which a request passes them
        middleware=[
            AnswerAbortedRequests(),
            StartupGate(startup),
            PathIds(),
            AuthMiddleware(
                engine,
                is_enabled=settings.is_auth_enabled,
                key_rate=settings.key_rate,
                monitoring_token=settings.monitoring_token,
            ),
            Idempotency(engine, lease=settings.lease, max_buffered_bytes=MAX_BODY_BYTES),
        ],
        before_send=[set_allow_header],
        on_shutdown=[provider.close] if provider else [],
        state=State(
            {
                "channels": channels,
                "limits": limits,
                "is_auth_enabled": settings.is_auth_enabled,
                "has_public_metrics": settings.monitoring_token is None,
                "database_fingerprint": "",  # the fingerprint of the database, once it is open
            }
        ),
        request_class=TimedRequest,
        exception_handlers=HANDLERS,
        openapi_config=openapi_config(),
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
    )


def _provide(part: object) -> Provide:
    """Return a dependency of handlers that is always the object `part`."""
    return Provide(lambda: part, sync_to_thread=False)
