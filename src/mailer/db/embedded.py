"""PostgreSQL as a child process: made, started, watched and stopped with mailer.

In `postgresql/` under the data folder: `data` is PostgreSQL's own; `server.log` is what it said
since mailer started; `lock` is held by the mailer that runs it; `pg_hba.conf` and `pg_ident.conf`
say who may connect; `programs-*` is a copy for a user who cannot reach the installed ones.
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

from mailer.db.binaries import WHEEL, Binaries, choose_binaries, find_binaries
from mailer.db.child import Account, Child
from mailer.db.postmaster import PORT, STOPS, Postmaster, last_complaint, lines_since, url_of
from mailer.errors import StartError, UnavailableError

SOCKET_PATH_LIMIT = 107  # bytes; unix(7)
MAY_PASS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EIO}
)
"""The machine has run out of something; every other error comes from the folder."""


@asynccontextmanager
async def embedded_postgres(data_dir: Path, *, share: bool = False) -> AsyncIterator[str]:
    """Run PostgreSQL under `data_dir` while the block lasts; yields a URL that libpq takes.

    One process at a time may run it; with `share`, one that another process runs is used. A server
    that ends by itself is started again, under the same URL. Enter it on the main thread: the
    server stops with the thread that started it.
    Raises `StartError` when a setting is wrong, `UnavailableError` for what may pass.
    """
    async with AsyncExitStack() as stack:
        with _os_errors_explained(data_dir):
            home = _make_home(data_dir)
            if share and (url := _url_in_use(home)):
                yield url
                return
            stack.enter_context(_locked(home))
            output = stack.enter_context(_opened(home / "server.log", os.O_APPEND | os.O_TRUNC))
            account = _unprivileged_account(home)
            binaries = await asyncio.to_thread(_usable_binaries, home, account)
            _write_access_rules(home)
            if not (home / "data" / "PG_VERSION").exists():
                await _create_data(home, binaries, account, output)
            sockets = stack.enter_context(_socket_folder(home, account))
            server = Postmaster(home, binaries, account, sockets, output)
            stack.push_async_callback(server.stop)
            await server.start()
        # Not in a TaskGroup, which would wrap what the block raises.
        watch = asyncio.create_task(server.keep_running())
        try:
            yield url_of("mailer", sockets)
        finally:
            watch.cancel()
            await asyncio.wait({watch})


@contextmanager
def _os_errors_explained(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.strerror}: {error.filename2 or error.filename}"
        message = f"PostgreSQL cannot run under {data_dir}: {what}"
        if error.errno in MAY_PASS:
            raise UnavailableError(message) from error
        advice = "set MAILER_DATA_DIR to a folder of this user, or MAILER_DATABASE_URL"
        raise StartError(f"{message}; {advice}") from error


def _make_home(data_dir: Path) -> Path:
    home = data_dir.resolve() / "postgresql"
    for folder in [*reversed(home.parents), home]:
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            if os.geteuid() == 0:  # whatever the umask: PostgreSQL's user passes through
                folder.chmod(0o755)
    return home


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file of mailer's own that no child inherits."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the lock of `home`; the kernel lets go of it when mailer dies."""
    with _opened(home / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = (
                f"another mailer already runs on {home.parent}: stop it, or set another"
                " MAILER_DATA_DIR, or let both share a PostgreSQL through MAILER_DATABASE_URL"
            )
            raise UnavailableError(message) from None
        yield


def _url_in_use(home: Path) -> str | None:
    """Return the URL of the server that another mailer runs on `home`, if one does."""
    with _opened(home / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(FileNotFoundError, IndexError):  # it is starting, and has no address yet
                sockets = (home / "data" / "postmaster.pid").read_text().splitlines()[4]
                return url_of("mailer", Path(sockets))
    return None


def _unprivileged_account(home: Path) -> Account | None:
    """Return whom PostgreSQL runs as when mailer is root: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    with suppress(FileNotFoundError):
        owner = (home / "data").stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    message = "PostgreSQL cannot run as root, and there is no user postgres or nobody: add one"
    raise StartError(message)


def _usable_binaries(home: Path, account: Account | None) -> Binaries:
    """Return the programs to run, which `account` can reach like the data."""
    found = find_binaries()
    if account is None:
        return choose_binaries(found, home / "data")
    user = f"PostgreSQL runs as user {account.uid}, not as root, and that user"
    if closed := account.closed_folder(home):
        message = f"{user} may not enter {closed}: set MAILER_DATA_DIR to a folder it can reach"
        raise StartError(message)
    closed_to = {
        binaries: None if binaries.is_wheel else account.closed_folder(binaries.folder)
        for binaries in found
    }
    found.sort(key=lambda binaries: closed_to[binaries] is not None)
    chosen = choose_binaries(found, home / "data")
    if closed := closed_to[chosen]:
        message = f"{user} may not enter {closed}: move PostgreSQL, or set MAILER_DATABASE_URL"
        raise StartError(message)
    if chosen.is_wheel and account.closed_folder(chosen.folder):
        return _lent(chosen, home)
    return chosen


def _lent(binaries: Binaries, home: Path) -> Binaries:
    """Return a copy of the wheel's programs in `home`: a checkout under /root is root's alone."""
    site_packages = binaries.folder.parents[2]
    made_at = (binaries.folder / "postgres").stat().st_mtime_ns
    copy = home / f"programs-{binaries.major}-{made_at}"
    if not copy.exists():
        for outdated in home.glob("programs-*"):
            shutil.rmtree(outdated)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=home))
        new.chmod(0o755)
        for part in (WHEEL, f"{WHEEL}.libs"):  # the programs find their libraries beside them
            shutil.copytree(
                site_packages / part, new / part, ignore=shutil.ignore_patterns("include")
            )
        new.rename(copy)
    return Binaries(copy / binaries.folder.relative_to(site_packages), binaries.major)


def _write_access_rules(home: Path) -> None:
    """Let in the operating system's user that runs mailer, and nobody else, without a password."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        message = (
            f"PostgreSQL needs a user with a name, and user {os.geteuid()} has none:"
            " add it to /etc/passwd, or set MAILER_DATABASE_URL"
        )
        raise StartError(message) from None
    rules = {
        "pg_hba.conf": "local all mailer,postgres peer map=mailer\n",
        "pg_ident.conf": f'mailer "{user}" mailer\nmailer "{user}" postgres\n',
    }
    for name, text in rules.items():
        with _opened(home / name, os.O_TRUNC) as file:
            os.fchmod(file, 0o644)
            os.write(file, text.encode())


async def _create_data(
    home: Path, binaries: Binaries, account: Account | None, output: int
) -> None:
    """Make the data folder, whole or not at all."""
    new = await asyncio.to_thread(_make_new_folder, home, account)
    command: list[str | Path] = [binaries.folder / "initdb", "-D", new, "--username=postgres"]
    command += ["--auth-local=peer", "--auth-host=reject", "--data-checksums", "--no-instructions"]
    command += ["--encoding=UTF8", *_locale(binaries.major)]
    child = Child(command, account, output)
    try:
        await child.ended.wait()
        if child.code != 0:
            reason = (
                last_complaint(lines_since(output, 0)) or f"initdb ended with code {child.code}"
            )
            message = f"PostgreSQL cannot make {home / 'data'}: {reason}"
            raise UnavailableError(message)
        _put_in_place(new, home / "data")  # in no thread, which would go on when this is cancelled
    finally:
        await child.end(*STOPS)
        await asyncio.to_thread(_remove_unfinished, home)


def _remove_unfinished(home: Path) -> None:
    for folder in home.glob("new-*"):  # where the initdb of a killed mailer may still be at work
        shutil.rmtree(folder, ignore_errors=True)


def _make_new_folder(home: Path, account: Account | None) -> Path:
    _remove_unfinished(home)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    if account is not None:
        os.chown(new, account.uid, account.gid)
    return new


def _locale(major: int) -> list[str]:
    """Code point order, whatever the system's locales are or become."""
    if major >= 17:  # noqa: PLR2004  # the first that brings a locale of its own
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]


def _put_in_place(new: Path, data: Path) -> None:
    new.rename(data)
    parent = os.open(data.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # or a power failure takes the name back, and the data with it
    finally:
        os.close(parent)


@contextmanager
def _socket_folder(home: Path, account: Account | None) -> Iterator[Path]:
    """Lend a folder for the socket that nobody else can enter: `data`, or a short one."""
    data = home / "data"
    socket = os.fsencode(data / f".s.PGSQL.{PORT}")
    if len(socket) <= SOCKET_PATH_LIMIT and not {",", '"'} & set(str(data)):  # these part lists
        yield data
        return
    # Not TMPDIR: that may be long, or closed to PostgreSQL's user.
    shared = Path("/tmp")  # noqa: S108  # the folder in it is private
    prefix = f"mailer-{hashlib.sha256(socket).hexdigest()[:16]}-"
    for leftover in shared.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=shared))
    try:
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
