"""Each signal either stops mailer in an orderly way or is ignored; no delivery becomes unknown."""

import os
import signal
import sys

import pytest
from tests.processes import Gateways, MailerProcess, Mailers, until_true

from mailer.sample_data import new_mailing

COUNT_SENDING_OR_UNKNOWN = "SELECT count(*) FROM message WHERE status IN ('sending', 'unknown')"
IGNORED_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO")
WITH_DEFAULT_SIGHUP = (
    sys.executable,
    "-c",
    (
        "import os, signal, sys;"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    ),
)
"""A command prefix: runs a command with the default action of SIGHUP, even if the tests run under
nohup."""
IN_TERMINAL = (
    *WITH_DEFAULT_SIGHUP,
    sys.executable,
    "-c",
    (
        "import fcntl, os, sys, termios;"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    ),
)
"""A command prefix: runs a command with its standard input as its controlling terminal."""


async def create_mailing(mailer: MailerProcess) -> int:
    """Create a mailing to 200 clients and return its id."""
    await mailer.create_clients(200)
    created = await mailer.call("POST", "/mailings", new_mailing(on_unknown="hold"), 201)
    return int(created["id"])


async def test_signal_without_a_meaning_for_mailer_is_logged_and_ignored(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.2)
    mailer = await start_mailer(**gateway.settings)
    mailing_id = await create_mailing(mailer)
    await gateway.until_received(20)
    for name in IGNORED_SIGNALS:
        mailer.process.send_signal(signal.Signals[name])

    async def are_logged() -> bool:
        events = [event for event in mailer.events if event["event"] == "signal_ignored"]
        return {event["signal"] for event in events} == set(IGNORED_SIGNALS)

    await until_true(are_logged)
    assert (await mailer.finished(mailing_id))["delivered_messages"] == 200
    assert await mailer.stop() == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGPWR", "SIGXCPU"])
async def test_signal_that_stops_mailer_leaves_no_message_unknown(
    start_gateway: Gateways, start_mailer: Mailers, name: str
) -> None:
    gateway = await start_gateway(latency=0.2)
    mailer = await start_mailer(**gateway.settings)
    await create_mailing(mailer)
    await gateway.until_received(20)
    assert await mailer.stop(signal.Signals[name]) == 0
    assert await mailer.query(COUNT_SENDING_OR_UNKNOWN) == 0
    assert await mailer.query("SELECT count(*) FROM message WHERE status = 'scheduled'") > 0


async def test_hangup_under_nohup_is_ignored(
    start_gateway: Gateways, start_mailer: Mailers
) -> None:
    gateway = await start_gateway(latency=0.2)
    mailer = await start_mailer(prefix=("nohup",), **gateway.settings)
    mailing_id = await create_mailing(mailer)
    await gateway.until_received(20)
    mailer.process.send_signal(signal.SIGHUP)
    assert (await mailer.finished(mailing_id))["delivered_messages"] == 200


async def test_mailer_stops_in_an_orderly_way_when_its_terminal_is_closed(
    start_gateway: Gateways, database_url: str
) -> None:
    gateway = await start_gateway(latency=0.2)
    terminal_window, terminal = os.openpty()
    mailer = MailerProcess(database_url=database_url, **gateway.settings)
    await mailer.start(prefix=IN_TERMINAL, stdin=terminal)
    os.close(terminal)  # only the process still has it open
    await create_mailing(mailer)
    await gateway.until_received(20)

    os.close(terminal_window)
    no_signal = 0
    assert await mailer.stop(no_signal) == 0
    assert "stopping" in [event["event"] for event in mailer.events]
    assert await mailer.query(COUNT_SENDING_OR_UNKNOWN) == 0


async def test_mailer_continues_when_its_log_cannot_be_written(
    start_gateway: Gateways, database_url: str
) -> None:
    gateway = await start_gateway(latency=0.02)
    mailer = MailerProcess(database_url=database_url, log_level="debug", **gateway.settings)
    await mailer.start(prefix=("env",))  # a process of its own, which writes its log into a pipe
    await mailer.stop_reading()
    await mailer.create_clients(200)
    created = await mailer.call("POST", "/mailings", new_mailing(), 201)
    assert (await mailer.finished(created["id"]))["delivered_messages"] == 200
    mailer.process.send_signal(signal.SIGTERM)
    await mailer.process.wait()
    await mailer.session.close()
