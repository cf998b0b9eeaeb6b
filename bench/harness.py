"""Shared by the benchmarks: real processes, calls of the API, and figures with their limits."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import asyncpg
import msgspec

from mailer import sample_data
from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.db.engine import create_engine
from mailer.loop_monitor import Block
from sink import SinkReport

TOKEN = "bench"  # noqa: S105  # the gateways exist only as long as a benchmark
PROCESS_TIMEOUT = 60.0
"""Seconds to wait for a process to start or to stop."""
POLL_INTERVAL = 0.05
"""Seconds between two reads of a mailing's progress."""
SELECT_STATUS = "SELECT status FROM mailing WHERE id = $1"
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

OPERATOR_CODES = sample_data.ALL_OPERATOR_CODES[:90]
TIME_ZONES = ("Europe/Moscow", "Asia/Yekaterinburg", "Asia/Vladivostok")


class Mailer:
    """A `mailer serve` process, its API and a connection to its database."""

    def __init__(
        self, process: asyncio.subprocess.Process, database_url: str, *, requires_key: bool
    ) -> None:
        self.pid = process.pid
        self.database_url = database_url
        self.key: str | None = None
        """The API key of every call; None when the API needs none."""
        self.blocks: list[Block] = []
        """Blocks of its event loop, if it runs as `bench/serve_monitored.py`."""
        self._requires_key = requires_key
        self._process = process

    async def __aenter__(self) -> Self:
        self.address = await asyncio.wait_for(self._wait_for_address(), PROCESS_TIMEOUT)
        self._log_task = asyncio.create_task(self._follow_log())
        self.database: asyncpg.Connection = await asyncpg.connect(self.database_url)
        if self._requires_key:
            self.key = await _create_admin_key(self.database_url)
        self._session = aiohttp.ClientSession(self.address, headers=self.headers)
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every call."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self.database.close()
        await stop(self._process)
        await self._log_task

    async def _wait_for_address(self) -> str:
        async for event in self._log_events():
            if event.get("event") == "started":
                return str(event["address"])
        message = "mailer did not start"
        raise RuntimeError(message)

    async def _follow_log(self) -> None:
        """Keep blocks of the event loop; print warnings and errors, which may spoil a figure."""
        async for event in self._log_events():
            if event.get("event") == "event_loop_blocked":
                self.blocks.append(msgspec.convert(event, Block))
            elif event.get("level") not in {"debug", "info"}:
                print("mailer:", event, file=sys.stderr)

    async def _log_events(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stderr is not None  # noqa: S101  # it is a pipe
        async for line in self._process.stderr:
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                yield {"event": line.decode().rstrip()}

    async def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        """Call the API and return the JSON of the response.

        Raises `RuntimeError` for a status of 400 or above.
        """
        async with self._session.request(method, f"/api/v1{path}", json=body) as response:
            content = await response.read()
            if not response.ok:
                message = f"{method} {path}: {response.status} {content.decode()}"
                raise RuntimeError(message)
            return msgspec.json.decode(content) if content else None

    async def upload(self, path: str, content: bytes, media_type: str) -> int:
        """Send a file to the API and return the status of the response, whatever it is."""
        headers = {"Content-Type": media_type}
        async with self._session.post(f"/api/v1{path}", data=content, headers=headers) as response:
            await response.read()
            return response.status

    async def get(self, path: str) -> bytes:
        """Return the body of a GET of any path.

        Raises `RuntimeError` for a status of 400 or above.
        """
        async with self._session.get(path) as response:
            content = await response.read()
            if not response.ok:
                message = f"GET {path}: {response.status} {content.decode()}"
                raise RuntimeError(message)
            return content

    async def create_clients(self, count: int) -> list[int]:
        """Create clients, and return their ids; see `create_clients` below."""
        return await create_clients(self.database, count)

    async def checkpoint(self) -> None:
        """Run CHECKPOINT in the embedded database, as its superuser."""
        superuser = await asyncpg.connect(self.database_url, user="postgres")
        try:
            await superuser.execute("CHECKPOINT")
        finally:
            await superuser.close()

    async def create_mailing(self, *, starts_in: float = 0, **fields: object) -> dict[str, Any]:
        """Create a mailing that starts in `starts_in` seconds, and return it.

        By default it lasts an hour and is for all clients; `fields` override this.
        """
        created: dict[str, Any] = await self.call(
            "POST", "/mailings", sample_data.new_mailing(starts_in=starts_in) | fields
        )
        return created

    async def wait_until_finished(self, mailing_id: int, within: float = 600) -> None:
        """Wait until a mailing is finished; queries the database, to put no load on mailer.

        Raises `TimeoutError` after `within` seconds.
        """
        async with asyncio.timeout(within):
            while await self.database.fetchval(SELECT_STATUS, mailing_id) != "finished":  # noqa: ASYNC110  # it happens in another process
                await asyncio.sleep(POLL_INTERVAL)


async def create_clients(database: asyncpg.Connection, count: int) -> list[int]:
    """Create clients, vacuum the table, and return their ids.

    Every tenth has the tag `vip`, the ten newest have the tag `last`.
    """
    ids: list[int] = []
    for part, tags in ((count - 10, ("vip", *[None] * 9)), (10, ("last",))):
        ids += await sample_data.create_clients(
            database, part, operator_codes=OPERATOR_CODES, tags=tags, time_zones=TIME_ZONES
        )
    await database.execute("VACUUM ANALYZE client")
    return ids


SERVE = ("-m", "mailer", "serve")
SERVE_MONITORED = (str(Path(__file__).with_name("serve_monitored.py")),)
"""Arguments of Python: mailer as it is, and mailer that reports blocks of its event loop."""


@asynccontextmanager
async def serve(
    gateway_url: str,
    program: Sequence[str] = SERVE,
    python: str = sys.executable,
    **settings: object,
) -> AsyncIterator[Mailer]:
    """Run mailer in its own process on a new data folder; it sends to `gateway_url`.

    mailer uses the setting `database_url` if it is given, else a new embedded database.
    `python` is the interpreter; another one runs the version of mailer installed there.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data_dir = Path(folder)
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        own_settings = {
            "auth": "none",
            "port": 0,
            "log_format": "json",
            "data_dir": data_dir,
            "gateway_url": gateway_url,
            "gateway_token": TOKEN,
            **settings,
        }
        environ = clean_environ() | {
            f"MAILER_{name.upper()}": str(value) for name, value in own_settings.items()
        }
        if python != sys.executable:
            environ.pop("PYTHONPATH", None)
        process = await asyncio.create_subprocess_exec(
            *(python, *program),
            env=environ,
            cwd=folder,  # a folder without a .env file
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = str(settings.get("database_url") or embedded_url(data_dir))
            requires_key = own_settings["auth"] == "required"
            async with Mailer(process, url, requires_key=requires_key) as mailer:
                yield mailer
        finally:
            await stop(process)


async def _create_admin_key(database_url: str) -> str:
    """Create an API key with scope `admin` and return it."""
    engine = create_engine(database_url)
    try:
        async with engine.begin() as connection:
            new = keys.NewKey(name=f"bench {time.time_ns()}", scope="admin")
            _, secret = await keys.create(connection, new, COMMAND_LINE)
    finally:
        await engine.dispose()
    return secret


def clean_environ() -> dict[str, str]:
    """Return the environment without mailer's settings; PYTHONPATH becomes absolute."""
    environ = {name: value for name, value in os.environ.items() if "MAILER_" not in name}
    if path := environ.get("PYTHONPATH"):
        environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return environ


def embedded_url(data_dir: Path) -> str:
    """Return the URL of the embedded database, over its socket."""
    return f"postgresql://mailer@/mailer?host={quote(f'{data_dir}/postgresql/data')}"


async def stop(process: asyncio.subprocess.Process) -> None:
    """Stop a process: SIGTERM first, SIGKILL if it is still running after the timeout."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), PROCESS_TIMEOUT)
        except TimeoutError:
            continue


class Gateway:
    """`mailer sandbox` in its own process; its log is complete once the process has stopped."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def requests(self) -> list[dict[str, Any]]:
        """Return its log: one row per request, with `id`, `arrived` (Unix µs) and `kind`."""
        with self._log.open("rb") as rows:
            return [msgspec.json.decode(row) for row in rows]


@asynccontextmanager
async def sandbox(log: Path, *options: str) -> AsyncIterator[Gateway]:
    """Run the sandbox gateway in its own process, with options of `mailer sandbox`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "sandbox", "--port", "0", "--token", TOKEN),
        *("--log", str(log), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        url = await asyncio.wait_for(process.stdout.readline(), PROCESS_TIMEOUT)
        draining = asyncio.create_task(process.stdout.read())
        yield Gateway(url.decode().strip(), log)
    finally:
        await stop(process)
        await draining


class SinkProcess:
    """`bench/sink.py` in its own process: a gateway that uses almost no processor time."""

    def __init__(self, url: str, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self._process = process

    async def read_report(self) -> SinkReport:
        """Return what the sink received since the last report."""
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        self._process.send_signal(signal.SIGUSR1)
        line = await asyncio.wait_for(self._process.stdout.readline(), PROCESS_TIMEOUT)
        return msgspec.json.decode(line, type=SinkReport)


@asynccontextmanager
async def sink(latency: float = 0) -> AsyncIterator[SinkProcess]:
    """Run a sink that answers each request after `latency` seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("sink.py")), "--latency", str(latency)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        url = await asyncio.wait_for(process.stdout.readline(), PROCESS_TIMEOUT)
        yield SinkProcess(url.decode().strip(), process)
    finally:
        await stop(process)


