"""Embedded PostgreSQL: a server that mailer creates, starts, watches and stops.

All files of the server are in its home: the folder `postgresql/` in mailer's data folder
(MAILER_DATA_DIR):

- `data`: PostgreSQL's data directory;
- `server.log`: its log since mailer started;
- `lock`: locked (flock(2)) by the mailer that runs the server; to lock a home means to lock this
  file;
- `pg_hba.conf` and `pg_ident.conf`: who may connect;
- `programs-*`: a copy of the programs, for a user who cannot reach the installed ones.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from mailer.embedded_postgres.binaries import choose_usable_binaries
from mailer.embedded_postgres.child import SystemUser, find_unprivileged_user
from mailer.embedded_postgres.initdb import create_data
from mailer.embedded_postgres.postmaster import PORT, Postmaster, socket_url
from mailer.errors import StartError, UnavailableError

MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a Unix socket (unix(7))."""
SOCKET_FOLDER_LINE = 4
"""Index of the line of PostgreSQL's `postmaster.pid` that names the folder of its socket."""
TRANSIENT_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}
)
"""Errors of a machine that has run out of a resource or whose disk fails; they may pass. Every
other error means that the data folder is unsuitable."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, share: bool = False) -> AsyncIterator[str]:
    """Run PostgreSQL under `data_dir` while the block lasts; yield its URL in libpq's form.

    Only one process at a time may run PostgreSQL there. With `share`, a server that another process
    runs already is used, and goes on after the block. A server that ends unexpectedly is restarted
    under the same URL. Enter the block on the main thread: the server stops with the thread that
    started it. Raises `StartError` when a setting is wrong, `UnavailableError` when the cause may
    pass.
    """
    # each `yield` is outside `_translate_os_errors`, so that an OSError of the block stays as it is
    with _translate_os_errors(data_dir):
        home = _create_home(data_dir)
        running_url = _find_running_url(home) if share else None
    if running_url is not None:
        yield running_url
        return
    async with AsyncExitStack() as stack:
        with _translate_os_errors(data_dir):
            server = await _start_server(stack, home)
        # Not in a TaskGroup, which would wrap the exceptions of the block in a group.
        watcher = asyncio.create_task(server.keep_running())
        try:
            yield server.url
        finally:
            watcher.cancel()
            await asyncio.wait({watcher})


async def _start_server(stack: AsyncExitStack, home: Path) -> Postmaster:
    """Lock `home`, create the data if there is none, and start the server.

    Closing `stack` stops the server and unlocks `home`.
    """
    stack.enter_context(_lock_home(home))
    output = stack.enter_context(_open_private_file(home / "server.log", os.O_APPEND | os.O_TRUNC))
    user = find_unprivileged_user(home)
    binaries = await asyncio.to_thread(choose_usable_binaries, home, user)
    _write_access_rules(home)
    if not (home / "data" / "PG_VERSION").exists():
        await create_data(home, binaries, user, output)
    socket_folder = stack.enter_context(_socket_folder(home, user))
    server = Postmaster(home, binaries, user, socket_folder, output)
    stack.push_async_callback(server.stop)
    await server.start()
    return server


@contextmanager
def _translate_os_errors(data_dir: Path) -> Iterator[None]:
    """Turn an OSError of the block into `UnavailableError` if it may pass, else `StartError`."""
    try:
        yield
    except OSError as error:
        # `filename2` is the target of a failed rename; `filename` is then a temporary folder
        cause = f"{error.strerror}: {error.filename2 or error.filename}"
        message = f"PostgreSQL cannot run under {data_dir}: {cause}"
        if error.errno in TRANSIENT_ERRNOS:
            raise UnavailableError(message) from error
        advice = "set MAILER_DATA_DIR to a folder of this user, or MAILER_DATABASE_URL"
        raise StartError(f"{message}; {advice}") from error


def _create_home(data_dir: Path) -> Path:
    """Create the home of the server, and all missing folders above it; return its path."""
    home = data_dir.resolve() / "postgresql"
    for folder in [*reversed(home.parents), home]:
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            if os.geteuid() == 0:  # PostgreSQL's user must be able to enter, whatever the umask is
                folder.chmod(0o755)
    return home


@contextmanager
def _open_private_file(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file for reading and writing, and yield its descriptor, which children do not inherit.

    A new file can be read by its owner alone. `flags` are more flags of open(2).
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _lock_home(home: Path) -> Iterator[None]:
    """Lock `home` while the block lasts; the kernel unlocks it when mailer is killed.

    Raises `UnavailableError` when another mailer has locked it.
    """
    with _open_private_file(home / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = (
                f"another mailer already runs on {home.parent}: stop it, or set another"
                " MAILER_DATA_DIR, or let both share a PostgreSQL through MAILER_DATABASE_URL"
            )
            raise UnavailableError(message) from None
        yield


def _find_running_url(home: Path) -> str | None:
    """Return the URL of the server that another mailer runs on `home`; None when there is none.

    A server that is starting has no URL yet.
    """
    with _open_private_file(home / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another mailer has locked it
            with suppress(FileNotFoundError, IndexError):  # no such line yet
                lines = (home / "data" / "postmaster.pid").read_text().splitlines()
                return socket_url("mailer", Path(lines[SOCKET_FOLDER_LINE]))
    return None


def _write_access_rules(home: Path) -> None:
    """Write PostgreSQL's access rules: only the system user that runs mailer may connect.

    That user needs no password and may be the role `mailer` or the superuser `postgres`. PostgreSQL
    asks the kernel for the user's name (authentication method `peer`). Raises `StartError` when the
    user has no name.
    """
    try:
        user_name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        message = (
            f"PostgreSQL needs a user with a name, and user {os.geteuid()} has none:"
            " add it to /etc/passwd, or set MAILER_DATABASE_URL"
        )
        raise StartError(message) from None
    rules = {
        "pg_hba.conf": "local all mailer,postgres peer map=mailer\n",
        "pg_ident.conf": f'mailer "{user_name}" mailer\nmailer "{user_name}" postgres\n',
    }
    for name, text in rules.items():
        with _open_private_file(home / name, os.O_TRUNC) as file:
            os.fchmod(file, 0o644)  # PostgreSQL's user reads it
            os.write(file, text.encode())


@contextmanager
def _socket_folder(home: Path, user: SystemUser | None) -> Iterator[Path]:
    """Yield a folder for the server's socket that other users cannot enter.

    This is `home / "data"`, or a temporary folder if the path of `data` is too long for a socket,
    or contains a comma or a quotation mark, which PostgreSQL's list of socket folders cannot hold.
    """
    data = home / "data"
    socket_path = os.fsencode(data / f".s.PGSQL.{PORT}")
    if len(socket_path) <= MAX_SOCKET_PATH_BYTES and not {",", '"'} & set(str(data)):
        yield data
        return
    # Not TMPDIR: its path may be long too, or PostgreSQL's user may not enter it.
    temporary = Path("/tmp")  # noqa: S108  # the folder created in it is private
    # the digest finds the folders that a killed mailer with the same home has left
    prefix = f"mailer-{hashlib.sha256(socket_path).hexdigest()[:16]}-"
    for leftover in temporary.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=temporary))
    try:
        if user is not None:
            os.chown(folder, user.uid, user.gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
