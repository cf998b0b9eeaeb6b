"""Wiring: the only file that knows every part, and the order in which they start and stop."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import demo, metrics
from mailer.access import accounts
from mailer.access.api import AuditController
from mailer.access.gate import DOOR, Gate, actor_of
from mailer.access.idempotency.middleware import Idempotency
from mailer.access.oidc.provider import provider_of
from mailer.admin.live import Live
from mailer.admin.render import load_templates
from mailer.admin.site import HANDLERS, site_router
from mailer.client.api import ClientController
from mailer.client.model import known_zones
from mailer.db import facts
from mailer.db.engine import PATIENCE, create_engine, pool_usage
from mailer.db.fitness import WaitReason
from mailer.db.opening import located_database, open_database, prepare_database
from mailer.dispatch.dispatcher import Dispatcher
from mailer.gateway.breaker import Breaker
from mailer.gateway.http import HttpGateway
from mailer.gateway.pace import Pace
from mailer.loop_monitor import DEBUG_INTERVAL, INTERVAL, LoopMonitor
from mailer.mailing.api import MailingController
from mailer.report.api import StatisticsController, show_metrics
from mailer.report.daily_mail import DailyMail
from mailer.report.mail import Post, post_of
from mailer.server import Server, listen, notify_systemd, stop_on_signals
from mailer.settings import Settings
from mailer.web.assets import static_router
from mailer.web.body import BODY_LIMIT, TimedRequest
from mailer.web.connection import Limits
from mailer.web.cutting import CutRequests
from mailer.web.edge import served
from mailer.web.health import WhyNotReady, health_router
from mailer.web.methods import allow_all
from mailer.web.openapi import BY_KEY, StructPlugin, openapi_config
from mailer.web.path_ids import PathIds
from mailer.web.rate import Rate
from mailer.web.starting import STARTING, Startup, StartupGate

log = structlog.get_logger()

LIMITS = Limits()

OIDC_RATE = 5
"""Requests a second of a network on the way to the OpenID provider and back: each way that is begun
is kept for a while, and each that ends may ask the provider."""
DISPATCHER_CONNECTIONS = 4
"""Of a pool of its own: slow readers of the API never keep a mailing waiting."""
CHUNK_PATIENCE = 60.0
"""Seconds that a statement over a chunk of an audience may take."""


def create_app(  # noqa: PLR0913  # the parts that handlers ask for
    engine: AsyncEngine,
    breaker: Breaker | None = None,
    *,
    pace: Pace | None = None,
    live: Live | None = None,
    settings: Settings | None = None,
    limits: Limits = LIMITS,
    startup: Startup | None = None,
    why_not_ready: WhyNotReady = lambda: None,
) -> Litestar:
    """Return the web application over `engine`; `breaker` is None where nothing is sent.

    Until `startup` is done most of it answers 503, and readiness while `why_not_ready` says why.
    """
    settings = settings or Settings()
    startup = startup or Startup()
    provider = provider_of(settings)
    given = {
        "engine": engine,
        "breaker": breaker,
        "pace": pace,
        "live": live or Live(),
        "settings": settings,
        "provider": provider,
        "oidc_rate": Rate(OIDC_RATE),
        "startup": startup,
        "why_not_ready": why_not_ready,
    }
    api = Router(
        "/api/v1",
        route_handlers=[
            ClientController,
            MailingController,
            StatisticsController,
            AuditController,
        ],
        opt={DOOR: "key"},
        security=BY_KEY,
    )
    return Litestar(
        route_handlers=[api, site_router(), health_router(), show_metrics, static_router()],
        dependencies={name: _always(part) for name, part in given.items()}
        | {"by": Provide(actor_of, sync_to_thread=False)},
        middleware=[
            CutRequests(),
            StartupGate(startup),
            PathIds(),
            Gate(engine, settings),
            Idempotency(engine, lease=settings.lease, at_hand=BODY_LIMIT),
        ],
        before_send=[allow_all],
        on_shutdown=[provider.close] if provider else [],
        state=State(
            {"breaker": breaker, "limits": limits, "settings": settings, "database_mark": ""}
        ),
        request_class=TimedRequest,
        exception_handlers=HANDLERS,
        openapi_config=openapi_config(),
        plugins=[StructPlugin()],
        request_max_body_size=BODY_LIMIT,
        logging_config=None,
    )


def _always(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


async def serve(settings: Settings) -> None:
    """Serve the API and send messages until SIGTERM or SIGINT.

    Waits for the database without end. Raises `StartError` when a setting is wrong, and
    `UnavailableError` when something else keeps it from starting now.
    """
    is_mailed = settings.smtp_url is not None or settings.report_recipients is not None
    post = post_of(settings) if is_mailed else None
    async with located_database(settings) as url:
        await _serve(settings, url, on_open=partial(_say_started, settings), post=post)


async def run_demo(settings: Settings, echo: Callable[[str], None]) -> None:
    """Serve with everything that is needed to see mailings go out, until SIGTERM or SIGINT."""

    async def greet(_: AsyncEngine, address: str) -> None:
        demo.greet(address, echo=echo)

    async with (
        demo.surroundings(settings) as demo_settings,
        open_database(demo_settings) as (url, engine),
    ):
        await demo.fill(engine)
        await _serve(demo_settings, url, on_open=greet)


async def _say_started(settings: Settings, engine: AsyncEngine, address: str) -> None:
    is_known = settings.auth == "none" or settings.oidc_issuer is not None
    if not is_known:
        async with engine.connect() as connection:
            is_known = await accounts.is_anybody_known(connection)
    log.info("started", address=address)
    if not is_known:
        first = "mailer users add NAME --role admin"
        log.warning("nobody_can_sign_in", first_run=first, then_open=f"{address}/login")


async def _serve(
    settings: Settings,
    url: str,
    on_open: Callable[[AsyncEngine, str], Awaitable[None]],
    post: Post | None = None,
) -> None:
    """Listen, wait for the database, then dispatch; `on_open` gets an engine and the address."""
    async with contextlib.AsyncExitStack() as stack:
        is_debugged = settings.log_level == "debug"
        monitor = LoopMonitor(interval=DEBUG_INTERVAL if is_debugged else INTERVAL)
        stack.enter_context(monitor.running())
        listening = stack.enter_context(listen(settings.host, settings.port))
        engine = create_engine(url, patience=PATIENCE)
        stack.push_async_callback(engine.dispose)
        own_engine = create_engine(url, pool_size=DISPATCHER_CONNECTIONS, patience=CHUNK_PATIENCE)
        stack.push_async_callback(own_engine.dispose)
        metrics.watch_pool("api", partial(pool_usage, engine))
        metrics.watch_pool("dispatcher", partial(pool_usage, own_engine))
        gateway = None
        if settings.gateway_url is None:
            log.warning("nothing_is_sent", because="MAILER_GATEWAY_URL is not set")
        else:
            gateway = await stack.enter_async_context(
                HttpGateway(
                    settings.gateway_url,
                    settings.gateway_token,
                    concurrency=settings.gateway_concurrency,
                    retry_after_cap=settings.retry_after_cap,
                )
            )
        breaker = Breaker(settings.breaker_failures, settings.breaker_reset)
        pace = Pace(settings.gateway_concurrency, settings.gateway_rate)
        report = None
        if post is not None:
            mail = DailyMail(own_engine, post, settings)
            stack.push_async_callback(mail.finish, settings.shutdown_grace)
            report = mail.run
        dispatcher = Dispatcher(url, own_engine, gateway, breaker, pace, settings, report=report)
        live = Live()
        startup = Startup(STARTING)
        app = create_app(
            engine,
            None if gateway is None else breaker,
            pace=None if gateway is None else pace,
            live=live,
            settings=settings,
            startup=startup,
            why_not_ready=dispatcher.why_not_ready,
        )
        server = Server(served(app, settings), settings, LIMITS)
        opening = asyncio.create_task(_open(server, app, url, settings, startup, on_open))
        stack.callback(opening.cancel)

        def stop() -> None:
            live.stop()
            server.should_exit = True
            opening.cancel()
            dispatcher.stop()

        stop_on_signals(stop)
        known_zones()  # reads some hundreds of folders and files
        _spare_garbage_collector()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listening]))
            tasks.create_task(asyncio.to_thread(load_templates))
            await asyncio.wait({opening})
            if opening.cancelled() or opening.exception():
                server.should_exit = True
            else:
                await dispatcher.run()
    if not opening.cancelled():
        opening.result()  # outside the group, which would wrap what it raises
    log.info("stopped")


def _spare_garbage_collector() -> None:
    """Let it pass over all objects that there are: they stay as long as the process.

    A full collection goes over every object at once, and would keep the loop for tens of
    milliseconds, at times that the work on a request decides.
    """
    gc.collect()
    gc.freeze()


async def _open(  # noqa: PLR0913, PLR0917  # all that waits for the database
    server: Server,
    app: Litestar,
    url: str,
    settings: Settings,
    startup: Startup,
    on_open: Callable[[AsyncEngine, str], Awaitable[None]],
) -> None:
    """Open the database while `server` answers that it waits for it."""

    def say(reason: WaitReason) -> None:
        startup.waits_for = reason.sentence
        notify_systemd("READY=1", f"STATUS={reason.sentence} ({reason.detail})")

    async def begin() -> None:
        async with engine.connect() as connection:
            app.state.database_mark = await facts.mark(connection)
        startup.waits_for = None
        await on_open(engine, address)

    address = await server.wait_for_address()
    log.info("listening", address=address)
    engine = create_engine(url)  # without a time limit: a migration takes as long as it takes
    try:
        await prepare_database(engine, settings, on_wait=say, on_ready=begin)
    finally:
        await engine.dispose()
    notify_systemd("READY=1", f"STATUS=Serves {address}")
