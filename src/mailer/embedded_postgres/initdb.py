"""Creation of PostgreSQL's data folder by its program initdb."""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from mailer.embedded_postgres.binaries import UNFINISHED_PREFIX, Binaries
from mailer.embedded_postgres.child import Child, SystemUser
from mailer.embedded_postgres.postmaster import (
    SHUTDOWN_SIGNALS,
    find_error_message,
    read_log_since,
)
from mailer.errors import UnavailableError


async def create_data(home: Path, binaries: Binaries, user: SystemUser | None, output: int) -> None:
    """Create the folder `home / "data"` with initdb, completely or not at all.

    The caller has locked `home`. The folder belongs to `user`, or to mailer's own user when that is
    None. initdb writes its messages to the file descriptor `output`. Raises `UnavailableError` with
    the last message of initdb.
    """
    new = await asyncio.to_thread(_create_new_folder, home, user)
    command: list[str | Path] = [binaries.folder / "initdb", "-D", new, "--username=postgres"]
    # the authentication of initdb's own pg_hba.conf, which mailer replaces by another file
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
        # Not in a thread: that would go on after a cancellation of this task. The caller then
        # unlocks `home`, and another mailer could start in it while this one still renames.
        _move_into_place(new, home / "data")
    finally:
        await child.stop(*SHUTDOWN_SIGNALS)
        await asyncio.to_thread(_remove_unfinished, home)


def _remove_unfinished(home: Path) -> None:
    """Remove what an interrupted creation has left in `home`."""
    for folder in home.glob(f"{UNFINISHED_PREFIX}*"):
        # ignore_errors: the initdb of a killed mailer may still write there for a moment
        shutil.rmtree(folder, ignore_errors=True)


def _create_new_folder(home: Path, user: SystemUser | None) -> Path:
    """Create an empty folder in `home` that belongs to `user`."""
    _remove_unfinished(home)
    new = Path(tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=home))
    if user is not None:
        os.chown(new, user.uid, user.gid)
    return new


def _locale_options(major: int) -> list[str]:
    """Return initdb's options for a collation that sorts by the numbers of characters in Unicode.

    This order of texts never changes. That of another locale may change with an update of the
    operating system, and then indexes on texts would be wrong.
    """
    if major >= 17:  # noqa: PLR2004  # the first version with a built-in locale provider
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]


def _move_into_place(new: Path, data: Path) -> None:
    """Rename the folder `new` to `data`, so that the change survives a power failure."""
    new.rename(data)
    parent = os.open(data.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
