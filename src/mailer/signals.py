"""What signals do to a running mailer: end it in order, or nothing.

A signal that is not handled ends a process at once, and leaves unknown what is on the wire.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

import structlog

log = structlog.get_logger()

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU)
"""What service managers, terminals, containers and limits send to end a process."""
IGNORED = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
)
"""What log rotation, scripts and profilers send; mailer has no use for it."""


def handle_signals(stop: Callable[[], None]) -> None:
    """Have `stop` called by each signal that ends mailer, and the others logged and ignored.

    SIGHUP says that the terminal is gone: what was started from one is not to go on unseen, and
    stops. Without a terminal somebody means "reload" by it, and nothing is reloaded: it is ignored,
    as it stays where `nohup` has said so.
    """
    stops, ignored = [*STOPS], [*IGNORED]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        (stops if _has_terminal() else ignored).append(signal.SIGHUP)
    loop = asyncio.get_running_loop()
    for number in stops:
        loop.add_signal_handler(number, stop)
    for number in ignored:
        loop.add_signal_handler(number, partial(_ignore, number))


def _ignore(number: signal.Signals) -> None:
    log.warning("signal_ignored", signal=number.name)


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
