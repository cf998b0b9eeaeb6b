"""Measure whether reading the API is as fast with a million clients as with a thousand.

`bench/scaling/data.py` fills two databases on one server: one with a million clients, ten million
messages and ten thousand mailings, the other with a thousandth of that. One real process on each
database answers every GET of the API; the two take turns.

Limits on the large database: every page of up to 100 rows within 25 ms at the median and 100 ms at
the 99th percentile; statistics within 1.5 times their time on the small database.

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
"""Seconds to answer a page of up to 100 rows."""
MAX_STATISTICS_RATIO = 1.5
WARM_UP_CALLS = 10
"""First calls of each kind, not measured: they open connections and prepare statements."""
SIZE_RATIO = 1000
"""Clients in the large database for each client in the small one."""
LARGE, SMALL = "mailer_scale", "mailer_scale_thousandth"
"""Names of the databases."""


async def measure(
    servers: dict[harness.Mailer, CallValues], call: str, times: int
) -> list[list[float]]:
    """Make a call `times` times on each server, in turns; return the seconds, by server."""
    seconds: dict[harness.Mailer, list[float]] = {mailer: [] for mailer in servers}
    for index in range(WARM_UP_CALLS + times):
        for mailer in servers if index % 2 else reversed(servers):
            path = servers[mailer].path(call)
            began = time.perf_counter()
            await mailer.get(path)
            seconds[mailer].append(time.perf_counter() - began)
    return [of_server[WARM_UP_CALLS:] for of_server in seconds.values()]


class WorstFigures:
    """The worst figures so far, each with its call."""

    def __init__(self) -> None:
        self.median = self.p99 = self.ratio = (0.0, "")

    def add(self, call: str, large: list[float], small: list[float]) -> None:
        """Print the figures of a call, and keep them if the limits apply to the call."""
        median, p99 = statistics.median(large), statistics.quantiles(large, n=100)[-1]
        ratio = median / statistics.median(small)
        is_long = "limit=1000" in call
        note = " (no limit: over 100 rows)" if is_long else ""
        is_broken = not is_long and (median > MAX_MEDIAN or p99 > MAX_P99)
        print(f"{median * 1e3:6.1f} {p99 * 1e3:6.1f} ms {ratio:5.2f}  {call}", end="")
        print(f"{note}{'   BROKEN' if is_broken else ''}", flush=True)
        if not is_long:
            self.median = max(self.median, (median, call))
            self.p99 = max(self.p99, (p99, call))
        if "statistics" in call:
            self.ratio = max(self.ratio, (ratio, call))

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
    """Create a data set in an empty database, and print its size.

    With `verify`, raises `RuntimeError` when its counts differ from its rows.
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
    """Yield the URLs of the large and the small database, each with whether it is new.

    With `keep`, use databases that exist, and leave all of them in place at the end.
    """
    async with AsyncExitStack() as stack:
        server = os.environ.get("MAILER_DATABASE_URL")
        if server is None:
            server = await stack.enter_async_context(embedded_postgres(folder))
        admin = await asyncpg.connect(server)
        stack.push_async_callback(admin.close)
        is_new = {}
        for name in (LARGE, SMALL):
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
        urls = await stack.enter_async_context(databases(folder, keep=keep))
        servers = {}
        for (url, is_new), size in zip(urls.items(), sizes, strict=True):
            if is_new:
                await fill(url, size, verify=verify or size < clients)
            mailer = await stack.enter_async_context(harness.serve("", database_url=url))
            servers[mailer] = await read_values(mailer.database)
        print("median    p99     ratio of medians, large to small database")
        for call in (*CALLS, *PAGES):
            worst.add(call, *await measure(servers, call, times))
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
