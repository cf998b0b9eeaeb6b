"""The sandbox gateway and mailer's workers as processes of the soak."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Self

import msgspec

import harness
from mailer.loop_monitor import MIN_REPORTED_BLOCK, Block
from soaking.journal import (
    GATEWAY_TIMEOUT,
    JITTER,
    LATENCY,
    LEASE,
    RETRY_ATTEMPTS,
    RETRY_CAP,
    Journal,
)
from soaking.wall_clock import WallClock

PORTS = range(20_000, 30_000)
"""Ports for the gateway. The system does not use them for outgoing connections, so the gateway's
port stays free while it is down."""
GATEWAY_OPTIONS = {
    "latency": LATENCY,
    "jitter": JITTER,
    "error-rate": 0.03,
    "reject-rate": 0.02,
    "malformed-rate": 0.03,
    "hang-rate": 0.01,
    "reset-rate": 0.03,
    "rate-limit": 190,
}
"""Options of `mailer sandbox`: its latency in seconds, the shares of faults, requests a second."""
SETTINGS = {
    "auth": "none",
    "port": 0,
    "log_format": "json",
    "log_level": "info",
    "gateway_token": harness.TOKEN,
    "gateway_timeout": GATEWAY_TIMEOUT,
    "gateway_concurrency": 20,
    "gateway_rate": 100,
    "lease": LEASE,
    "retry_attempts": RETRY_ATTEMPTS,
    "retry_base": 0.2,
    "retry_cap": RETRY_CAP,
    "breaker_reset": 2,
    "shutdown_grace": 5,
}
"""Settings of the workers. Times are shorter than usual, so that much happens within minutes."""


class Sandbox:
    """The sandbox gateway, which can be stopped and started again on the same port.

    Each start writes a new log into `folder`.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._seed = seed
        self._port = _free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.logs: list[Path] = []

    @property
    def url(self) -> str:
        """The URL of the gateway; it stays the same while the gateway is down."""
        return f"http://127.0.0.1:{self._port}/send/"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the gateway; it has no memory of earlier requests."""
        log = self._folder / f"requests-{len(self.logs)}.jsonl"
        seed = self._seed + len(self.logs)
        options = GATEWAY_OPTIONS | {"port": self._port, "seed": seed, "log": log}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mailer", "sandbox", "--token", harness.TOKEN),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.logs.append(log)
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        line = await asyncio.wait_for(self._process.stdout.readline(), harness.PROCESS_TIMEOUT)
        if line.decode().strip() != self.url:
            raise RuntimeError("the sandbox gateway did not start")
        # a full pipe would block the gateway
        self._draining = asyncio.create_task(self._process.stdout.read())

    async def stop(self) -> None:
        """Stop the gateway, which aborts open requests and completes its log."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGCONT)  # a frozen process would not react to the stop
            await harness.stop(self._process)
            await self._draining

    def signal(self, signal_number: signal.Signals) -> None:
        """Freeze the gateway (SIGSTOP), or let it continue (SIGCONT)."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal_number)


def _free_port() -> int:
    """Return the first free port of `PORTS`."""
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port for the gateway")


class Worker:
    """A `mailer serve` process, from its start to its end.

    `name` is also its database role, which shows in the record which worker made a change.
    """

    def __init__(
        self,
        name: str,
        database_url: str,
        gateway_url: str,
        journal: Journal,
        clock: WallClock,
    ) -> None:
        self.name = name
        self.address: str | None = None
        """The address of the API; None while the worker does not serve."""
        self.is_serving = asyncio.Event()
        """Set when the worker has started to serve, and never unset."""
        settings = SETTINGS | {"database_url": database_url, "gateway_url": gateway_url}
        inherited = {key: value for key, value in os.environ.items() if "MAILER_" not in key}
        own = {f"MAILER_{key.upper()}": str(value) for key, value in settings.items()}
        self._environ = inherited | own | clock.environ
        self._journal = journal
        self._process: asyncio.subprocess.Process | None = None

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while the worker runs."""
        return None if self._process is None else self._process.returncode

    async def start(self, folder: Path) -> None:
        """Start the worker; `address` is set when it logs that it has started."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *harness.SERVE_MONITORED, str(MIN_REPORTED_BLOCK)),
            env=self._environ,
            cwd=folder,  # a folder without a .env file
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None  # noqa: S101  # it is a pipe
        self._reading = asyncio.create_task(self._read(self._process.stderr))

    async def end(self, end_signal: signal.Signals) -> None:
        """Send a signal and wait until the worker has ended.

        A worker that does not end in time is killed and counts as a violation.
        """
        self.address = None
        self._journal.uptimes.get(self.name, []).append(time.time())
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(end_signal)
        try:
            await asyncio.wait_for(self._process.wait(), harness.PROCESS_TIMEOUT)
        except TimeoutError:
            self._journal.add_violation(f"{self.name} did not stop")
            self._process.kill()
        await self._reading

    def signal(self, signal_number: signal.Signals) -> None:
        """Freeze the worker (SIGSTOP), or let it continue (SIGCONT)."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal_number)

    async def ended(self) -> None:
        """Wait until the worker has ended, for any reason."""
        if self._process is not None:
            await self._process.wait()

    async def _read(self, log: asyncio.StreamReader) -> None:
        """Read the log until the worker ends.

        Lines that are not JSON, such as a traceback, are one violation together.
        """
        other_lines: list[str] = []
        async for line in log:
            try:
                self._add_event(msgspec.json.decode(line, type=dict[str, Any]))
            except msgspec.DecodeError:
                other_lines.append(line.decode(errors="replace"))
        if other_lines:
            self._journal.add_violation(f"{self.name} printed {' '.join(other_lines)}")
        self.address = None

    def _add_event(self, event: dict[str, Any]) -> None:
        """Add what an event of the log says to the journal; an error is a violation."""
        name, level = str(event.get("event")), event.get("level")
        # a block before the worker serves delays no request
        if name == "event_loop_blocked" and self.is_serving.is_set():
            self._journal.blocks.append((self.name, msgspec.convert(event, Block)))
        if name == "started":
            self.address = str(event["address"])
            self.is_serving.set()
            self._journal.uptimes[self.name] = [time.time()]
        if name.startswith("breaker_"):
            # not the event's own time, because the worker's wall clock is wrong
            age = time.monotonic() - event["monotonic"]
            self._journal.add_breaker_event(self.name, time.time() - age, event.get("seconds"))
        if level not in {"debug", "info"}:
            self._journal.warnings[f"{name.strip()[:30]} {event.get('at', '')}".rstrip()] += 1
        if level not in {"debug", "info", "warning"}:
            self._journal.add_violation(f"{self.name} logged {event}")
