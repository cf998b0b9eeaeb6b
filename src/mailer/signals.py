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


def handle_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on each signal that ends mailer; log and ignore the other signals.

    SIGHUP says that the terminal was closed, so it stops mailer if mailer has a terminal. Without a
    terminal it usually asks a service to reload its settings: mailer never does, and ignores it. If
    `nohup` started mailer, SIGHUP is ignored already and stays so.
    """
    stop_signals, ignored_signals = [*STOP_SIGNALS], [*IGNORED_SIGNALS]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        (stop_signals if _has_terminal() else ignored_signals).append(signal.SIGHUP)
    loop = asyncio.get_running_loop()
    for number in stop_signals:
        loop.add_signal_handler(number, stop)
    for number in ignored_signals:
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
