"""What the benchmarks share: the real processes, the API they are driven by, and their figures."""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import asyncpg
import msgspec

from mailer.access import keys
from mailer.access.model import COMMAND_LINE
from mailer.db.engine import create_engine
from mailer.loop_monitor import Block
from sink import Taken

TOKEN = "bench"  # noqa: S105  # of gateways that live as long as a benchmark
PATIENCE = 60.0
"""Seconds to wait for a process to start or to stop."""
PAUSE = 0.05
"""Seconds between looks at how far a mailing is."""
STATUS = "SELECT status FROM mailing WHERE id = $1"
TEXT = "Your order is ready. Come by until nine."
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")

ADD_CLIENTS = """
    INSERT INTO client (phone, operator_code, tag, time_zone)
    SELECT '79' || lpad(n::text, 9, '0'), '9' || lpad((n % 90)::text, 2, '0'),
        CASE WHEN n > $1 - 10 THEN 'last' WHEN n % 10 = 0 THEN 'vip' END,
        (ARRAY['Europe/Moscow', 'Asia/Yekaterinburg', 'Asia/Vladivostok'])[1 + n % 3]
    FROM generate_series(1, $1::bigint) AS n ORDER BY n"""


class Mailer:
    """A `mailer serve`, its API and a connection to its database."""

    def __init__(
        self, process: asyncio.subprocess.Process, database_url: str, *, asks: bool
    ) -> None:
        self.pid = process.pid
        self.database_url = database_url
        self.key: str | None = None
        """What every call shows, where mailer asks for a key."""
        self.blocks: list[Block] = []
        """Blocks of its event loop, where it runs as `bench/watched.py`."""
        self._asks = asks
        self._process = process

    async def __aenter__(self) -> Self:
        self.address = await asyncio.wait_for(self._address(), PATIENCE)
        self._reading = asyncio.create_task(self._warn())
        self.database: asyncpg.Connection = await asyncpg.connect(self.database_url)
        if self._asks:
            self.key = await _new_key(self.database_url)
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
        await self._reading

    async def _address(self) -> str:
        async for event in self._log():
            if event.get("event") == "started":
                return str(event["address"])
        message = "mailer did not start"
        raise RuntimeError(message)

    async def _warn(self) -> None:
        """Keep blocks of the loop; show what mailer complains of, so that no figure hides it."""
        async for event in self._log():
            if event.get("event") == "event_loop_blocked":
                self.blocks.append(msgspec.convert(event, Block))
            elif event.get("level") not in {"debug", "info"}:
                print("mailer:", event, file=sys.stderr)

    async def _log(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stderr is not None  # noqa: S101  # it is a pipe
        async for line in self._process.stderr:
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                yield {"event": line.decode().rstrip()}

    async def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  # JSON
        """Call the API and return the answer's JSON; raises when it refuses."""
        async with self._session.request(method, f"/api/v1{path}", json=body) as answer:
            content = await answer.read()
            if not answer.ok:
                message = f"{method} {path}: {answer.status} {content.decode()}"
                raise RuntimeError(message)
            return msgspec.json.decode(content) if content else None

    async def upload(self, path: str, content: bytes, media_type: str) -> int:
        """Send a file to the API and return the answer's status, whatever it is."""
        headers = {"Content-Type": media_type}
        async with self._session.post(f"/api/v1{path}", data=content, headers=headers) as answer:
            await answer.read()
            return answer.status

    async def read(self, path: str) -> bytes:
        """Return what a GET of any path answers; raises when it refuses."""
        async with self._session.get(path) as answer:
            content = await answer.read()
            if not answer.ok:
                message = f"GET {path}: {answer.status} {content.decode()}"
                raise RuntimeError(message)
            return content

    async def add_clients(self, count: int) -> None:
        """Fill the directory: every tenth client is tagged `vip`, the ten newest `last`."""
        await self.database.execute(ADD_CLIENTS, count)
        await self.database.execute("VACUUM ANALYZE client")

    async def checkpoint(self) -> None:
        """Have the embedded database write what it holds back, as its superuser."""
        superuser = await asyncpg.connect(self.database_url, user="postgres")
        try:
            await superuser.execute("CHECKPOINT")
        finally:
            await superuser.close()

    async def add_mailing(
        self, *, starts_in: float = 0, client_filter: object = None, **fields: object
    ) -> dict[str, Any]:
        """Create a mailing that starts in that many seconds, and return it.

        It lasts an hour and has no window, unless `fields` say otherwise.
        """
        start = datetime.now(UTC) + timedelta(seconds=starts_in)
        mailing = {
            "datetime_start": start.isoformat(),
            "datetime_end": (start + timedelta(hours=1)).isoformat(),
            "text": TEXT,
            "client_filter": client_filter,
            **fields,
        }
        created: dict[str, Any] = await self.call("POST", "/mailings", mailing)
        return created

    async def finished(self, mailing_id: int, patience: float = 600) -> None:
        """Wait until a mailing is finished; asks the database, not mailer."""
        async with asyncio.timeout(patience):
            while await self.database.fetchval(STATUS, mailing_id) != "finished":  # noqa: ASYNC110  # it happens in another process
                await asyncio.sleep(PAUSE)


SERVE = ("-m", "mailer", "serve")
WATCHED = (str(Path(__file__).with_name("watched.py")),)
"""What Python runs: mailer, and mailer that tells of blocks of its event loop."""


@asynccontextmanager
async def serve(
    gateway_url: str,
    program: Sequence[str] = SERVE,
    python: str = sys.executable,
    **settings: object,
) -> AsyncIterator[Mailer]:
    """Run mailer in a process of its own on a new data folder, sending to a gateway.

    With a `database_url` among the settings it works on that one, else on a new embedded database.
    Another `python` runs the version that is installed there.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data_dir = Path(folder)
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's user passes through
        given = {
            "auth": "none",
            "port": 0,
            "log_format": "json",
            "data_dir": data_dir,
            "gateway_url": gateway_url,
            "gateway_token": TOKEN,
            **settings,
        }
        environ = own_environ() | {f"MAILER_{name.upper()}": str(v) for name, v in given.items()}
        if python != sys.executable:
            environ.pop("PYTHONPATH", None)
        process = await asyncio.create_subprocess_exec(
            *(python, *program),
            env=environ,
            cwd=folder,  # away from a .env
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            url = str(settings.get("database_url") or embedded_url(data_dir))
            async with Mailer(process, url, asks=given["auth"] == "required") as mailer:
                yield mailer
        finally:
            await stop(process)


async def _new_key(database_url: str) -> str:
    """Return a key that opens everything."""
    engine = create_engine(database_url)
    try:
        async with engine.begin() as connection:
            new = keys.NewKey(name=f"bench {time.time_ns()}", scope="admin")
            _, secret = await keys.add(connection, new, COMMAND_LINE)
    finally:
        await engine.dispose()
    return secret


def own_environ() -> dict[str, str]:
    """Return the environment without settings of mailer's, good in every working directory."""
    environ = {name: value for name, value in os.environ.items() if "MAILER_" not in name}
    if path := environ.get("PYTHONPATH"):
        environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    return environ


def embedded_url(data_dir: Path) -> str:
    """Return where the embedded database lets in the user that started it."""
    return f"postgresql://mailer@/mailer?host={quote(f'{data_dir}/postgresql/data')}"


async def stop(process: asyncio.subprocess.Process) -> None:
    """Stop a process, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        process.send_signal(number)
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            continue


class Gateway:
    """`mailer gateway` in a process of its own; what it took is known once it has stopped."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def taken(self) -> list[dict[str, Any]]:
        """Return its log: a row a request, with `id`, `arrived` (Unix µs) and `kind`."""
        with self._log.open("rb") as rows:
            return [msgspec.json.decode(row) for row in rows]


@asynccontextmanager
async def sandbox(log: Path, *options: str) -> AsyncIterator[Gateway]:
    """Run the sandbox gateway in a process of its own, with options of `mailer gateway`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailer", "gateway", "--port", "0", "--token", TOKEN),
        *("--log", str(log), *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        url = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        draining = asyncio.create_task(process.stdout.read())
        yield Gateway(url.decode().strip(), log)
    finally:
        await stop(process)
        await draining


class SinkProcess:
    """`bench/sink.py` in a process of its own: a gateway that costs next to nothing."""

    def __init__(self, url: str, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self._process = process

    async def taken(self) -> Taken:
        """Return what it took since the last time."""
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        self._process.send_signal(signal.SIGUSR1)
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        return msgspec.json.decode(line, type=Taken)


@asynccontextmanager
async def sink(latency: float = 0) -> AsyncIterator[SinkProcess]:
    """Run a sink that answers after that many seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("sink.py")), "--latency", str(latency)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # it is a pipe
    try:
        url = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
        yield SinkProcess(url.decode().strip(), process)
    finally:
        await stop(process)


