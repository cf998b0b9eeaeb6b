"""The HTTP server: listening socket, uvicorn, signals and systemd notifications."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
from litestar.types import ASGIApp

from mailer.errors import StartError, UnavailableError
from mailer.settings import Settings
from mailer.signals import handle_signals
from mailer.web.server.connection import ConnectionLimits, LimitedHttpProtocol, make_protocol_class

log = structlog.get_logger()

TRANSIENT_LISTEN_ERRORS = frozenset(
    {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE}
)
"""Errors that may pass: another process still listens there, or the address is not assigned yet."""

ABORT_MARGIN = 3
"""Seconds after the shutdown grace period for aborted requests to end."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises `StartError` if the setting is wrong, and `UnavailableError` if it may work later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        message = f"MAILER_HOST, MAILER_PORT: cannot listen on {host}:{port}: {why}"
        is_dns_unavailable = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        if is_dns_unavailable or getattr(error, "errno", None) in TRANSIENT_LISTEN_ERRORS:
            raise UnavailableError(message) from error
        raise StartError(message) from error


class Server(uvicorn.Server):
    """A uvicorn server that handles no signals, and returns the URL that it listens on."""

    def __init__(self, app: ASGIApp, settings: Settings, limits: ConnectionLimits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=make_protocol_class(limits),
                ws="none",
                proxy_headers=False,  # mailer handles them itself, by a setting
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.shutdown_grace) + ABORT_MARGIN,
            )
        )
        self._grace = settings.shutdown_grace
        self._startup_ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals: `stop_on_signals` handles them."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and wake `wait_for_address`."""
        try:
            await super().startup(sockets)
        finally:
            self._startup_ended.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving; abort requests that take longer than the shutdown grace period.

        uvicorn's own timeout would log an error with a traceback for each of them.
        """
        abort_timer = asyncio.get_running_loop().call_later(self._grace, self._abort_requests)
        try:
            await super().shutdown(sockets)
        finally:
            abort_timer.cancel()

    def _abort_requests(self) -> None:
        """Cancel requests; close connections whose responses have started and stay incomplete."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.abort()
        for task in list(self.server_state.tasks):
            asyncio.get_running_loop().call_soon(task.cancel)  # after its connection has closed

    async def wait_for_address(self) -> str:
        """Return the URL that the server listens on; raises `RuntimeError` if it did not start."""
        await self._startup_ended.wait()
        if not self.started:
            raise RuntimeError("the application did not start")
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on each signal that ends mailer; ignore the other signals."""

    def on_signal() -> None:
        log.info("stopping")
        notify_systemd("STOPPING=1")
        stop()

    handle_signals(on_signal)


def notify_systemd(*states: str) -> None:
    """Send the state of this service to systemd if it runs under systemd (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a failed notification must not stop the service
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier,
    ):
        notifier.sendto("\n".join(states).encode(), address)
