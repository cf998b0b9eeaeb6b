"""A worker: the process that serves the API and the pages, and sends messages.

`serve` (the command `mailer serve`) and `run_demo` (`mailer demo`) create all parts, start them in
order, and stop them in the opposite order on a signal. The HTTP server answers from the start, with
503 until the database is open.
"""

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import time
from functools import partial

import anyio
import structlog
from litestar import Litestar
from sqlalchemy.ext.asyncio import AsyncEngine

from mailer import demo, metrics
from mailer.access import users
from mailer.admin.live import LiveUpdates
from mailer.admin.render import load_templates
from mailer.app import CONNECTION_LIMITS, create_app
from mailer.client.model import known_zones
from mailer.daily_report.schedule import DailyMail
from mailer.daily_report.smtp_config import SmtpConfig, read_smtp_config
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
from mailer.dispatch.loop_failures import log_task_error
from mailer.dispatch.route_update import RouteUpdate
from mailer.errors import StartError
from mailer.gateway.channel import Channels
from mailer.gateway.opening import open_channels
from mailer.gateway.toml_file import ConfigFileError
from mailer.loop_monitor import DEBUG_PROBE_INTERVAL, PROBE_INTERVAL, LoopMonitor
from mailer.receipt.calls import CALL_PREFIX, ProviderCalls
from mailer.receipt.inbox import Inbox
from mailer.reply.rules import ReplyRules
from mailer.server import act_on_signals, listen, notify_systemd, url_of
from mailer.settings import Settings
from mailer.web.asgi_wrappers import wrap_asgi
from mailer.web.server.direct import DirectAnswers
from mailer.web.server.uvicorn_server import Server
from mailer.web.startup_gate import STARTING_DETAIL, Startup
from mailer.webhook.addresses import AddressPolicy
from mailer.webhook.delivery import WebhookDelivery
from mailer.webhook.sending import WebhookClient

log = structlog.get_logger()

API_CONNECTIONS = 10
"""Size of the connection pool for requests to the API and the pages."""
DISPATCHER_CONNECTIONS = 4
"""Size of the dispatcher's own connection pool, so that slow API requests never delay sending."""
WEBHOOK_CONNECTIONS = 1
"""Size of the connection pool for deliveries to webhooks, which have one transaction at a time."""
CHUNK_STATEMENT_TIMEOUT = 60.0
"""Statement timeout of the dispatcher's pool, in seconds: a chunk of an audience may take long."""

OnOpen = Callable[[AsyncEngine, str], Awaitable[None]]
"""Called once the database is open, with an engine for it and the URL of the HTTP server."""


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
    """Serve the demo, with its own database, gateway and data, until SIGTERM or SIGINT.

    `echo` prints the greeting, which says how to use the demo.
    """

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
    settings: Settings, database_url: str, on_open: OnOpen, smtp: SmtpConfig | None = None
) -> None:
    """Create all parts, then run them until a signal or an error.

    `smtp` is None if no daily reports are mailed.
    """
    async with AsyncExitStack() as stack:
        is_debug = settings.log_level == "debug"
        monitor = LoopMonitor(interval=DEBUG_PROBE_INTERVAL if is_debug else PROBE_INTERVAL)
        stack.enter_context(monitor.running())
        listening_socket = stack.enter_context(listen(settings.host, settings.port))
        engine = _create_engine(
            stack,
            database_url,
            pool_name="api",
            pool_size=API_CONNECTIONS,
            statement_timeout=STATEMENT_TIMEOUT,
        )
        dispatcher_engine = _create_engine(
            stack,
            database_url,
            pool_name="dispatcher",
            pool_size=DISPATCHER_CONNECTIONS,
            statement_timeout=CHUNK_STATEMENT_TIMEOUT,
        )
        channels = _open_channels(settings)
        mail = None if smtp is None else _create_mail(stack, settings, smtp, dispatcher_engine)
        inbox = Inbox(dispatcher_engine, ReplyRules.of(settings))
        dispatcher = Dispatcher(
            database_url,
            dispatcher_engine,
            channels,
            DispatcherLimits.of(settings),
            report=None if mail is None else mail.run,
            inbox=inbox,
        )
        webhook_addresses = AddressPolicy(allows_private=settings.webhook_private_addresses)
        webhooks = _create_webhook_delivery(stack, database_url, webhook_addresses)
        live = LiveUpdates()
        startup = Startup(STARTING_DETAIL)
        app = create_app(
            engine,
            channels,
            live=live,
            settings=settings,
            startup=startup,
            why_not_ready=dispatcher.why_not_ready,
            webhook_addresses=webhook_addresses,
        )
        calls = ProviderCalls(channels, inbox, startup, settings.public_url)
        server = Server(
            wrap_asgi(
                app,
                settings.proxies,
                is_auth_enabled=settings.is_auth_enabled,
                intercept=calls.before,
            ),
            CONNECTION_LIMITS,
            grace=settings.shutdown_grace,
            direct_answers=DirectAnswers(CALL_PREFIX, calls.answer_directly),
        )
        opening = asyncio.create_task(
            _wait_for_database(
                database_url,
                DatabaseSource.of(settings),
                app=app,
                channels=channels,
                startup=startup,
                address=url_of(listening_socket),
                on_open=on_open,
            )
        )
        stack.callback(opening.cancel)

        def stop() -> None:
            """Make all parts stop; `_run` returns when they have."""
            live.stop()
            server.stop()
            opening.cancel()
            dispatcher.stop()
            webhooks.stop()

        act_on_signals(stop, partial(_reload_gateways, settings, channels, dispatcher))
        # what the first request would otherwise wait for: reading hundreds of files, and the import
        # of anyio's backend, which Litestar uses
        known_zones()
        anyio.create_task_group()
        _freeze_garbage_collector()
        await _run(server, listening_socket, dispatcher, webhooks, opening)
    if not opening.cancelled():
        opening.result()  # raises its error outside the task group, which would wrap it
    log.info("stopped")


