"""Assembly of the application: connects all parts, and starts and stops them in order."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from datetime import time
from functools import partial

import structlog
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import demo, metrics
from mailer.access import users
from mailer.access.api import AuditController
from mailer.access.middleware import AUTH_METHOD, AuthMiddleware, actor_of
from mailer.admin.live import LiveUpdates
from mailer.admin.render import load_templates
from mailer.admin.router import HANDLERS, site_router
from mailer.client.api import ClientController
from mailer.client.model import known_zones
from mailer.daily_report.mail import SmtpConfig, read_smtp_config
from mailer.daily_report.schedule import DailyMail
from mailer.db import database_info
from mailer.db.engine import STATEMENT_TIMEOUT, create_engine, pool_usage
from mailer.db.requirements import WaitReason
from mailer.db.startup import (
    DatabaseSource,
    open_database,
    prepare_database,
    provide_database_url,
)
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.erasure import ErasureController
from mailer.gateway.channel import Channel, ChannelLimits
from mailer.gateway.http import HttpGateway
from mailer.idempotency.middleware import Idempotency, claim_of
from mailer.limits import RateLimiter
from mailer.loop_monitor import DEBUG_PROBE_INTERVAL, PROBE_INTERVAL, LoopMonitor
from mailer.mailing.api import MailingController
from mailer.oidc.provider import create_provider
from mailer.server import listen, notify_systemd, stop_on_signals, url_of
from mailer.settings import Settings
from mailer.statistics.api import StatisticsController, show_metrics
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.assets import static_router
from mailer.web.body import MAX_BODY_BYTES, TimedRequest
from mailer.web.health import WhyNotReady, health_router
from mailer.web.openapi import KEY_SECURITY, openapi_config
from mailer.web.routing import PathIds, allow_all
from mailer.web.server.connection import ConnectionLimits
from mailer.web.server.uvicorn_server import Server
from mailer.web.shutdown import AnswerAbortedRequests
from mailer.web.startup_gate import STARTING_DETAIL, Startup, StartupGate

log = structlog.get_logger()

LIMITS = ConnectionLimits()

OIDC_RATE = 5
"""Requests a second of one network to start or finish a sign-in through the OpenID provider.

Each start is stored for a while, and each callback may cause a request to the provider.
"""
DISPATCHER_CONNECTIONS = 4
"""Size of the dispatcher's own connection pool, so that slow API requests never delay sending."""
CHUNK_STATEMENT_TIMEOUT = 60.0
"""Statement timeout of the dispatcher's pool, in seconds: a chunk of an audience may take long."""


def create_app(  # noqa: PLR0913  # the dependencies of the handlers
    engine: AsyncEngine,
    channel: Channel | None = None,
    *,
    live: LiveUpdates | None = None,
    settings: Settings | None = None,
    limits: ConnectionLimits = LIMITS,
    startup: Startup | None = None,
    why_not_ready: WhyNotReady = lambda: None,
) -> Litestar:
    """Return the web application on `engine`; `channel` is None if no gateway is configured.

    Until `startup` is done, most requests are answered with 503. The readiness check fails as long
    as `why_not_ready` returns a reason.
    """
    settings = settings or Settings()
    startup = startup or Startup()
    provider = create_provider(settings)
    dependencies = {
        "engine": engine,
        "channel": channel,
        "live": live or LiveUpdates(),
        "settings": settings,
        "provider": provider,
        "oidc_rate": RateLimiter(OIDC_RATE),
        "startup": startup,
        "why_not_ready": why_not_ready,
    }
    api = Router(
        "/api/v1",
        route_handlers=[
            ClientController,
            ErasureController,
            MailingController,
            StatisticsController,
            AuditController,
        ],
        opt={AUTH_METHOD: "key"},
        security=KEY_SECURITY,
    )
    return Litestar(
        route_handlers=[api, site_router(), health_router(), show_metrics, static_router()],
        dependencies={name: _provide(part) for name, part in dependencies.items()}
        | {
            "by": Provide(actor_of, sync_to_thread=False),
            "claim": Provide(claim_of, sync_to_thread=False),
        },
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
        before_send=[allow_all],
        on_shutdown=[provider.close] if provider else [],
        state=State(
            {
                "channel": channel,
                "limits": limits,
                "is_auth_enabled": settings.is_auth_enabled,
                "has_public_metrics": settings.monitoring_token is None,
                "database_mark": "",
            }
        ),
        request_class=TimedRequest,
        exception_handlers=HANDLERS,
        openapi_config=openapi_config(),
        request_max_body_size=MAX_BODY_BYTES,
        logging_config=None,
    )


def _provide(part: object) -> Provide:
    """Return a dependency that is always the same object."""
    return Provide(lambda: part, sync_to_thread=False)


async def serve(settings: Settings) -> None:
    """Serve the API and send messages until SIGTERM or SIGINT.

    Waits for the database as long as necessary. Raises `StartError` if a setting is wrong, and
    `UnavailableError` if starting failed for a reason that may pass.
    """
    has_reports = settings.smtp_url is not None or settings.report_recipients is not None
    smtp = read_smtp_config(settings) if has_reports else None
    async with provide_database_url(DatabaseSource.of(settings)) as url:
        await _serve(settings, url, on_open=partial(_log_started, settings), smtp=smtp)


