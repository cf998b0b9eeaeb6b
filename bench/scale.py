"""Whether a page answers as soon with a million clients as with a thousand.

Two databases on one server, which `bench/scaling/data.py` fills: one with a million clients, ten
million messages and ten thousand mailings, the other with a thousandth of it. The real process on
each answers every GET of the API, in turns. Limits on the large one: every page of up to 100 rows
within 25 ms at the median and 100 ms at the 99th percentile, and statistics within 1.5 times what
they take on the small one. It works on databases of its own on the server of MAILER_DATABASE_URL,
or on an embedded one. Needs 8 GB of disk; takes about six minutes.
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
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import create_engine
from mailer.report.verify import differences
from scaling import data
from scaling.calls import CALLS, PAGES, Values, look

MEDIAN, P99 = 0.025, 0.100
"""Seconds that a page may take."""
RATIO = 1.5
WARMING = 10
"""Calls of each kind that do not count: connections are made, statements prepared."""
THOUSANDTH = 1000
LARGE, SMALL = "mailer_scale", "mailer_scale_thousandth"


async def measure(
    servers: dict[harness.Mailer, Values], call: str, times: int
) -> list[list[float]]:
    """Return the seconds of each call of a kind, by server; they take turns."""
    seconds: dict[harness.Mailer, list[float]] = {mailer: [] for mailer in servers}
    for turn in range(WARMING + times):
        for mailer in servers if turn % 2 else reversed(servers):
            path = servers[mailer].path(call)
            began = time.perf_counter()
            await mailer.read(path)
            seconds[mailer].append(time.perf_counter() - began)
    return [taken[WARMING:] for taken in seconds.values()]


class Worst:
    """The worst figures so far, each with the call that it is of."""

    def __init__(self) -> None:
        self.median = self.p99 = self.ratio = (0.0, "")

    def tell(self, call: str, large: list[float], small: list[float]) -> None:
        """Print a call's figures, and remember them if the limits are for it."""
        median, p99 = statistics.median(large), statistics.quantiles(large, n=100)[-1]
        ratio = median / statistics.median(small)
        is_long = "limit=1000" in call
        mark = " (more rows than the limits are for)" if is_long else ""
        is_broken = not is_long and (median > MEDIAN or p99 > P99)
        print(f"{median * 1e3:6.1f} {p99 * 1e3:6.1f} ms {ratio:5.2f}  {call}", end="")
        print(f"{mark}{'   BROKEN' if is_broken else ''}", flush=True)
        if not is_long:
            self.median = max(self.median, (median, call))
            self.p99 = max(self.p99, (p99, call))
        if "statistics" in call:
            self.ratio = max(self.ratio, (ratio, call))

    def judge(self) -> int:
        """Print the worst figures against the limits; return the exit status."""
        verdict = harness.Verdict()
        for what, (seconds, call), limit in (
            ("median", self.median, MEDIAN),
            ("99th percentile", self.p99, P99),
        ):
            figure = f"largest {what} {seconds * 1e3:.1f} ms, of {call}"
            verdict.check(figure, limit=f"{limit * 1e3:.0f} ms", holds=seconds <= limit)
        ratio, call = self.ratio
        figure = f"largest ratio of statistics {ratio:.2f}, of {call}"
        verdict.check(figure, limit=f"under {RATIO}", holds=ratio < RATIO)
        return verdict.status


async def fill(url: str, clients: int, *, is_verified: bool) -> None:
    """Make a data set, and say how large it is; raises when its counts do not add up."""
    began = time.monotonic()
    size = await data.make(url, clients)
    seconds = time.monotonic() - began
    print(f"{clients:,} clients and what belongs to them: {size / 2**30:.2f} GiB,", end=" ")
    print(f"made in {seconds:.0f} s", flush=True)
    if is_verified:
        engine = create_engine(url)
        found = await differences(engine)
        await engine.dispose()
        if found:
            raise RuntimeError("\n".join(map(str, found)))


@asynccontextmanager
async def databases(folder: Path, *, keep: bool) -> AsyncIterator[dict[str, bool]]:
    """Give the URLs of the large and the small database, and of each whether it is empty."""
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
            there = await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name)
            if not there:
                await admin.execute(f"CREATE DATABASE {name}")
            is_new[urlunsplit(urlsplit(server)._replace(path=f"/{name}"))] = not there
        yield is_new


async def main(folder: Path, clients: int, times: int, *, keep: bool, verify: bool) -> int:
    """Make what is to be asked for, ask, and judge; return the exit status."""
    sizes = (clients, max(10, clients // THOUSANDTH))
    worst = Worst()
    async with AsyncExitStack() as stack:
        urls = await stack.enter_async_context(databases(folder, keep=keep))
        servers = {}
        for (url, is_new), size in zip(urls.items(), sizes, strict=True):
            if is_new:
                await fill(url, size, is_verified=verify or size < clients)
            mailer = await stack.enter_async_context(harness.serve("", database_url=url))
            servers[mailer] = await look(mailer.database)
        print("median    p99     ratio of medians to a thousandth")
        for call in (*CALLS, *PAGES):
            worst.tell(call, *await measure(servers, call, times))
    return worst.judge()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=200, help="that each call is made")
    parser.add_argument("--verify", action="store_true", help="the large data set too")
    parser.add_argument("--keep", action="store_true", help="databases, for the next with --keep")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's user passes through
        options = {"keep": given.keep, "verify": given.verify}
        sys.exit(uvloop.run(main(Path(name), given.clients, given.times, **options)))
