"""The postmaster on one data folder: started, watched, started again and stopped."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import structlog

from mailer.db.binaries import Binaries
from mailer.db.child import Account, Child
from mailer.errors import UnavailableError

LOG_LIMIT = 8 * 1024 * 1024  # bytes
START_LIMIT = 600.0  # seconds; recovery after a crash replays up to max_wal_size
PREDECESSOR_LIMIT = 30.0  # seconds for the server of a mailer that was killed to end
STOPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # seconds each
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds until a server that ended is started again
TENDING = 60.0  # seconds between looks at the log; a server that lived longer had been well

PORT = "5432"  # a part of the socket's name; nothing listens on TCP
PARAMETERS = {
    "port": PORT,
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "cluster_name": "mailer",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_checkpoints": "off",
    # Details and statements of an error may hold phones, and a log outlives their erasure.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}

log = structlog.get_logger()


class Postmaster:
    """PostgreSQL on the folder `home / "data"`, whichever process it is at the moment.

    Its sockets are in `sockets`; it writes to the file `output`, which is kept short.
    """

    def __init__(
        self, home: Path, binaries: Binaries, account: Account | None, sockets: Path, output: int
    ) -> None:
        self._data = home / "data"
        self._account = account
        self._sockets = sockets
        self._output = output
        self._child: Child | None = None
        parameters = PARAMETERS | {
            "hba_file": str(home / "pg_hba.conf"),
            "ident_file": str(home / "pg_ident.conf"),
            "unix_socket_directories": str(sockets),
        }
        options = [word for item in parameters.items() for word in ("-c", "=".join(item))]
        program: str | Path = binaries.folder / "postgres"
        self._command = [program, "-D", self._data, *options]

    async def start(self) -> None:
        """Start it and wait until it can be used. Raises `UnavailableError`."""
        deadline = _now() + PREDECESSOR_LIMIT
        while True:
            stale_pid = await _predecessor_gone(self._data, deadline)
            mark = os.fstat(self._output).st_size
            # PostgreSQL takes a pid in its lock file for alive, whoever has it by now. What it
            # believes to be its grandparent's it passes over, and still looks for orphans.
            environment = {"PG_GRANDPARENT_PID": stale_pid}
            self._child = Child(self._command, self._account, self._output, environment)
            if await self._is_ready(self._child):
                return
            said = lines_since(self._output, mark)
            # Another's lock file, or memory that the backends of a killed postmaster still hold.
            is_held = any("already exists" in line or "still in use" in line for line in said)
            if not is_held or _now() > deadline:
                reason = last_complaint(said) or f"it ended with code {self._child.code}"
                message = f"PostgreSQL does not start on {self._data}: {reason}"
                raise UnavailableError(message)
            await asyncio.sleep(FIRST_PAUSE)

    async def stop(self) -> None:
        """Stop it: fast, then at once, then by force."""
        if self._child is not None:
            await self._child.end(*STOPS)

    async def keep_running(self) -> None:
        """Start it again whenever it has ended, until cancelled."""
        pause = FIRST_PAUSE
        while True:
            if await self._lived() > TENDING:
                pause = FIRST_PAUSE
            log.warning("database_ended", code=self._child and self._child.code)
            is_back = False
            while not is_back:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                is_back = await self._started_again()

    async def _started_again(self) -> bool:
        try:
            await self.start()
        except (UnavailableError, OSError) as error:
            log.error("database_restart_failed", reason=str(error))  # noqa: TRY400  # one line says it
            return False
        log.warning("database_restarted")
        return True

    async def _lived(self) -> float:
        """Wait for its end, keeping the log short; return how many seconds that took."""
        begin = _now()
        while self._child is not None and not self._child.ended.is_set():
            if os.fstat(self._output).st_size > LOG_LIMIT:
                os.ftruncate(self._output, 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(TENDING):
                    await self._child.ended.wait()
        return _now() - begin

    async def _is_ready(self, child: Child) -> bool:
        """Wait until role and database are there; False when the server ended instead."""
        try:
            async with asyncio.timeout(START_LIMIT):
                while not child.ended.is_set():
                    try:
                        await self._ensure_database()
                    except (
                        OSError,  # does not listen yet
                        asyncpg.PostgresConnectionError,
                        asyncpg.InterfaceError,
                        asyncpg.InternalClientError,  # what a connection cut early may raise
                        asyncpg.CannotConnectNowError,  # recovers from a crash
                        asyncpg.TooManyConnectionsError,  # clients storm back
                    ):
                        await asyncio.sleep(0.01)
                    else:
                        return True
        except (TimeoutError, asyncpg.PostgresError) as error:
            await child.end(*STOPS)
            reason = str(error) or f"not ready after {START_LIMIT:.0f} s"
            message = f"PostgreSQL does not start on {self._data}: {reason}"
            raise UnavailableError(message) from error
        return False

    async def _ensure_database(self) -> None:
        # As its superuser, who has slots of its own.
        connection = await asyncpg.connect(url_of("postgres", self._sockets))
        try:
            if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = 'mailer'"):
                await connection.execute("CREATE ROLE mailer LOGIN CREATEDB")
            if not await connection.fetchval(
                "SELECT true FROM pg_database WHERE datname = 'mailer'"
            ):
                await connection.execute("CREATE DATABASE mailer OWNER mailer")
        finally:
            await connection.close()


async def _predecessor_gone(data: Path, deadline: float) -> str:
    """Wait for the server of a mailer that was killed; return the pid that it left, or nothing."""
    while pid := await asyncio.to_thread(_find_postmaster, data):
        if _now() > deadline:
            message = f"PostgreSQL still runs on {data}: stop it with kill -INT {pid}"
            raise UnavailableError(message)
        await asyncio.sleep(0.05)
    lock_file = data / "postmaster.pid"
    try:
        pid_line = lock_file.read_text().partition("\n")[0]
    except FileNotFoundError:
        return ""
    if not pid_line:  # the power failed; PostgreSQL would wait for somebody to remove it
        lock_file.unlink()
    return pid_line


def _find_postmaster(data: Path) -> int | None:
    """Return the pid of the postmaster that runs on `data`, whatever a lock file says."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            program, *arguments = entry.read_bytes().split(b"\0")
            if program.endswith(b"postgres") and os.fsencode(data) in arguments:
                return int(entry.parent.name)
    return None


def url_of(name: str, sockets: Path) -> str:
    """Return the URL of the database `name` for the role of that name."""
    return f"postgresql://{name}@/{name}?host={quote(str(sockets))}&port={PORT}"


def _now() -> float:
    return asyncio.get_running_loop().time()


def lines_since(output: int, mark: int) -> list[str]:
    """Return the lines of the log from the byte `mark` on, the last 64 KiB at most."""
    size = os.fstat(output).st_size
    mark = max(mark, size - 65_536)
    return os.pread(output, size - mark, mark).decode(errors="replace").splitlines()


def last_complaint(lines: list[str]) -> str:
    """Return why a program gave up, by its last words, or "" when it had none."""
    # What the backends of an earlier postmaster say meanwhile is not it.
    lines = [line for line in lines if line.strip() and "terminating connection" not in line]
    for mark in ("PANIC:", "FATAL:", "error:"):
        for line in reversed(lines):
            if mark in line:
                return line.partition(mark)[2].strip()
    return lines[-1].strip() if lines else ""