async def run_demo(settings: Settings, echo: Callable[[str], None]) -> None:
    """Serve the demo, with its own database, gateway and data, until SIGTERM or SIGINT."""

    async def greet(_: AsyncEngine, address: str) -> None:
        demo.print_greeting(address, echo=echo)

    async with (
        demo.demo_environment(settings) as demo_settings,
        open_database(DatabaseSource.of(demo_settings)) as (url, engine),
    ):
        await demo.create_demo_data(engine)
        await _serve(demo_settings, url, on_open=greet)


async def _log_started(settings: Settings, engine: AsyncEngine, address: str) -> None:
    """Log that mailer has started, and how to create the first user if nobody can sign in."""
    can_sign_in = not settings.is_auth_enabled or settings.oidc_issuer is not None
    if not can_sign_in:
        async with engine.connect() as connection:
            can_sign_in = await users.has_password_users(connection)
    log.info("started", address=address)
    if not can_sign_in:
        command = "mailer users create NAME --role admin"
        log.warning("no_login_configured", first_run=command, then_open=f"{address}/login")


async def _serve(
    settings: Settings,
    url: str,
    on_open: Callable[[AsyncEngine, str], Awaitable[None]],
    smtp: SmtpConfig | None = None,
) -> None:
    """Listen, wait for the database, then send messages until a signal.

    `on_open` is called with an engine and the URL of the server once the database is open.
    """
    async with contextlib.AsyncExitStack() as stack:
        is_debug = settings.log_level == "debug"
        monitor = LoopMonitor(interval=DEBUG_PROBE_INTERVAL if is_debug else PROBE_INTERVAL)
        stack.enter_context(monitor.running())
        listening = stack.enter_context(listen(settings.host, settings.port))
        engine = create_engine(url, statement_timeout=STATEMENT_TIMEOUT)
        stack.push_async_callback(engine.dispose)
        dispatcher_engine = create_engine(
            url, pool_size=DISPATCHER_CONNECTIONS, statement_timeout=CHUNK_STATEMENT_TIMEOUT
        )
        stack.push_async_callback(dispatcher_engine.dispose)
        metrics.watch_pool("api", partial(pool_usage, engine))
        metrics.watch_pool("dispatcher", partial(pool_usage, dispatcher_engine))
        channel = None
        if settings.gateway_url is None:
            log.warning("gateway_not_configured", because="MAILER_GATEWAY_URL is not set")
        else:
            gateway = await stack.enter_async_context(
                HttpGateway(
                    settings.gateway_url,
                    settings.gateway_token,
                    concurrency=settings.gateway_concurrency,
                    retry_after_cap=settings.retry_after_cap,
                )
            )
            channel = Channel(gateway, ChannelLimits.of(settings))
        report = None
        if smtp is not None:
            mail = DailyMail(
                dispatcher_engine,
                smtp,
                time.fromisoformat(settings.report_at),
                settings.report_time_zone,
            )
            stack.push_async_callback(mail.finish, settings.shutdown_grace)
            report = mail.run
        dispatcher = Dispatcher(
            url, dispatcher_engine, channel, DispatcherLimits.of(settings), report=report
        )
        live = LiveUpdates()
        startup = Startup(STARTING_DETAIL)
        app = create_app(
            engine,
            channel,
            live=live,
            settings=settings,
            startup=startup,
            why_not_ready=dispatcher.why_not_ready,
        )
        server = Server(
            wrap_asgi(app, settings.proxies, is_auth_enabled=settings.is_auth_enabled),
            LIMITS,
            grace=settings.shutdown_grace,
        )
        source = DatabaseSource.of(settings)
        opening = asyncio.create_task(
            _open_database(url_of(listening), app, url, source, startup, on_open)
        )
        stack.callback(opening.cancel)

        def stop() -> None:
            live.stop()
            server.stop()
            opening.cancel()
            dispatcher.stop()

        stop_on_signals(stop)
        known_zones()  # fills its cache: it reads hundreds of folders and files
        _freeze_garbage_collector()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listening]))
            tasks.create_task(asyncio.to_thread(load_templates))
            await asyncio.wait({opening})
            if opening.cancelled() or opening.exception():
                server.stop()
            else:
                await dispatcher.run()
    if not opening.cancelled():
        opening.result()  # raises its error outside the group, which would wrap it
    log.info("stopped")


def _freeze_garbage_collector() -> None:
    """Exclude all current objects from garbage collection: they live as long as the worker.

    A full collection visits every object and blocks the event loop for tens of milliseconds, at
    unpredictable times.
    """
    gc.collect()
    gc.freeze()


async def _open_database(  # noqa: PLR0913, PLR0917  # everything that needs the database
    address: str,
    app: Litestar,
    url: str,
    source: DatabaseSource,
    startup: Startup,
    on_open: Callable[[AsyncEngine, str], Awaitable[None]],
) -> None:
    """Open the database. Meanwhile requests to `address` are told that mailer waits for it."""

    def on_wait(reason: WaitReason) -> None:
        startup.waits_for = reason.sentence
        notify_systemd("READY=1", f"STATUS={reason.sentence} ({reason.detail})")

    async def on_ready() -> None:
        async with engine.connect() as connection:
            app.state.database_mark = await database_info.get_fingerprint(connection)
        startup.waits_for = None
        await on_open(engine, address)

    log.info("listening", address=address)
    engine = create_engine(url)  # no statement timeout: a migration may take long
    try:
        await prepare_database(engine, source, on_wait=on_wait, on_ready=on_ready)
    finally:
        await engine.dispose()
    notify_systemd("READY=1", f"STATUS=Serves {address}")
