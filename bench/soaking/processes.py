"""Workers as processes of the soak."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

import harness
from mailer.loop_monitor import MIN_REPORTED_BLOCK, Block
from soaking.journal import LEASE, RECEIPT_WAIT, RETRY_ATTEMPTS, RETRY_CAP, Journal
from soaking.wall_clock import WallClock

SETTINGS = {
    "auth": "none",
    "port": 0,
    "log_format": "json",
    "log_level": "info",
    "lease": LEASE,
    "retry_attempts": RETRY_ATTEMPTS,
    "retry_base": 0.2,
    "retry_cap": RETRY_CAP,
    "breaker_reset": 2,
    "receipt_wait": RECEIPT_WAIT,
    "shutdown_grace": 5,
}
"""Settings of the workers. Times are shorter than usual, so that much happens within minutes."""

TASKS_TIMEOUT = 2.0
"""Seconds in which a worker that does not stop writes the stacks of its tasks."""


class Worker:
    """A `mailer serve` process, from its start to its end.

    `name` is also its database role, which shows in the record which worker made a change.
    `settings` are further settings of mailer, in lower case.
    """

    def __init__(
        self, name: str, settings: dict[str, object], journal: Journal, clock: WallClock
    ) -> None:
        self.name = name
        self.address: str | None = None
        """The address of the API; None while the worker does not serve."""
        self.is_serving = asyncio.Event()
        """Set when the worker has started to serve, and never unset."""
        inherited = {key: value for key, value in os.environ.items() if "MAILER_" not in key}
        own = {f"MAILER_{key.upper()}": str(value) for key, value in (SETTINGS | settings).items()}
        self._environ = inherited | own | clock.environ
        self._journal = journal
        self._must_reload = False
        """Whether the file of gateways has changed before the worker served."""
        self._started_at = time.time()
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
            self._process.send_signal(signal.SIGRTMIN)  # let it write why
            await asyncio.sleep(TASKS_TIMEOUT)
            self._process.kill()
        await self._reading

    def signal(self, signal_number: signal.Signals) -> None:
        """Send a signal to the worker if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal_number)

    def reload(self) -> None:
        """Let the worker read the file of gateways again, or later if it does not serve yet.

        Before, it may have read the file already, but SIGHUP would end it.
        """
        if self.is_serving.is_set():
            self.signal(signal.SIGHUP)
        else:
            self._must_reload = True

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
        name = str(event.get("event"))
        # a block before the worker serves delays no request
        if name == "event_loop_blocked" and self.is_serving.is_set():
            self._journal.blocks.append((self.name, msgspec.convert(event, Block)))
        if name == "started":
            self.address = str(event["address"])
            self.is_serving.set()
            self._journal.uptimes[self.name] = [time.time()]
            if self._must_reload:
                self.reload()
        # not the event's own time, because the worker's wall clock is wrong
        at = time.time() - (time.monotonic() - event.get("monotonic", time.monotonic()))
        if name.startswith("breaker_"):
            gateway, seconds = event["gateway"], event.get("seconds")
            self._journal.add_breaker_event(self.name, gateway, at, seconds)
        if name == "gateways_reloaded":
            self._journal.add_reload(self.name, event["gateways"], at)
            if self._must_reload:
                self._journal.extend_configurations(self._started_at, at)
                self._must_reload = False
        if name == "routes_changed":
            self._journal.route_events.append((at, f"{self.name} changed routes"))
        self._judge_event(name, event)

    def _judge_event(self, name: str, event: dict[str, Any]) -> None:
        """Count a warning of the log; an error is a violation."""
        level = event.get("level")
        if level not in {"debug", "info"}:
            self._journal.warnings[f"{name.strip()[:30]} {event.get('at', '')}".rstrip()] += 1
        if name == "tasks":
            print(f"{self.name}: {event['stacks']}")
        elif level not in {"debug", "info", "warning"}:
            self._journal.add_violation(f"{self.name} logged {event}")