def _create_engine(
    stack: AsyncExitStack,
    database_url: str,
    *,
    pool_name: str,
    pool_size: int,
    statement_timeout: float,
) -> AsyncEngine:
    """Return an engine that `stack` closes; the metrics show its pool as `pool_name`.

    `statement_timeout` is in seconds.
    """
    engine = create_engine(database_url, pool_size=pool_size, statement_timeout=statement_timeout)
    stack.push_async_callback(engine.dispose)
    metrics.watch_pool(pool_name, partial(pool_usage, engine))
    return engine


def _create_webhook_delivery(
    stack: AsyncExitStack, database_url: str, policy: AddressPolicy
) -> WebhookDelivery:
    """Return the part that delivers events to webhooks, with a connection of its own."""
    engine = _create_engine(
        stack,
        database_url,
        pool_name="webhooks",
        pool_size=WEBHOOK_CONNECTIONS,
        statement_timeout=STATEMENT_TIMEOUT,
    )
    on_error = partial(log_task_error, at="deliver_webhooks")
    return WebhookDelivery(engine, WebhookClient(policy), on_error)


def _open_channels(settings: Settings) -> Channels:
    """Return the channels of the configured gateways; raises `StartError`."""
    channels = Channels()
    try:
        channels.replace(open_channels(settings, os.environ, channels))
    except ConfigFileError as error:
        raise StartError(str(error)) from None
    if not channels:
        because = "neither MAILER_GATEWAYS nor MAILER_GATEWAY_URL is set"
        log.warning("gateway_not_configured", because=because)
    return channels


def _reload_gateways(settings: Settings, channels: Channels, dispatcher: Dispatcher) -> None:
    """Read the file of gateways again and use it; if it has mistakes, log them and change nothing.

    The file is small and local, so reading it does not block the event loop for long.
    """
    try:
        dispatcher.use(open_channels(settings, os.environ, channels))
    except ConfigFileError as error:
        log.error("gateways_not_reloaded", reason=str(error))  # noqa: TRY400  # the user's mistake
    else:
        log.info("gateways_reloaded", gateways=[channel.name for channel in channels])


def _create_mail(
    stack: AsyncExitStack, settings: Settings, smtp: SmtpConfig, engine: AsyncEngine
) -> DailyMail:
    """Return the job that mails daily reports; `stack` waits for a mail that is being sent."""
    time_of_day = time.fromisoformat(settings.report_at)
    mail = DailyMail(engine, smtp, time_of_day, settings.report_time_zone)
    stack.push_async_callback(mail.finish, settings.shutdown_grace)
    return mail


def _freeze_garbage_collector() -> None:
    """Exclude all current objects from garbage collection: they live as long as the worker.

    A full collection visits every object and blocks the event loop for tens of milliseconds, at
    unpredictable times.
    """
    gc.collect()
    gc.freeze()


async def _wait_for_database(  # noqa: PLR0913  # everything that needs the database
    database_url: str,
    source: DatabaseSource,
    *,
    app: Litestar,
    channels: Channels,
    startup: Startup,
    address: str,
    on_open: OnOpen,
) -> None:
    """Wait until the database is open, then let `app` answer requests, and call `on_open`.

    Before that, the routes of `channels` are written to the database. Until then `startup` holds
    the reason, which `app` answers to requests. `address` is the URL of the HTTP server. Raises the
    errors of `prepare_database`.
    """

    def on_wait(reason: WaitReason) -> None:
        startup.why_not_done = reason.sentence
        # ready, because the HTTP server answers; the status says that the database is missing
        notify_systemd("READY=1", f"STATUS={reason.sentence} ({reason.detail})")

    async def on_ready() -> None:
        await RouteUpdate(engine, channels).run()  # else the API would refuse its gateways
        async with engine.connect() as connection:
            app.state.database_fingerprint = await database_info.get_fingerprint(connection)
        startup.why_not_done = None
        await on_open(engine, address)

    log.info("listening", address=address)
    engine = create_engine(database_url)  # no statement timeout: a migration may take long
    try:
        await prepare_database(engine, source, on_wait=on_wait, on_ready=on_ready)
    finally:
        await engine.dispose()
    notify_systemd("READY=1", f"STATUS=Serves {address}")


async def _run(
    server: Server,
    listening_socket: socket.socket,
    dispatcher: Dispatcher,
    webhooks: WebhookDelivery,
    opening: asyncio.Task[None],
) -> None:
    """Serve requests until the server is stopped.

    Once the database is open, dispatch messages and deliver events to webhooks.

    `opening` is the task that waits for the database. If it fails, the server stops.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listening_socket]))
        tasks.create_task(asyncio.to_thread(load_templates))  # else the first pages would be slow
        await asyncio.wait({opening})
        if opening.cancelled() or opening.exception():
            server.stop()
        else:
            tasks.create_task(webhooks.run())
            await dispatcher.run()
