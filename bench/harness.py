"""Shared by the benchmarks: real processes, calls of the API, and figures with their limits.

`serve` runs mailer; `sandbox` and `sink` run gateways for it. `Verdict` prints each figure beside
its limit.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
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

TOKEN = "bench"  # noqa: S105  # not secret: the gateways exist only as long as a benchmark
"""The token that mailer sends to the gateways, and that they require."""
PROCESS_TIMEOUT = 60.0
"""Seconds to wait for a process to start or to stop."""
POLL_INTERVAL = 0.05
"""Seconds between two reads of a mailing's progress."""
SELECT_STATUS = "SELECT status FROM mailing WHERE id = $1"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a memory page."""
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
"""Clock ticks a second, the unit of processor time in /proc."""

OPERATOR_CODES = sample_data.ALL_OPERATOR_CODES[:90]
TIME_ZONES = ("Europe/Moscow", "Asia/Yekaterinburg", "Asia/Vladivostok")
"""Operator codes and time zones of the clients that `create_clients` creates."""
NEWEST_CLIENTS = 10
"""The number of clients with the tag `last`."""
NO_GATEWAY = ""
"""Value of `MAILER_GATEWAY_URL` with which mailer sends nothing."""
MIN_MEMORY_RATIO, MAX_MEMORY_RATIO = 0.8, 1.2
"""Limits of the resident memory at the end of a mailing, divided by that after a tenth of it."""


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
        """Blocks of its event loop so far; always empty unless it runs as `SERVE_MONITORED`."""
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
        """Collect the blocks of the event loop; print warnings and errors.

        A warning or an error may mean that a figure is wrong.
        """
        async for event in self._log_events():
            if event.get("event") == "event_loop_blocked":
                self.blocks.append(msgspec.convert(event, Block))
            elif event.get("level") not in {"debug", "info"}:
                print("mailer:", event, file=sys.stderr)

    async def _log_events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of the log; a line that is not JSON becomes an event of its own."""
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

    async def submit(self, path: str, form: Mapping[str, str]) -> bytes:
        """Return the body of the answer to a form of a page, sent as a browser does.

        Raises `RuntimeError` for a status of 400 or above.
        """
        headers = {"Sec-Fetch-Site": "same-origin"}
        async with self._session.post(path, data=dict(form), headers=headers) as response:
            content = await response.read()
            if not response.ok:
                message = f"POST {path}: {response.status} {content.decode()}"
                raise RuntimeError(message)
            return content

    async def create_clients(self, count: int) -> list[int]:
        """Create clients, and return their ids; see `create_clients` below."""
        return await create_clients(self.database, count)

    async def checkpoint(self) -> None:
        """Let the embedded database write all changed pages to disk (CHECKPOINT).

        Otherwise it may do so during a measurement.
        """
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
    """Create `count` clients (more than ten), vacuum the table, and return their ids.

    The ten newest clients have the tag `last`. Every tenth of the others has the tag `vip`.
    """
    one_in_ten_vip = ("vip", *[None] * 9)
    ids: list[int] = []
    for number, tags in ((count - NEWEST_CLIENTS, one_in_ten_vip), (NEWEST_CLIENTS, ("last",))):
        ids += await sample_data.create_clients(
            database, number, operator_codes=OPERATOR_CODES, tags=tags, time_zones=TIME_ZONES
        )
    await database.execute("VACUUM ANALYZE client")
    return ids


SERVE = ("-m", "mailer", "serve")
"""Arguments of Python that run mailer as users run it."""
SERVE_MONITORED = (str(Path(__file__).with_name("serve_monitored.py")),)
"""Arguments of Python that run mailer so that it reports blocks of its event loop."""


