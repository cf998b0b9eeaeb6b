"""Measure whether reading the API is as fast with a million clients as with a thousand.

`bench/scaling/data.py` fills two databases on one server: one with a million clients, ten million
messages and ten thousand mailings, the other with a thousandth of that. On each database runs one
real process, and every GET of the API is called on both, in turns.

Limits on the large database: every page of up to 100 rows takes at most 25 ms at the median and
100 ms at the 99th percentile; statistics take at most 1.5 times as long as on the small database.

The benchmark creates its own databases on the server of MAILER_DATABASE_URL, else on an embedded
server. Needs 8 GB of disk; takes about six minutes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import uvloop

import harness
from mailer.db.engine import create_engine
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.statistics.verify import find_differences
from scaling import data
from scaling.calls import CALLS, PAGES, CallValues, read_values

MAX_MEDIAN, MAX_P99 = 0.025, 0.100
"""Seconds to answer a page of up to 100 rows: median and 99th percentile."""
MAX_STATISTICS_RATIO = 1.5
WARM_UP_CALLS = 10
"""First calls of each kind, not measured: they open connections and prepare statements."""
SIZE_RATIO = 1000
"""Clients in the large database for each client in the small one."""
LARGE_DATABASE, SMALL_DATABASE = "mailer_scale", "mailer_scale_thousandth"


async def measure(
    mailers: dict[harness.Mailer, CallValues], call: str, times: int
) -> list[list[float]]:
    """Make a call `times` times on each mailer process, in turns.

    `mailers` contains the values that each database has for the names in calls. Return the seconds
    of all calls for each process, in the order of `mailers`.
    """
    seconds: dict[harness.Mailer, list[float]] = {mailer: [] for mailer in mailers}
    for index in range(WARM_UP_CALLS + times):
        for mailer in mailers if index % 2 else reversed(mailers):
            path = mailers[mailer].path(call)
            began = time.perf_counter()
            await mailer.get(path)
            seconds[mailer].append(time.perf_counter() - began)
    return [seconds_of_mailer[WARM_UP_CALLS:] for seconds_of_mailer in seconds.values()]


class WorstFigure(NamedTuple):
    """The largest value of a figure so far, and its call."""

    value: float = 0.0
    call: str = ""


class WorstFigures:
    """The worst figures so far, of all calls to which the limits apply."""

    def __init__(self) -> None:
        self.median = WorstFigure()
        self.p99 = WorstFigure()
        self.ratio = WorstFigure()

    def add(self, call: str, large: list[float], small: list[float]) -> None:
        """Print the figures of a call, and keep them if the limits apply to the call.

        `large` and `small` are the seconds of the call on the large and on the small database.
        """
        median, p99 = statistics.median(large), statistics.quantiles(large, n=100)[-1]
        ratio = median / statistics.median(small)
        is_unlimited = "limit=1000" in call  # more rows than the limits are for
        note = " (no limit: over 100 rows)" if is_unlimited else ""
        is_broken = not is_unlimited and (median > MAX_MEDIAN or p99 > MAX_P99)
        print(f"{median * 1e3:6.1f} {p99 * 1e3:6.1f} ms {ratio:5.2f}  {call}", end="")
        print(f"{note}{'   BROKEN' if is_broken else ''}", flush=True)
        if not is_unlimited:
            self.median = max(self.median, WorstFigure(median, call))
            self.p99 = max(self.p99, WorstFigure(p99, call))
        if "statistics" in call:
            self.ratio = max(self.ratio, WorstFigure(ratio, call))

    def check_limits(self) -> int:
        """Print the worst figures with their limits; return the exit status."""
        verdict = harness.Verdict()
        for name, (seconds, call), limit in (
            ("median", self.median, MAX_MEDIAN),
            ("99th percentile", self.p99, MAX_P99),
        ):
            figure = f"largest {name} {seconds * 1e3:.1f} ms, of {call}"
            verdict.check(figure, limit=f"{limit * 1e3:.0f} ms", holds=seconds <= limit)
        ratio, call = self.ratio
        limit_text = f"under {MAX_STATISTICS_RATIO}"
        figure = f"largest ratio of statistics {ratio:.2f}, of {call}"
        verdict.check(figure, limit=limit_text, holds=ratio < MAX_STATISTICS_RATIO)
        return verdict.status


async def fill(url: str, clients: int, *, verify: bool) -> None:
    """Create a data set for `clients` clients in an empty database, and print its size.

    With `verify`, compares its counts with its rows, and raises `RuntimeError` when they differ.
    """
    began = time.monotonic()
    size = await data.create(url, clients)
    seconds = time.monotonic() - began
    print(f"{clients:,} clients with mailings and messages: {size / 2**30:.2f} GiB,", end=" ")
    print(f"created in {seconds:.0f} s", flush=True)
    if verify:
        engine = create_engine(url)
        wrong_counts = await find_differences(engine)
        await engine.dispose()
        if wrong_counts:
            raise RuntimeError("\n".join(map(str, wrong_counts)))


@asynccontextmanager
async def databases(folder: Path, *, keep: bool) -> AsyncIterator[dict[str, bool]]:
    """Yield the URL of the large and then of the small database, each with whether it is new.

    A new database is empty. With `keep`, databases of an earlier run are used again, and no
    database is dropped at the end.
    """
    async with AsyncExitStack() as stack:
        server = os.environ.get("MAILER_DATABASE_URL")
        if server is None:
            server = await stack.enter_async_context(embedded_postgres(folder))
        admin = await asyncpg.connect(server)
        stack.push_async_callback(admin.close)
        is_new = {}
        for name in (LARGE_DATABASE, SMALL_DATABASE):
            drop = f"DROP DATABASE IF EXISTS {name}"
            if not keep:
                await admin.execute(drop)
                stack.push_async_callback(admin.execute, drop)
            exists = await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name)
            if not exists:
                await admin.execute(f"CREATE DATABASE {name}")
            is_new[urlunsplit(urlsplit(server)._replace(path=f"/{name}"))] = not exists
        yield is_new


async def main(folder: Path, clients: int, times: int, *, keep: bool, verify: bool) -> int:
    """Create the data, measure every call and check the limits; return the exit status."""
    sizes = (clients, max(10, clients // SIZE_RATIO))
    worst = WorstFigures()
    async with AsyncExitStack() as stack:
        is_new_by_url = await stack.enter_async_context(databases(folder, keep=keep))
        mailers = {}
        for (url, is_new), size in zip(is_new_by_url.items(), sizes, strict=True):
            if is_new:
                await fill(url, size, verify=verify or size < clients)
            mailer = await stack.enter_async_context(
                harness.serve(harness.NO_GATEWAY, database_url=url)
            )
            mailers[mailer] = await read_values(mailer.database)
        print("median    p99     ratio of medians, large to small database")
        for call in (*CALLS, *PAGES):
            large, small = await measure(mailers, call, times)
            worst.add(call, large, small)
    return worst.check_limits()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=200, help="how often to make each call")
    verify_help = "compare counts with rows in the large database too"
    parser.add_argument("--verify", action="store_true", help=verify_help)
    keep_help = "keep the databases for the next run with --keep"
    parser.add_argument("--keep", action="store_true", help=keep_help)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's own user must enter it
        options = {"keep": args.keep, "verify": args.verify}
        sys.exit(uvloop.run(main(Path(name), args.clients, args.times, **options)))
