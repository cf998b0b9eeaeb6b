"""Signal handling: each signal either stops mailer in order or is ignored.

A signal without a handler would end the process at once. Then nobody could know whether the
messages that were being sent have been accepted.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial

import structlog

log = structlog.get_logger()

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGPWR, signal.SIGXCPU)
"""Signals by which service managers, terminals, containers and resource limits end a process."""
IGNORED_SIGNALS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
)
"""Signals from log rotation, scripts and profilers, which mailer does not use."""


def handle_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Call `stop` on each signal that ends mailer; log and ignore the other signals.

    SIGHUP says that the terminal was closed, so it stops mailer if mailer has a terminal. Without a
    terminal it asks a service to reload its configuration, and calls `reload`. If `nohup` started
    mailer, SIGHUP is ignored already and stays so.
    """
    loop = asyncio.get_running_loop()
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop if _has_terminal() else reload)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    for number in IGNORED_SIGNALS:
        loop.add_signal_handler(number, partial(_ignore, number))


def _ignore(number: signal.Signals) -> None:
    log.warning("signal_ignored", signal=number.name)


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