async def send_to_all(mailer: Mailer, sink: SinkProcess, clients: int) -> Taken:
    """Send one mailing to everybody through a sink; raises unless each client got one request."""
    await mailer.finished((await mailer.add_mailing())["id"])
    taken = await sink.taken()
    if taken.requests != clients:
        message = f"{clients} clients, and {taken.requests} requests"
        raise RuntimeError(message)
    return taken


def memory(pid: int) -> tuple[int, int]:
    """Return the resident and the proportional set size of a process, bytes."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_SIZE
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return resident, int(rollup.partition("\nPss:")[2].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, its children's left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def exact_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process's threads that live, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in threads) / 1e9


def postmaster_of(pid: int) -> int:
    """Return the PostgreSQL that mailer `pid` has started."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def parent_of(pid: int) -> int:
    """Return the process that has started a process: of a session, its PostgreSQL."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def tree_cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and the children it has now."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) + sum(cpu_seconds(int(child)) for child in children)


def server_cpu_seconds(postmaster: int) -> float:
    """Return the processor time of a PostgreSQL, with that of its children that have ended."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    seconds = cpu_seconds(postmaster)
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile: counted below
            seconds += cpu_seconds(int(child))
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    return seconds + (int(fields[13]) + int(fields[14])) / TICKS


class Verdict:
    """Prints figures beside their limits, and remembers whether one was broken."""

    def __init__(self) -> None:
        self.status = 0
        """Exit status: 1 when a limit was broken."""

    def check(self, figure: str, *, limit: str, holds: bool) -> None:
        """Print a figure with its limit and whether it holds."""
        print(f"{figure}   limit: {limit}   {'ok' if holds else 'BROKEN'}")
        if not holds:
            self.status = 1
