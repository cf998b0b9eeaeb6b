"""PostgreSQL servers for a test: a primary, a standby that repeats its changes, and copies of both.

Also dumps of a database.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg

from mailer.db.engine import connect
from mailer.embedded_postgres.binaries import choose_usable_binaries
from mailer.embedded_postgres.child import Child, SystemUser, find_unprivileged_user

PROGRAM_TIMEOUT = 60.0
"""Seconds for a program of PostgreSQL to end, and for a server to start."""
CLOSE_CONNECTIONS = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'"""
"""Ends all other connections to the database, but no worker of autovacuum."""


class Programs:
    """The programs of PostgreSQL, and the operating system's user who runs them.

    PostgreSQL refuses to run as root. If the tests run as root, another user runs it; else
    `system_user` is None. All servers have their data folders in `home`.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.system_user: SystemUser | None = find_unprivileged_user(home)
        self.folder = choose_usable_binaries(home, self.system_user).folder

    def run(self, name: str, *arguments: str | Path) -> str:
        """Run a program to its end as this user, and return its output."""
        user = (
            {}
            if self.system_user is None
            else {"user": self.system_user.uid, "group": self.system_user.gid}
        )
        return run(self.folder / name, *arguments, **user)

    def chown(self, folder: Path) -> None:
        """Make this user the owner of a folder and of everything in it."""
        if self.system_user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.system_user.uid, self.system_user.gid)


def run(*command: str | Path, **options: int) -> str:
    """Run a program that must succeed, and return its output."""
    process = subprocess.run(  # type: ignore[call-overload]  # noqa: S603  # commands of tests; options may set a user
        command,
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT,
        check=False,
        cwd="/",
        **options,
    )
    assert process.returncode == 0, process.stderr
    return str(process.stdout)


class Server:
    """A PostgreSQL server on its own data folder, on loopback."""

    def __init__(self, programs: Programs, name: str) -> None:
        self.programs = programs
        self.data = programs.home / name
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The URL of the server's database."""
        return f"postgresql://mailer@127.0.0.1:{self.port}/mailer"

    def create(self) -> None:
        """Create the data folder of a new server."""
        self.programs.run(
            *("initdb", "-D", self.data, "--username=mailer", "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C"),
        )

    def copy(self, source: "Server", *, as_standby: bool = False) -> None:
        """Copy the data folder of a running server.

        With `as_standby`, this server will repeat the later changes of the other one.
        """
        self.programs.run(
            *("pg_basebackup", "-D", self.data, "-h", "127.0.0.1", "-p", str(source.port)),
            *("-U", "mailer", "--checkpoint=fast", "--no-sync", "--wal-method=stream"),
            *(("--write-recovery-conf",) if as_standby else ()),
        )

    def copy_folder(self, source: "Server") -> None:
        """Copy the data folder of a stopped server."""
        shutil.copytree(source.data, self.data)
        self.programs.chown(self.data)

    def set(self, **parameters: str) -> None:
        """Set configuration parameters for the next start."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in parameters.items())

    async def start(self, database: str = "mailer") -> None:
        """Start the server and wait until it accepts connections to `database`."""
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        settings = [
            word for name, setting in options.items() for word in ("-c", f"{name}={setting}")
        ]
        log = os.open(self.programs.home / f"{self.data.name}.log", os.O_CREAT | os.O_WRONLY)
        program: str | Path = self.programs.folder / "postgres"
        self._child = Child([program, "-D", self.data, *settings], self.programs.system_user, log)
        os.close(log)
        async with asyncio.timeout(PROGRAM_TIMEOUT):
            while not await self._answers(database):
                assert not self._child.ended.is_set()
                await asyncio.sleep(0.05)

    async def _answers(self, database: str) -> bool:
        """Return whether a connection to `database` succeeds."""
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await connect(self.url.rpartition("/")[0] + f"/{database}")
            await connection.close()
            return True
        return False

    async def create_database(self) -> None:
        """Create the empty database `mailer`."""
        await self.query("CREATE DATABASE mailer", database="postgres")

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop the server by a signal; with SIGQUIT as in a crash."""
        if self._child is not None:
            await self._child.stop((number, PROGRAM_TIMEOUT), (signal.SIGKILL, PROGRAM_TIMEOUT))

    async def promote(self) -> None:
        """Promote a standby, and wait until it is writable."""
        assert await self.query("SELECT pg_promote(true, 60)")

    async def query(self, statement: str, *values: object, database: str = "mailer") -> object:
        """Return the value of a query with one row and one column."""
        connection = await connect(self.url.rpartition("/")[0] + f"/{database}")
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()


def dump(programs: Path, database_url: str, file: Path, *options: str) -> None:
    """Dump a database into a file."""
    run(programs / "pg_dump", "--format=custom", "--file", file, *options, "-d", database_url)


def restore(programs: Path, file: Path, database_url: str, *options: str) -> None:
    """Restore a dump into an existing database."""
    run(programs / "pg_restore", "--no-owner", *options, "-d", database_url, file)


def name_of(database_url: str) -> str:
    """Return the name of the database in a URL."""
    return unquote(urlsplit(database_url).path.lstrip("/"))