@asynccontextmanager
async def serve(
    gateway_url: str,
    program: Sequence[str] = SERVE,
    python: str = sys.executable,
    **settings: object,
) -> AsyncIterator[Mailer]:
    """Run mailer in its own process, with a new data folder; it sends to `gateway_url`.

    `settings` are settings of mailer. Without `database_url` it creates an embedded database. By
    default authentication is off. `python` is the interpreter: that of another virtual environment
    runs the version of mailer that is installed there.
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
            environ.pop("PYTHONPATH", None)  # it may contain this version of mailer
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
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        process.send_signal(signal_number)
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
        """Return the log: a row for each request.

        A row has the message's `id`, the time `arrived` (Unix time in µs), the `kind` of answer,
        such as `accepted`, and the field `repeat` if the id was accepted before.
        """
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
        draining = asyncio.create_task(process.stdout.read())  # a full pipe would block the process
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

    async def forget_requests(self) -> None:
        """Let the next report begin with the next request."""
        await self.read_report()


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
    """Send one mailing to all clients through a sink, and return the sink's report.

    Raises `RuntimeError` when the number of requests is not the number of clients.
    """
    await mailer.wait_until_finished((await mailer.create_mailing())["id"])
    report = await sink.read_report()
    if report.requests != clients:
        message = f"{clients} clients, but {report.requests} requests"
        raise RuntimeError(message)
    return report


class Memory(NamedTuple):
    """Memory of a process, in bytes."""

    resident: int
    """All its pages in memory (RSS)."""
    proportional: int
    """The same, but each page that several processes share is divided between them (PSS)."""


def memory(pid: int) -> Memory:
    """Return the memory of a process."""
    resident_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    proportional_kib = int(rollup.partition("\nPss:")[2].split()[0])
    return Memory(resident_pages * PAGE_BYTES, proportional_kib * 1024)


class ProcessStat(NamedTuple):
    """Fields of /proc/PID/stat (see proc_pid_stat(5)); times are in processor seconds."""

    parent: int
    """The process id of the parent."""
    own_seconds: float
    ended_children_seconds: float
    """Of the children that have ended, and of their ended children."""


def _read_stat(pid: int) -> ProcessStat:
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The third field and the following ones. The second is the program's name in parentheses, which
    # may contain spaces.
    fields = stat.rpartition(")")[2].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return ProcessStat(
        parent=int(fields[1]),
        own_seconds=(user + system) / TICKS_PER_SECOND,
        ended_children_seconds=(children_user + children_system) / TICKS_PER_SECOND,
    )


def _children_of(pid: int) -> list[int]:
    """Return the process ids of a process's running children, oldest first."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used, without its children."""
    return _read_stat(pid).own_seconds


def exact_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process's live threads, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def postmaster_of(pid: int) -> int:
    """Return the process id of the PostgreSQL server that mailer `pid` has started."""
    return _children_of(pid)[0]


def parent_of(pid: int) -> int:
    """Return the parent process id; the parent of a session's backend is its PostgreSQL server."""
    return _read_stat(pid).parent


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and of its running children."""
    return cpu_seconds(pid) + sum(map(cpu_seconds, _children_of(pid)))


def server_cpu_seconds(postmaster: int) -> float:
    """Return the processor seconds of a PostgreSQL server, with all its children, ended or not."""
    children_seconds = 0.0
    for child in _children_of(postmaster):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended: counted below
            children_seconds += cpu_seconds(child)
    server = _read_stat(postmaster)
    return server.own_seconds + children_seconds + server.ended_children_seconds


class Verdict:
    """Prints figures beside their limits, and remembers whether a limit was broken."""

    def __init__(self) -> None:
        self.status = 0
        """The exit status of the benchmark: 0, or 1 as soon as one limit is broken."""

    def check(self, figure: str, *, limit: str, holds: bool) -> None:
        """Print a figure, its limit in words, and whether the figure is within the limit."""
        print(f"{figure}   limit: {limit}   {'ok' if holds else 'BROKEN'}")
        if not holds:
            self.status = 1


def check_memory(verdict: Verdict, at_a_tenth: int, at_the_end: int) -> None:
    """Check whether mailer's resident memory stayed constant during a mailing.

    `at_a_tenth` and `at_the_end` are bytes, after a tenth of the messages and at the end.
    """
    ratio = at_the_end / at_a_tenth
    sizes = f"{at_a_tenth / 2**20:.1f} MiB at a tenth, {at_the_end / 2**20:.1f} MiB at the end"
    verdict.check(
        f"resident size {sizes}, ratio {ratio:.2f}",
        limit=f"{MIN_MEMORY_RATIO:.2f} to {MAX_MEMORY_RATIO:.2f}",
        holds=MIN_MEMORY_RATIO <= ratio <= MAX_MEMORY_RATIO,
    )
