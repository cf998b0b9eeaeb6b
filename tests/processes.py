"""Real mailer processes and sandbox gateways on loopback, started by tests."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

import mailer
from mailer import sample_data
from mailer.db.engine import connect, create_engine
from mailer.gateway.sandbox import Faults, SandboxGateway, SandboxRequest
from mailer.statistics.verify import find_differences
from tests import prefork
from tests.event_timeout import EVENT_TIMEOUT
from tests.wall_clock import WallClock

Value = TypeVar("Value")


class MailerProcess:
    """A `mailer serve` process, its log, and an HTTP client of it.

    `settings` are settings of mailer, in lower case; by default it needs no authentication and
    listens on any free port. `wall_clock` is a clock that the test sets.
    """

    def __init__(self, wall_clock: WallClock | None = None, /, **settings: str) -> None:
        self.loader = wall_clock.loader if wall_clock else ()
        self.environ = {
            **{name: value for name, value in os.environ.items() if "MAILER" not in name},
            **(wall_clock.environ if wall_clock else {}),
            "MAILER_AUTH": "none",
            "MAILER_PORT": "0",
            "MAILER_LOG_FORMAT": "json",
            **{f"MAILER_{name.upper()}": value for name, value in settings.items()},
        }
        self.database_url = settings.get("database_url", "")
        self.events: list[dict[str, Any]] = []
        """The log so far; a line that is not JSON is an event named `line`."""

    async def start(
        self,
        cwd: str | None = None,
        python_path: str | None = None,
        prefix: Sequence[str] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> None:
        """Start the process and wait until it is ready."""
        await self.launch(cwd, python_path, prefix, stdin, until="started")

    async def launch(
        self,
        cwd: str | None = None,
        python_path: str | None = None,
        prefix: Sequence[str] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
        *,
        until: str = "listening",
    ) -> None:
        """Start the process and wait until it has logged the event `until`.

        The default event comes when the process listens, whether its database is available or not.
        By default the process is forked by `tests.prefork`, with the code that the test imports.
        With `python_path` it is a new Python with the code there. With `prefix`, a command such as
        `nohup` runs a new Python with the code that the test imports. A new Python starts in the
        folder `cwd`, with the standard input `stdin`.
        """
        if prefix and python_path is None:
            python_path = str(Path(mailer.__file__).parents[1])
        self.process = (
            await prefork.start(self.environ, Path(mailer.__file__).parents[1], self.loader)
            if python_path is None
            else await asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, "-m", "mailer", "serve"),
                env=self.environ | {"PYTHONPATH": python_path},
                cwd=cwd,
                stdin=stdin,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # without a terminal, like a service
                stderr=asyncio.subprocess.PIPE,
            )
        )
        self._log_task = asyncio.create_task(self._read_log())
        self.address: str = (await self.event(until))["address"]
        # the server may close a kept connection while the next request is being sent on it
        connector = aiohttp.TCPConnector(force_close=True)
        self.session = aiohttp.ClientSession(self.address, connector=connector)

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.events.append(msgspec.json.decode(line))
            except msgspec.DecodeError:
                self.events.append({"event": "line", "line": line.decode()})

    async def stop_reading(self) -> None:
        """Close the reading end of the log, so that further writes of the process fail."""
        self._log_task.cancel()
        await asyncio.wait([self._log_task])
        if isinstance(self.process, asyncio.subprocess.Process):
            self.process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]  # noqa: SLF001  # the only way to close the pipe

    async def event(self, name: str) -> dict[str, Any]:
        """Wait until the log contains an event with this name, and return the first one."""

        async def find_event() -> dict[str, Any] | None:
            assert self.process.returncode is None, self.events[-20:]
            return next((event for event in self.events if event["event"] == name), None)

        return await until(find_event)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        status = await asyncio.wait_for(self.process.wait(), EVENT_TIMEOUT)
        await self._log_task
        await self.session.close()
        return status

    async def until_ready(self) -> None:
        """Wait until the readiness probe succeeds, so that the database is available."""

        async def is_ready() -> bool:
            async with self.session.get("/health/ready") as response:
                return response.status == 200

        await until_true(is_ready)

    async def call(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        """Call the API, expect a status, and return the JSON of the response."""
        path = path if path.startswith("/health") else f"/api/v1{path}"
        async with self.session.request(method, path, json=body) as response:
            assert response.status == status, (response.status, await response.text())
            content = await response.read()
            return msgspec.json.decode(content) if content else None

    async def mailing(self, mailing_id: int) -> dict[str, Any]:
        """Return a mailing as the API returns it."""
        mailing: dict[str, Any] = await self.call("GET", f"/mailings/{mailing_id}")
        return mailing

    async def finished(self, mailing_id: int, within: float = EVENT_TIMEOUT) -> dict[str, Any]:
        """Wait until a mailing is finished, at most `within` seconds, and return it."""

        async def find_finished() -> dict[str, Any] | None:
            mailing = await self.mailing(mailing_id)
            return mailing if mailing["status"] == "finished" else None

        return await until(find_finished, within)

    async def create_clients(self, count: int, **attributes: Sequence[str]) -> list[int]:
        """Create clients in its database; `attributes` as of `sample_data.create_clients`."""
        connection = await connect(self.database_url)
        try:
            return await sample_data.create_clients(connection, count, **attributes)
        finally:
            await connection.close()

    async def query(self, statement: str, *values: object) -> Any:
        """Return the value of a query with one row and one column."""
        connection = await connect(self.database_url)
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()


async def until(
    probe: Callable[[], Awaitable[Value | None]], within: float = EVENT_TIMEOUT
) -> Value:
    """Call `probe` until it returns a value other than None, and return the value.

    Raises `TimeoutError` after `within` seconds. Calls use processor time, so the pauses between
    them become longer, up to 0.2 s.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with asyncio.timeout(within):
        while (value := await probe()) is None:
            await asyncio.sleep(min(0.02 + (loop.time() - started_at) / 10, 0.2))
        return value


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Call `condition` until it returns True, as `until` does."""

    async def probe() -> bool | None:
        return await condition() or None

    await until(probe)


class LoopLag:
    """Measures how late this event loop runs on a busy machine, and so how late it sees requests.

    The sandbox gateway runs in this loop, so its arrival times may be too late by this much.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds; the longest delay so far."""

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started_at = loop.time()
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, loop.time() - started_at)


class Gateway:
    """A sandbox gateway, mailer's own gateway for tests, that keeps the requests it receives."""

    def __init__(self, faults: Faults) -> None:
        self.received: list[SandboxRequest] = []
        self.sandbox = SandboxGateway(faults, token="secret", on_request=self.received.append)  # noqa: S106  # of a test
        self.url = ""

    async def until_received(self, count: int) -> None:
        """Wait until `count` requests have arrived."""

        async def have_arrived() -> bool:
            return len(self.received) >= count

        await until_true(have_arrived)

    @property
    def ids(self) -> list[int]:
        """The message ids of all requests so far, in order."""
        return [request.id for request in self.received if request.id is not None]

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which mailer sends to this gateway."""
        return {"gateway_url": self.url, "gateway_token": "secret"}


Gateways = Callable[..., Awaitable[Gateway]]
"""Starts a sandbox gateway; the arguments are fields of `Faults`, such as `latency=0.1`."""
Mailers = Callable[..., Awaitable[MailerProcess]]
"""Starts a mailer process and waits until it is ready; the arguments are settings."""


@contextlib.asynccontextmanager
async def gateways() -> AsyncIterator[Gateways]:
    """Yield a function that starts sandbox gateways; they are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**faults: Any) -> Gateway:
            gateway = Gateway(Faults(**faults))
            gateway.url = await stack.enter_async_context(gateway.sandbox.run())
            return gateway

        yield start


@contextlib.asynccontextmanager
async def mailers(database_url: str) -> AsyncIterator[Mailers]:
    """Yield a function that starts mailer processes on a database.

    At the end the processes are killed, and all counts in the database must equal the rows.
    """
    started: list[MailerProcess] = []

    async def start(
        wall_clock: WallClock | None = None, /, prefix: Sequence[str] = (), **settings: str
    ) -> MailerProcess:
        process = MailerProcess(wall_clock, **{"database_url": database_url} | settings)
        started.append(process)
        await process.start(prefix=prefix)
        return process

    yield start
    for process in started:
        await process.stop(signal.SIGKILL)
    engine = create_engine(database_url)
    assert await find_differences(engine) == []
    await engine.dispose()


def run(*arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of mailer to its end; `stdin` is the text of its standard input."""
    environ = {name: value for name, value in os.environ.items() if "MAILER" not in name}
    environ |= {f"MAILER_{name.upper()}": value for name, value in settings.items()}
    path = Path(mailer.__file__).parents[1]
    return prefork.run(arguments, environ, path, stdin, within=EVENT_TIMEOUT)
