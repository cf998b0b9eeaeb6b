r"""How fast a million clients are imported, against `psql \copy` into a table of the same shape.

Both in the same run on the same server, in turns: the peer table has the directory's columns,
constraints and indexes, and psql gets the same file. Limits: half the peer's speed on the median of
the turns, and 200 MB resident. Afterwards the same file once more, which changes nothing. Uses a
database of its own on the server of MAILER_DATABASE_URL, or an embedded one. Takes three minutes.
"""

import argparse
import asyncio
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from operator import truediv
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

import harness
from mailer.access.model import COMMAND_LINE
from mailer.client.importing import ImportReport, import_clients
from mailer.db.binaries import find_binaries
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate

DATABASE = "mailer_bench_import"
LEAST_RATIO = 0.5
MOST_RESIDENT = 200  # MB
PART = 64 * 1024
"""Bytes that the import is given at once, as a server gets them from a connection."""
ZONES = ("Europe/Moscow", "Asia/Yekaterinburg", "Asia/Novosibirsk", "Asia/Vladivostok", "UTC")
NEW_PEER = """
    DROP TABLE IF EXISTS peer;
    CREATE TABLE peer (LIKE client INCLUDING ALL)"""
EMPTY = "TRUNCATE client RESTART IDENTITY"


def write_file(path: Path, rows: int) -> None:
    """Write the clients: phones in no order, every seventh code ported, every second tagged."""
    draw = random.Random(1)  # noqa: S311  # not for secrets
    subscribers = draw.sample(range(10**9), rows)
    with path.open("w") as file:
        file.write("phone,operator_code,tag,time_zone\n")
        for n, subscriber in enumerate(subscribers):
            phone = f"79{subscriber:09}"
            code = "999" if n % 7 == 0 else phone[1:4]
            tag = f"group {n % 100}" if n % 2 else ""
            file.write(f"{phone},{code},{tag},{ZONES[n % len(ZONES)]}\n")


async def seconds_by_psql(psql: str, database: asyncpg.Connection, url: str, path: Path) -> float:
    """Return how long psql takes to copy the file into a new peer table."""
    await database.execute(NEW_PEER)
    columns = "phone, operator_code, tag, time_zone"
    copy = f"\\copy peer ({columns}) FROM '{path}' (FORMAT csv, HEADER)"
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(psql, "-qX", url, "-c", copy)
    if await process.wait():
        raise RuntimeError("psql failed")
    return time.perf_counter() - began


async def seconds_by_import(engine: AsyncEngine, path: Path) -> tuple[float, ImportReport]:
    """Return how long the import takes, and its report."""
    began = time.perf_counter()
    report = await import_clients(engine, parts_of(path), COMMAND_LINE)
    return time.perf_counter() - began, report


async def parts_of(path: Path) -> AsyncIterator[bytes]:
    """Give the file part by part."""
    with path.open("rb") as file:
        while part := file.read(PART):
            yield part


async def measure(url: str, path: Path, rows: int, turns: int) -> int:
    """Print the figures of every turn and their medians; return the exit status."""
    psql = find_psql()
    engine = create_engine(url)
    database = await connect(url)
    await migrate(engine)
    by_psql, by_import = [], []
    for turn in range(1, turns + 1):
        by_psql.append(await seconds_by_psql(psql, database, url, path))
        await database.execute(EMPTY)
        seconds, report = await seconds_by_import(engine, path)
        by_import.append(seconds)
        if report.created != rows:
            raise RuntimeError(f"not every client was created: {report}")
        print(f"turn {turn}: psql {by_psql[-1]:.1f} s, import {seconds:.1f} s")
    again, report = await seconds_by_import(engine, path)
    if report.unchanged != rows:
        raise RuntimeError(f"the same file changed something: {report}")
    await database.close()
    await engine.dispose()
    peer, ours = statistics.median(by_psql), statistics.median(by_import)
    print(f"medians: psql {peer:.1f} s, import {ours:.1f} s, {rows / ours:,.0f} rows a second")
    print(f"the same file again: {again:.1f} s")
    return judge(statistics.median(map(truediv, by_psql, by_import)))


def judge(ratio: float) -> int:
    """Print the figures that have limits; return the exit status."""
    verdict = harness.Verdict()
    verdict.check(
        f"speed: {ratio:.2f} of psql's", limit=f"{LEAST_RATIO}", holds=ratio >= LEAST_RATIO
    )
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    verdict.check(
        f"memory: {resident:.0f} MB resident at most",
        limit=f"{MOST_RESIDENT} MB",
        holds=resident <= MOST_RESIDENT,
    )
    return verdict.status


def find_psql() -> str:
    """Return where psql is: on the PATH, or beside the PostgreSQL that mailer would start."""
    found = shutil.which("psql") or next(
        (str(psql) for programs in find_binaries() if (psql := programs.folder / "psql").exists()),
        None,
    )
    if found is None:
        raise RuntimeError("no psql found")
    return found


@asynccontextmanager
async def new_database(folder: Path) -> AsyncIterator[str]:
    """Give the URL of an empty database, on the server that is set or on an embedded one."""
    async with AsyncExitStack() as stack:
        server = os.environ.get("MAILER_DATABASE_URL")
        if server is None:
            server = await stack.enter_async_context(embedded_postgres(folder))
        admin = await connect(server)
        stack.push_async_callback(admin.close)
        drop = f"DROP DATABASE IF EXISTS {DATABASE}"
        await admin.execute(drop)
        await admin.execute(f"CREATE DATABASE {DATABASE}")
        stack.push_async_callback(admin.execute, drop)
        yield urlunsplit(urlsplit(server)._replace(path=f"/{DATABASE}"))


async def main(folder: Path, file: Path, rows: int, turns: int) -> int:
    """Run the benchmark; return the exit status."""
    async with new_database(folder) as url:
        return await measure(url, file, rows, turns)


def run(rows: int, turns: int) -> int:
    """Write the file in a process of its own, whose memory is not the import's, and go on."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's user passes through
        file = folder / "clients.csv"
        command = [sys.executable, __file__, "--write", str(file), "--rows", str(rows)]
        subprocess.run(command, check=True)  # noqa: S603  # this very script
        return uvloop.run(main(folder, file, rows, turns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_file(given.write, given.rows)
    else:
        sys.exit(run(given.rows, given.turns))
