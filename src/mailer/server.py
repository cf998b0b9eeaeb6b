"""The operating system around the HTTP server: listening socket, signals, systemd notifications."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable

import structlog

from mailer.errors import StartError, UnavailableError
from mailer.signals import handle_signals

log = structlog.get_logger()

TRANSIENT_LISTEN_ERRORS = frozenset(
    {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE}
)
"""Errors that may pass: another process still listens there, the address is not assigned yet, or
too many files are open."""
LISTEN_BACKLOG = 1024
"""Connections that may wait until mailer accepts them."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on TCP.

    Raises `StartError` if host or port is wrong, and `UnavailableError` if it may work later.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=LISTEN_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = f"MAILER_HOST, MAILER_PORT: cannot listen on {host}:{port}: {reason}"
        is_dns_unavailable = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        if is_dns_unavailable or getattr(error, "errno", None) in TRANSIENT_LISTEN_ERRORS:
            raise UnavailableError(message) from error
        raise StartError(message) from error


def url_of(listening: socket.socket) -> str:
    """Return the HTTP URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def act_on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Call `stop` on each signal that ends mailer, and `reload` on SIGHUP without a terminal."""

    def on_signal() -> None:
        log.info("stopping")
        notify_systemd("STOPPING=1")
        stop()

    handle_signals(on_signal, reload)


def notify_systemd(*states: str) -> None:
    """Send states of this service, such as `READY=1`, to systemd if it runs under systemd.

    See sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket, whose address starts with NUL
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a failed notification must not stop the service
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier,
    ):
        notifier.sendto("\n".join(states).encode(), address)