async def send_to_all(mailer: Mailer, sink: SinkProcess, clients: int) -> SinkReport:
    """Send one mailing to all clients through a sink.

    Raises `RuntimeError` when the number of requests is not the number of clients.
    """
    await mailer.wait_until_finished((await mailer.create_mailing())["id"])
    report = await sink.read_report()
    if report.requests != clients:
        message = f"{clients} clients, but {report.requests} requests"
        raise RuntimeError(message)
    return report


def memory(pid: int) -> tuple[int, int]:
    """Return the resident and the proportional set size of a process, in bytes."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_SIZE
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return resident, int(rollup.partition("\nPss:")[2].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def exact_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process's live threads, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def postmaster_of(pid: int) -> int:
    """Return the process id of the PostgreSQL server that mailer `pid` has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def parent_of(pid: int) -> int:
    """Return the parent process id; the parent of a session's backend is its PostgreSQL server."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and of its present children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) + sum(cpu_seconds(int(child)) for child in children)


def server_cpu_seconds(postmaster: int) -> float:
    """Return the processor seconds of a PostgreSQL server, with all its children, ended or not."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    seconds = cpu_seconds(postmaster)
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended: counted below
            seconds += cpu_seconds(int(child))
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    return seconds + (int(fields[13]) + int(fields[14])) / CLOCK_TICKS


class Verdict:
    """Prints figures beside their limits, and keeps the exit status of the benchmark."""

    def __init__(self) -> None:
        self.status = 0
        """Exit status: 1 as soon as one limit is broken."""

    def check(self, figure: str, *, limit: str, holds: bool) -> None:
        """Print a figure with its limit, and whether the limit holds."""
        print(f"{figure}   limit: {limit}   {'ok' if holds else 'BROKEN'}")
        if not holds:
            self.status = 1
