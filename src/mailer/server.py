"""The server under the application: listening socket, uvicorn, signals, and systemd."""

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
from mailer.web.connection import Connection, Limits, connection_class

log = structlog.get_logger()

MAY_PASS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE})
"""An earlier process still listens there, or the machine has not got the address yet."""

CUT_MARGIN = 3
"""Seconds after the grace for requests that are cut to end."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises `StartError` when the setting is wrong, `UnavailableError` when it may work later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        message = f"MAILER_HOST, MAILER_PORT: cannot listen on {host}:{port}: {why}"
        is_dns_away = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        if is_dns_away or getattr(error, "errno", None) in MAY_PASS:
            raise UnavailableError(message) from error
        raise StartError(message) from error


class Server(uvicorn.Server):
    """Leaves signals to us, and knows the address that it listens on."""

    def __init__(self, app: ASGIApp, settings: Settings, limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(limits),
                ws="none",
                proxy_headers=False,  # only where a setting says so
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(settings.shutdown_grace) + CUT_MARGIN,
            )
        )
        self._grace = settings.shutdown_grace
        self._startup_ended = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none: see `stop_on_signals`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        try:
            await super().startup(sockets)
        finally:
            self._startup_ended.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving; requests that outlast the grace are cut.

        uvicorn's own time limit logs an error and a traceback for each of them.
        """
        cutting = asyncio.get_running_loop().call_later(self._grace, self._cut_requests)
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    def _cut_requests(self) -> None:
        """Cancel requests; close connections whose answers have begun, for they stay incomplete."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.cut()
        for task in list(self.server_state.tasks):
            asyncio.get_running_loop().call_soon(task.cancel)  # after its connection is lost

    async def wait_for_address(self) -> str:
        """Return the URL of the address that it listens on; raises `RuntimeError`."""
        await self._startup_ended.wait()
        if not self.started:
            raise RuntimeError("the application did not start")
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Have each signal that ends mailer call `stop`, and the others do nothing."""

    def on_signal() -> None:
        log.info("stopping")
        notify_systemd("STOPPING=1")
        stop()

    handle_signals(on_signal)


def notify_systemd(*states: str) -> None:
    """Send systemd the state of this service, if it wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a service that works is worth more than a word about it
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier,
    ):
        notifier.sendto("\n".join(states).encode(), address)
