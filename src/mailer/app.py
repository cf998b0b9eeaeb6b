"""Wiring: the only file that knows every part, and the order in which they start and stop."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial

import structlog
import uvicorn
from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ASGIApp
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import demo, metrics
from mailer.access import accounts
from mailer.access.api import AuditController
from mailer.access.gate import DOOR, Gate, actor_of
from mailer.access.idempotency.middleware import Idempotency
from mailer.access.oidc.provider import provider_of
from mailer.admin.live import Live
from mailer.admin.site import HANDLERS, site_router
from mailer.client.api import ClientController
from mailer.db.engine import PATIENCE, create_engine, pool_usage
from mailer.db.opening import open_database
from mailer.dispatch.dispatcher import Dispatcher
from mailer.errors import StartError
from mailer.gateway.breaker import Breaker
from mailer.gateway.http import HttpGateway
from mailer.gateway.pace import Pace
from mailer.loop_monitor import DEBUG_INTERVAL, INTERVAL, LoopMonitor
from mailer.mailing.api import MailingController
from mailer.report.api import StatisticsController, show_metrics
from mailer.report.daily_mail import DailyMail
from mailer.report.mail import Post, post_of
from mailer.settings import Settings
from mailer.web.assets import static_router
from mailer.web.body import TimedRequest
from mailer.web.connection import Limits, connection_class
from mailer.web.edge import served
from mailer.web.health import health_router
from mailer.web.methods import allow_all
from mailer.web.openapi import BY_KEY, StructPlugin, openapi_config
from mailer.web.rate import Rate

log = structlog.get_logger()

LIMITS = Limits()

BODY_LIMIT = 1024 * 1024
"""Bytes of a JSON body: ample for the longest text and filter."""
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
) -> Litestar:
    """Return the web application over `engine`; `breaker` is None where nothing is sent."""
    settings = settings or Settings()
    provider = provider_of(settings)
    given = {
        "engine": engine,
        "breaker": breaker,
        "pace": pace,
        "live": live or Live(),
        "settings": settings,
        "provider": provider,
        "oidc_rate": Rate(OIDC_RATE),
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
            Gate(engine, settings),
            Idempotency(engine, lease=settings.lease, at_hand=BODY_LIMIT),
        ],
        before_send=[allow_all],
        on_shutdown=[provider.close] if provider else [],
        state=State({"breaker": breaker, "limits": limits, "settings": settings}),
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
    """Serve the API and send messages until SIGTERM or SIGINT; raises `StartError`."""
    is_mailed = settings.smtp_url is not None or settings.report_recipients is not None
    post = post_of(settings) if is_mailed else None
    async with open_database(settings) as (url, engine):
        async with engine.connect() as connection:
            is_known = await accounts.is_anybody_known(connection)
        is_known = is_known or settings.auth == "none" or settings.oidc_issuer is not None
        await _serve(settings, url, on_start=partial(_say_started, is_known=is_known), post=post)


async def run_demo(settings: Settings, echo: Callable[[str], None]) -> None:
    """Serve with everything that is needed to see mailings go out, until SIGTERM or SIGINT."""
    async with (
        demo.surroundings(settings) as demo_settings,
        open_database(demo_settings) as (url, engine),
    ):
        await demo.fill(engine)
        await _serve(demo_settings, url, on_start=partial(demo.greet, echo=echo))


def _say_started(address: str, *, is_known: bool) -> None:
    log.info("started", address=address)
    if not is_known:
        first = "mailer users add NAME --role admin"
        log.warning("nobody_can_sign_in", first_run=first, then_open=f"{address}/login")
    notify_systemd("READY=1")


async def _serve(
    settings: Settings, url: str, on_start: Callable[[str], None], post: Post | None = None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        is_debugged = settings.log_level == "debug"
        monitor = LoopMonitor(interval=DEBUG_INTERVAL if is_debugged else INTERVAL)
        stack.enter_context(monitor.running())
        listening = stack.enter_context(_listen(settings.host, settings.port))
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
        app = create_app(
            engine,
            None if gateway is None else breaker,
            pace=None if gateway is None else pace,
            live=live,
            settings=settings,
        )
        server = _Server(_server_config(served(app, settings), settings), on_start)
        _stop_on_signals(server, dispatcher, live)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(dispatcher.run())
            tasks.create_task(server.serve(sockets=[listening]))
    log.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        why = error.strerror or str(error)
        raise StartError(
            f"MAILER_HOST, MAILER_PORT: cannot listen on {host}:{port}: {why}"
        ) from error


def _server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_class(LIMITS),
        ws="none",
        proxy_headers=False,  # only where a setting says so
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.shutdown_grace) or 1,
    )


class _Server(uvicorn.Server):
    """Leaves signals to us, and tells the address that it listens on."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def _stop_on_signals(server: uvicorn.Server, dispatcher: Dispatcher, live: Live) -> None:
    def stop() -> None:
        log.info("stopping")
        notify_systemd("STOPPING=1")
        live.stop()
        server.should_exit = True
        dispatcher.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def notify_systemd(state: str) -> None:
    """Tell systemd about this service, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.sendto(state.encode(), address)
