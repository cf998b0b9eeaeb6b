"""The server process (postmaster) of the embedded PostgreSQL: start, watch, restart and stop it."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import structlog

from mailer.embedded_postgres.binaries import Binaries
from mailer.embedded_postgres.child import Child, SystemUser
from mailer.errors import UnavailableError

MAX_LOG_BYTES = 8 * 1024 * 1024
"""Size above which the server's log is emptied."""
START_TIMEOUT = 600.0
"""Seconds for a start. After a crash PostgreSQL first replays up to `max_wal_size` of its WAL."""
PREDECESSOR_TIMEOUT = 30.0
"""Seconds to wait for the end of a predecessor: the server that a killed mailer has left."""
SHUTDOWN_SIGNALS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
"""Signals that stop PostgreSQL, each with the seconds to wait after it."""
MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.1, 30.0
"""Seconds before the server is restarted after it ended; the delay doubles with each attempt."""
LOG_CHECK_INTERVAL = 60.0
"""Seconds between checks of the log's size. After a run longer than this the restart delay is
reset."""

PORT = "5432"
"""Only a part of the socket's file name: the server does not listen on TCP."""
SERVER_PARAMETERS = {
    "port": PORT,
    "listen_addresses": "",  # no TCP
    "unix_socket_permissions": "0700",
    "cluster_name": "mailer",
    "max_connections": "100",
    "shared_buffers": "128MB",
    # After each checkpoint PostgreSQL writes whole pages to the WAL. So the WAL is smaller with
    # fewer checkpoints than by default and with compressed pages.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "jit": "off",  # compiling would take longer than most of our statements
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",  # messages go to the file that mailer has opened
    "log_checkpoints": "off",
    # Details and statements of an error may hold phones, and the log would outlive their erasure.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}
"""Settings of the server that differ from PostgreSQL's defaults or matter to mailer."""

log = structlog.get_logger()


class Postmaster:
    """PostgreSQL on the folder `home / "data"`; the object lasts over restarts of the process.

    The server runs as `user`, or as mailer's own user when that is None. Its socket is in
    `socket_folder`. Its log goes to the file descriptor `output`; the file is truncated when it
    exceeds `MAX_LOG_BYTES`.
    """

    def __init__(
        self,
        home: Path,
        binaries: Binaries,
        user: SystemUser | None,
        socket_folder: Path,
        output: int,
    ) -> None:
        self._data = home / "data"
        self._user = user
        self._socket_folder = socket_folder
        self._output = output
        self._child: Child | None = None
        parameters = SERVER_PARAMETERS | {
            "hba_file": str(home / "pg_hba.conf"),
            "ident_file": str(home / "pg_ident.conf"),
            "unix_socket_directories": str(socket_folder),
        }
        options = [word for name, value in parameters.items() for word in ("-c", f"{name}={value}")]
        program: str | Path = binaries.folder / "postgres"
        self._command = [program, "-D", self._data, *options]

    @property
    def url(self) -> str:
        """The URL of mailer's database, in libpq's form."""
        return socket_url("mailer", self._socket_folder)

    async def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises `UnavailableError`.

        After mailer was killed, its old server may still be ending: then try again for
        `PREDECESSOR_TIMEOUT`.
        """
        deadline = _now() + PREDECESSOR_TIMEOUT
        while True:
            stale_pid = await _wait_for_predecessor(self._data, deadline)
            log_size = os.fstat(self._output).st_size
            # PostgreSQL refuses to start when its lock file has the pid of a running process, even
            # if another program has got that pid since. It makes an exception for the pid in this
            # variable, which is meant for the grandparent process. Server processes that are left
            # of the predecessor are still detected, by the shared memory.
            environment = {"PG_GRANDPARENT_PID": stale_pid}
            self._child = Child(self._command, self._user, self._output, environment)
            if await self._wait_until_ready(self._child):
                return
            lines = read_log_since(self._output, log_size)
            # Another server has its lock file there ("already exists"), or processes of a killed
            # one still use the shared memory ("still in use"): both may pass.
            is_occupied = any("already exists" in line or "still in use" in line for line in lines)
            if not is_occupied or _now() > deadline:
                reason = find_error_message(lines) or f"it ended with code {self._child.exit_code}"
                message = f"PostgreSQL does not start on {self._data}: {reason}"
                raise UnavailableError(message)
            await asyncio.sleep(MIN_RESTART_DELAY)

    async def stop(self) -> None:
        """Stop the server by its fast shutdown, then its immediate one, then SIGKILL."""
        if self._child is not None:
            await self._child.stop(*SHUTDOWN_SIGNALS)

    async def keep_running(self) -> None:
        """Restart the server whenever it ends, until this is cancelled."""
        delay = MIN_RESTART_DELAY
        while True:
            if await self._wait_until_ended() > LOG_CHECK_INTERVAL:
                delay = MIN_RESTART_DELAY
            log.warning("database_ended", code=self._child and self._child.exit_code)
            is_running = False
            while not is_running:
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_RESTART_DELAY)
                is_running = await self._try_restart()

    async def _try_restart(self) -> bool:
        """Start the server; log the error and return False when that fails."""
        try:
            await self.start()
        except (UnavailableError, OSError) as error:
            log.error("database_restart_failed", reason=str(error))  # noqa: TRY400  # the reason is enough; no traceback
            return False
        log.warning("database_restarted")
        return True

    async def _wait_until_ended(self) -> float:
        """Wait until the server ends, truncating its log meanwhile; return the seconds waited."""
        started_at = _now()
        while self._child is not None and not self._child.ended.is_set():
            if os.fstat(self._output).st_size > MAX_LOG_BYTES:
                os.ftruncate(self._output, 0)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOG_CHECK_INTERVAL):
                    await self._child.ended.wait()
        return _now() - started_at

    async def _wait_until_ready(self, child: Child) -> bool:
        """Wait until the server accepts connections, and create mailer's role and database in it.

        Returns False when the server ended before. After `START_TIMEOUT`, and for an error of
        PostgreSQL, stops the server and raises `UnavailableError`.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not child.ended.is_set():
                    try:
                        await self._ensure_database()
                    except (
                        OSError,  # the server does not listen yet
                        asyncpg.PostgresConnectionError,
                        asyncpg.InterfaceError,
                        asyncpg.InternalClientError,  # the connection was lost while it was opened
                        asyncpg.CannotConnectNowError,  # the server recovers from a crash
                        asyncpg.TooManyConnectionsError,  # all clients reconnect at once
                    ):
                        await asyncio.sleep(0.01)
                    else:
                        return True
        except (TimeoutError, asyncpg.PostgresError) as error:
            await child.stop(*SHUTDOWN_SIGNALS)
            reason = str(error) or f"not ready after {START_TIMEOUT:.0f} s"
            message = f"PostgreSQL does not start on {self._data}: {reason}"
            raise UnavailableError(message) from error
        return False

    async def _ensure_database(self) -> None:
        """Create the role and the database `mailer` if they do not exist."""
        # as the superuser, for whom PostgreSQL reserves some connections
        connection = await asyncpg.connect(socket_url("postgres", self._socket_folder))
        try:
            if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = 'mailer'"):
                await connection.execute("CREATE ROLE mailer LOGIN CREATEDB")
            if not await connection.fetchval(
                "SELECT true FROM pg_database WHERE datname = 'mailer'"
            ):
                await connection.execute("CREATE DATABASE mailer OWNER mailer")
        finally:
            await connection.close()


async def _wait_for_predecessor(data: Path, deadline: float) -> str:
    """Wait until the server of a killed mailer has ended; return the pid in its lock file.

    The pid is "" when there is no lock file, and when that is empty: then it is removed. Raises
    `UnavailableError` after `deadline`.
    """
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
    if not pid_line:  # empty after a power failure; PostgreSQL does not start until it is removed
        lock_file.unlink()
    return pid_line


def _find_postmaster(data: Path) -> int | None:
    """Return the pid of the server that runs on `data`; None when there is none.

    It is found by its command in /proc, because a lock file may be outdated.
    """
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # the process has ended meanwhile
            program, *arguments = entry.read_bytes().split(b"\0")
            if program.endswith(b"postgres") and os.fsencode(data) in arguments:
                return int(entry.parent.name)
    return None


def socket_url(name: str, socket_folder: Path) -> str:
    """Return the URL of the database `name` for the role of the same name, in libpq's form."""
    return f"postgresql://{name}@/{name}?host={quote(str(socket_folder))}&port={PORT}"


def _now() -> float:
    return asyncio.get_running_loop().time()


def read_log_since(output: int, offset: int) -> list[str]:
    """Return the lines of the log from the byte `offset` on, at most its last 64 KiB."""
    size = os.fstat(output).st_size
    offset = max(offset, size - 65_536)
    return os.pread(output, size - offset, offset).decode(errors="replace").splitlines()


def find_error_message(lines: list[str]) -> str:
    """Return the error in a program's log that best explains its end; "" for an empty log.

    That is the last line with the most severe label, without the label; if no line has one, it is
    the last line.
    """
    # "terminating connection" comes from backends of an earlier server: not the cause
    lines = [line for line in lines if line.strip() and "terminating connection" not in line]
    for label in ("PANIC:", "FATAL:", "error:"):  # the most severe one first; "error:" is initdb's
        for line in reversed(lines):
            if label in line:
                return line.partition(label)[2].strip()
    return lines[-1].strip() if lines else ""
