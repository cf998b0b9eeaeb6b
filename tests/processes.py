"""The real process and a real gateway on loopback, for tests to start."""

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
from mailer.db.engine import connect, create_engine
from mailer.gateway.sandbox import Faults, SandboxGateway, Taken
from mailer.report.verify import differences
from tests import nursery
from tests.patience import PATIENCE
from tests.wall_clock import WallClock

Found = TypeVar("Found")


class MailerProcess:
    """`mailer serve`, and its API."""

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

    async def start(
        self,
        cwd: str | None = None,
        python_path: str | None = None,
        prefix: Sequence[str] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> None:
        """Start it and wait until it works."""
        await self.launch(cwd, python_path, prefix, stdin, until="started")

    async def launch(  # how a program can be started
        self,
        cwd: str | None = None,
        python_path: str | None = None,
        prefix: Sequence[str] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
        *,
        until: str = "listening",
    ) -> None:
        """Start it and wait until it listens, whether its database is there or not.

        On the very code that the test imports. With `python_path` it is the program itself on other
        code; with `prefix`, the command that runs it, such as `nohup`, the program itself on this.
        """
        if prefix and python_path is None:
            python_path = str(Path(mailer.__file__).parents[1])
        self.process = (
            await nursery.start(self.environ, Path(mailer.__file__).parents[1], self.loader)
            if python_path is None
            else await asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, "-m", "mailer", "serve"),
                env=self.environ | {"PYTHONPATH": python_path},
                cwd=cwd,
                stdin=stdin,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # without a terminal, as a service has none
                stderr=asyncio.subprocess.PIPE,
            )
        )
        self._reading = asyncio.create_task(self._read_log())
        self.address: str = (await self.event(until))["address"]
        # a connection that is kept may be closed by the server under the next request
        fresh = aiohttp.TCPConnector(force_close=True)
        self.session = aiohttp.ClientSession(self.address, connector=fresh)

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.events.append(msgspec.json.decode(line))
            except msgspec.DecodeError:
                self.events.append({"event": "line", "line": line.decode()})

    async def stop_reading(self) -> None:
        """Close its log: what it still writes there finds no reader."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        if isinstance(self.process, asyncio.subprocess.Process):
            self.process._transport.get_pipe_transport(2).close()  # type: ignore[attr-defined]  # noqa: SLF001  # its reader cannot be closed otherwise

    async def event(self, name: str) -> dict[str, Any]:
        """Wait for an event in the log."""

        async def find() -> dict[str, Any] | None:
            assert self.process.returncode is None, self.events[-20:]
            return next((event for event in self.events if event["event"] == name), None)

        return await until(find)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        status = await asyncio.wait_for(self.process.wait(), PATIENCE)
        await self._reading
        await self.session.close()
        return status

    async def call(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        """Call the API, expect a status, and return the answer's JSON."""
        path = path if path.startswith("/health") else f"/api/v1{path}"
        async with self.session.request(method, path, json=body) as answer:
            assert answer.status == status, (answer.status, await answer.text())
            content = await answer.read()
            return msgspec.json.decode(content) if content else None

    async def mailing(self, mailing_id: int) -> dict[str, Any]:
        found: dict[str, Any] = await self.call("GET", f"/mailings/{mailing_id}")
        return found

    async def finished(self, mailing_id: int, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until a mailing is finished and return it."""

        async def find() -> dict[str, Any] | None:
            mailing = await self.mailing(mailing_id)
            return mailing if mailing["status"] == "finished" else None

        return await until(find, patience)

    async def query(self, statement: str, *values: object) -> Any:
        """Ask the database for one value."""
        connection = await connect(self.database_url)
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()


async def until(look: Callable[[], Awaitable[Found | None]], patience: float = PATIENCE) -> Found:
    """Look again and again until something is found.

    Each look costs processor time that others need, so the longer the wait, the rarer they are.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(patience):
        while (found := await look()) is None:
            await asyncio.sleep(min(0.02 + (loop.time() - began) / 10, 0.2))
        return found


class LoopLag:
    """How late this process may have seen what came: a busy machine keeps its loop waiting."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds."""

    async def watch(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, loop.time() - began)


class Gateway:
    """A sandbox gateway that keeps what it takes."""

    def __init__(self, faults: Faults) -> None:
        self.taken: list[Taken] = []
        self.sandbox = SandboxGateway(faults, token="secret", on_taken=self.taken.append)  # noqa: S106  # of a test
        self.url = ""

    async def until_taken(self, count: int) -> None:
        """Wait until so many requests have come."""

        async def look() -> bool | None:
            return len(self.taken) >= count or None

        await until(look)

    @property
    def ids(self) -> list[int]:
        """The messages of every request so far, in order."""
        return [taken.id for taken in self.taken if taken.id is not None]

    @property
    def settings(self) -> dict[str, str]:
        return {"gateway_url": self.url, "gateway_token": "secret"}


Gateways = Callable[..., Awaitable[Gateway]]
Mailers = Callable[..., Awaitable[MailerProcess]]


@contextlib.asynccontextmanager
async def gateways() -> AsyncIterator[Gateways]:
    """Give what starts sandbox gateways, and stop them."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**faults: Any) -> Gateway:
            gateway = Gateway(Faults(**faults))
            gateway.url = await stack.enter_async_context(gateway.sandbox.run())
            return gateway

        yield start


@contextlib.asynccontextmanager
async def mailers(database_url: str) -> AsyncIterator[Mailers]:
    """Give what starts mailer processes on a database, whose ledgers must add up at the end."""
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
    assert await differences(engine) == []  # whatever has happened, the numbers add up
    await engine.dispose()


def run(*arguments: str, given: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself; `given` is its standard input."""
    environ = {name: value for name, value in os.environ.items() if "MAILER" not in name}
    environ |= {f"MAILER_{name.upper()}": value for name, value in settings.items()}
    path = Path(mailer.__file__).parents[1]
    return nursery.run(arguments, environ, path, given, within=PATIENCE)
