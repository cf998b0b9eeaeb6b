r"""Measure how fast a million clients are imported, compared with `psql \copy`.

mailer's import, which runs in this process, and psql take turns on the same server with the same
file. psql copies it into a table with the columns, constraints and indexes of `client`. At the end
the import reads the same file once more, which must change nothing.

Limits: the median speed of the import is at least half that of psql, and this process uses at most
200 MB of resident memory.

The benchmark creates its own database on the server of MAILER_DATABASE_URL, else on an embedded
server. Takes about three minutes.
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
from mailer.db.engine import connect, create_engine
from mailer.db.migrate import migrate
from mailer.embedded_postgres.binaries import find_binaries
from mailer.embedded_postgres.cluster import embedded_postgres

DATABASE = "mailer_bench_import"
MIN_SPEED_RATIO = 0.5
MAX_RESIDENT = 200
"""Largest resident memory of this process, in MB."""
CHUNK_SIZE = 64 * 1024
"""Bytes passed to the import at once, about what a server reads from a connection."""
ZONES = ("Europe/Moscow", "Asia/Yekaterinburg", "Asia/Novosibirsk", "Asia/Vladivostok", "UTC")
CREATE_COPY_TABLE = """
    DROP TABLE IF EXISTS client_copy;
    CREATE TABLE client_copy (LIKE client INCLUDING ALL)"""
DELETE_CLIENTS = "TRUNCATE client RESTART IDENTITY"


def write_file(path: Path, rows: int) -> None:
    """Write `rows` clients as CSV, with phones in random order.

    One in seven has an operator code that is not the one in the phone; one in two has a tag.
    """
    rng = random.Random(1)  # noqa: S311  # not for secrets
    subscribers = rng.sample(range(10**9), rows)
    with path.open("w") as file:
        file.write("phone,operator_code,tag,time_zone\n")
        for n, subscriber in enumerate(subscribers):
            phone = f"79{subscriber:09}"
            code = "999" if n % 7 == 0 else phone[1:4]
            tag = f"group {n % 100}" if n % 2 else ""
            file.write(f"{phone},{code},{tag},{ZONES[n % len(ZONES)]}\n")


async def seconds_by_psql(psql: str, database: asyncpg.Connection, url: str, path: Path) -> float:
    """Return the seconds that psql takes to copy the file into a new table."""
    await database.execute(CREATE_COPY_TABLE)
    columns = "phone, operator_code, tag, time_zone"
    copy = f"\\copy client_copy ({columns}) FROM '{path}' (FORMAT csv, HEADER)"
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(psql, "-qX", url, "-c", copy)
    if await process.wait():
        raise RuntimeError("psql failed")
    return time.perf_counter() - began


async def seconds_by_import(engine: AsyncEngine, path: Path) -> tuple[float, ImportReport]:
    """Return the seconds that the import takes, and its report."""
    began = time.perf_counter()
    report = await import_clients(engine, chunks(path), COMMAND_LINE)
    return time.perf_counter() - began, report


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield the file in chunks."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk


async def measure(url: str, path: Path, rows: int, rounds: int) -> int:
    """Print the figures of every round and their medians; return the exit status."""
    psql = find_psql()
    engine = create_engine(url)
    database = await connect(url)
    await migrate(engine)
    by_psql, by_import = [], []
    for round_number in range(1, rounds + 1):
        by_psql.append(await seconds_by_psql(psql, database, url, path))
        await database.execute(DELETE_CLIENTS)
        seconds, report = await seconds_by_import(engine, path)
        by_import.append(seconds)
        if report.created != rows:
            raise RuntimeError(f"not every client was created: {report}")
        print(f"round {round_number}: psql {by_psql[-1]:.1f} s, import {seconds:.1f} s")
    second_import, report = await seconds_by_import(engine, path)
    if report.unchanged != rows:
        raise RuntimeError(f"the same file changed something: {report}")
    await database.close()
    await engine.dispose()
    psql_median, median = statistics.median(by_psql), statistics.median(by_import)
    print(f"medians: psql {psql_median:.1f} s, import {median:.1f} s,", end=" ")
    print(f"{rows / median:,.0f} rows a second")
    print(f"the same file again: {second_import:.1f} s")
    speed_ratios = map(truediv, by_psql, by_import)
    return check_limits(statistics.median(speed_ratios))


def check_limits(speed_ratio: float) -> int:
    """Print speed and memory with their limits; return the exit status."""
    verdict = harness.Verdict()
    verdict.check(
        f"speed: {speed_ratio:.2f} of psql's",
        limit=f"at least {MIN_SPEED_RATIO}",
        holds=speed_ratio >= MIN_SPEED_RATIO,
    )
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB; the kernel gives KiB
    verdict.check(
        f"memory: {resident:.0f} MB resident at most",
        limit=f"{MAX_RESIDENT} MB",
        holds=resident <= MAX_RESIDENT,
    )
    return verdict.status


def find_psql() -> str:
    """Return the path of psql: from the PATH, else from the PostgreSQL that mailer would start."""
    psql = shutil.which("psql") or next(
        (str(file) for programs in find_binaries() if (file := programs.folder / "psql").exists()),
        None,
    )
    if psql is None:
        raise RuntimeError("psql not found")
    return psql


@asynccontextmanager
async def new_database(folder: Path) -> AsyncIterator[str]:
    """Yield the URL of an empty database, on the configured server or on an embedded one."""
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


async def main(folder: Path, file: Path, rows: int, rounds: int) -> int:
    """Run the benchmark; return the exit status."""
    async with new_database(folder) as url:
        return await measure(url, file, rows, rounds)


def run(rows: int, rounds: int) -> int:
    """Write the file and run the benchmark; return the exit status.

    Another process writes the file, so that its memory does not count as the import's.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL's own user must enter it
        file = folder / "clients.csv"
        command = [sys.executable, __file__, "--write", str(file), "--rows", str(rows)]
        subprocess.run(command, check=True)  # noqa: S603  # it runs this script
        return uvloop.run(main(folder, file, rows, rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_file(args.write, args.rows)
    else:
        sys.exit(run(args.rows, args.rounds))
