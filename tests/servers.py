"""PostgreSQL servers of a test's own: a primary, its standby, copies of both; and dumps."""

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

from mailer.db.child import Account, Child
from mailer.db.embedded import _unprivileged_account, _usable_binaries
from mailer.db.engine import connect

PATIENCE = 60.0
"""Seconds after which a program that should have ended long before has not."""


class Programs:
    """The programs of the PostgreSQL that runs here, as the user who may run them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.account: Account | None = _unprivileged_account(home)
        self.folder = _usable_binaries(home, self.account).folder

    def run(self, name: str, *arguments: str | Path) -> str:
        """Run a program that ends by itself, as that user."""
        user = {} if self.account is None else {"user": self.account.uid, "group": self.account.gid}
        return run(self.folder / name, *arguments, **user)

    def own(self, folder: Path) -> None:
        """Give a folder and all in it to that user."""
        if self.account is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.account.uid, self.account.gid)


def run(*command: str | Path, **options: int) -> str:
    """Run a program and return what it says; it must succeed."""
    done = subprocess.run(  # type: ignore[call-overload]  # noqa: S603  # our own; a user may be given
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/", **options
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


class Server:
    """A PostgreSQL server on a folder, which listens on loopback."""

    def __init__(self, programs: Programs, name: str) -> None:
        self.programs = programs
        self.data = programs.home / name
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where its database is."""
        return f"postgresql://mailer@127.0.0.1:{self.port}/mailer"

    def make(self) -> None:
        """Make the folder of a new server."""
        self.programs.run(
            *("initdb", "-D", self.data, "--username=mailer", "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C"),
        )

    def copy(self, source: "Server", name: str = "") -> None:
        """Make the folder a copy of a server that runs; a standby of it if it has a name."""
        self.programs.run(
            *("pg_basebackup", "-D", self.data, "-h", "127.0.0.1", "-p", str(source.port)),
            *("-U", "mailer", "--checkpoint=fast", "--no-sync", "--wal-method=stream"),
            *(("--write-recovery-conf",) if name == "standby" else ()),
        )

    def copy_folder(self, source: "Server") -> None:
        """Make the folder a copy of a stopped server's."""
        shutil.copytree(source.data, self.data)
        self.programs.own(self.data)

    def set(self, **parameters: str) -> None:
        """Set parameters for the next start."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in parameters.items())

    async def start(self, database: str = "mailer") -> None:
        """Start it and wait until it answers."""
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
        }
        words = [word for item in options.items() for word in ("-c", "=".join(item))]
        log = os.open(self.programs.home / f"{self.data.name}.log", os.O_CREAT | os.O_WRONLY)
        program: str | Path = self.programs.folder / "postgres"
        self._child = Child([program, "-D", self.data, *words], self.programs.account, log)
        os.close(log)
        async with asyncio.timeout(PATIENCE):
            while not await self._answers(database):
                assert not self._child.ended.is_set()
                await asyncio.sleep(0.05)

    async def _answers(self, database: str) -> bool:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await connect(self.url.rpartition("/")[0] + f"/{database}")
            await connection.close()
            return True
        return False

    async def create_database(self) -> None:
        await self.query("CREATE DATABASE mailer", database="postgres")

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it; by SIGQUIT it crashes."""
        if self._child is not None:
            await self._child.end((number, PATIENCE), (signal.SIGKILL, PATIENCE))

    async def promote(self) -> None:
        """Make a standby a server that is written to, and wait until it is."""
        assert await self.query("SELECT pg_promote(true, 60)")

    async def query(self, statement: str, *values: object, database: str = "mailer") -> object:
        """Ask for one value."""
        connection = await connect(self.url.rpartition("/")[0] + f"/{database}")
        try:
            return await connection.fetchval(statement, *values)
        finally:
            await connection.close()


def dump(programs: Path, database_url: str, file: Path, *options: str) -> None:
    """Dump a database into a file."""
    run(programs / "pg_dump", "--format=custom", "--file", file, *options, "-d", database_url)


def restore(programs: Path, file: Path, database_url: str, *options: str) -> None:
    """Restore a dump into a database that is there."""
    run(programs / "pg_restore", "--no-owner", *options, "-d", database_url, file)


def name_of(database_url: str) -> str:
    """Return the name of the database that a URL leads to."""
    return unquote(urlsplit(database_url).path.lstrip("/"))
