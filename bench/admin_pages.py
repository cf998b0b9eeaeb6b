"""Whether the admin pages stay quick and light beside a million clients, and what live ones cost.

The data set of `bench/scale.py`; the real process. Limits: the first answer of every page in a
process that has just started within 150 ms; a page with all its assets under 200 kB; and ten open
pages that are kept up to date cost mailer under 1 % of a core, at rest and while it sends, against
the same process without them, in turns. It works on a database of its own on the server of
MAILER_DATABASE_URL, or on an embedded one. Needs 8 GB of disk; takes about eight minutes.
"""

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import uvloop

import harness
import scale
from scaling import calls

FIRST, BYTES, COST = 0.150, 200_000, 0.01
RATE = 20
"""Messages a second while it sends."""
TURN = 15.0
PAGES = (
    "/",
    "/mailings",
    "/mailings?status=finished",
    "/mailings?search=order",
    "/mailings?before={mailing}",
    "/mailings/new",
    "/mailings/new?from={largest}",
    "/mailings/{largest}",
    "/mailings/{largest}/edit",
    "/mailings/{largest}/pause",
    "/mailings/{largest}/cancel",
    "/mailings/{largest}/messages",
    "/mailings/{largest}/messages?status=undelivered",
    "/mailings/{largest}/messages?reason=rejected_400",
    "/mailings/{largest}/messages?phone={phone}",
    "/mailings/{largest}/messages/{message}",
    "/mailings/{short}",
    "/clients",
    "/clients?tag={tag}",
    "/clients?phone={phone}",
    "/clients?before={client}",
    "/clients/new",
    "/clients/{living}",
    "/clients/{living}/delete",
    "/clients/import",
    "/system",
)
OPEN = (
    *("/", "/", "/", "/mailings", "/mailings", "/mailings?status=running"),
    "/mailings/{largest}",
    "/mailings/{largest}",
    "/mailings/{short}",
    "/system",
)
"""Ten pages as people have them open."""
ASSET = re.compile(r'(?:src|href)="(/static/[^"]+)"')
LIVE = re.compile(r'data-live="([^"]+)"')
HEAD = 300
"""Bytes of an answer's head, roughly."""


async def weigh(mailer: harness.Mailer, html: bytes, sizes: dict[str, int]) -> int:
    """Return the bytes of a page with all its assets; `sizes` keeps those that are known."""
    total = len(html) + HEAD
    for asset in set(ASSET.findall(html.decode())):
        if asset not in sizes:
            sizes[asset] = len(await mailer.read(asset)) + HEAD
        total += sizes[asset]
    return total


async def first_answers(url: str, times: int, verdict: harness.Verdict) -> None:
    """Ask for each page first in a new process, then again and again."""
    worst_first = worst_bytes = (0.0, "")
    sizes: dict[str, int] = {}
    print(" first  median    p99      bytes  page")
    async with harness.serve("", database_url=url) as mailer:
        values = await calls.look(mailer.database)
        for page in PAGES:
            seconds = []
            for _ in range(times):
                began = time.perf_counter()
                html = await mailer.read(values.path(page, prefix=""))
                seconds.append(time.perf_counter() - began)
            weight = await weigh(mailer, html, sizes)
            median, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[-1]
            figures = f"{seconds[0] * 1e3:6.1f} {median * 1e3:7.1f} {p99 * 1e3:6.1f}"
            print(f"{figures} ms {weight:8,}  {page}", flush=True)
            worst_first = max(worst_first, (seconds[0], page))
            worst_bytes = max(worst_bytes, (float(weight), page))
    seconds_taken, page = worst_first
    figure = f"slowest first answer {seconds_taken * 1e3:.0f} ms, of {page}"
    verdict.check(figure, limit=f"{FIRST * 1e3:.0f} ms", holds=seconds_taken < FIRST)
    weight, page = int(worst_bytes[0]), worst_bytes[1]
    verdict.check(f"heaviest {weight:,} bytes, {page}", limit=f"{BYTES:,}", holds=weight < BYTES)


async def follow(session: aiohttp.ClientSession, path: str) -> None:
    """Read a page's live sections, as an open page does."""
    async with session.get(path, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        async for _ in answer.content:
            pass


async def open_pages(mailer: harness.Mailer, stack: AsyncExitStack) -> None:
    """Open ten pages and follow them until `stack` ends."""
    values = await calls.look(mailer.database)
    session = await stack.enter_async_context(aiohttp.ClientSession(mailer.address))
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    for page in OPEN:
        html = (await mailer.read(values.path(page, prefix=""))).decode()
        if live := LIVE.search(html):
            following = tasks.create_task(follow(session, live[1].replace("&amp;", "&")))
            stack.callback(following.cancel)


async def spent(mailer: harness.Mailer) -> tuple[float, float]:
    """Return the parts of a core that mailer and PostgreSQL use over a turn."""
    server = harness.parent_of(await mailer.database.fetchval("SELECT pg_backend_pid()"))
    began = time.monotonic()
    own, other = harness.cpu_seconds(mailer.pid), harness.server_cpu_seconds(server)
    await asyncio.sleep(TURN)
    passed = time.monotonic() - began
    own = harness.cpu_seconds(mailer.pid) - own
    return own / passed, (harness.server_cpu_seconds(server) - other) / passed


async def live_cost(
    url: str, gateway: str, turns: int, state: str, verdict: harness.Verdict
) -> None:
    """Measure with and without open pages, in turns."""
    costs: list[float] = []
    others: list[float] = []
    async with harness.serve(gateway, database_url=url, gateway_rate=RATE) as mailer:
        await asyncio.sleep(TURN)
        for _ in range(turns):
            own, other = await spent(mailer)
            async with AsyncExitStack() as stack:
                await open_pages(mailer, stack)
                await asyncio.sleep(1)
                own_open, other_open = await spent(mailer)
            costs.append(own_open - own)
            others.append(other_open - other)
            print(f"{state}: {own:.2%} without, {own_open:.2%} with ten open pages", flush=True)
    cost, other = statistics.median(costs), statistics.median(others)
    figure = f"ten open pages, {state}: {cost:.2%} of a core (PostgreSQL {other:.2%})"
    verdict.check(figure, limit=f"under {COST:.0%}", holds=cost < COST)


async def main(folder: Path, clients: int, times: int, turns: int, *, keep: bool) -> int:
    """Make the data set, ask for every page, keep ten open, and judge; return the exit status."""
    verdict = harness.Verdict()
    async with AsyncExitStack() as stack:
        urls = await stack.enter_async_context(scale.databases(folder, keep=keep))
        url, is_new = next(iter(urls.items()))
        if is_new:
            await scale.fill(url, clients, is_verified=False)
        await first_answers(url, times, verdict)
        await live_cost(url, "", turns, "at rest", verdict)
        sink = await stack.enter_async_context(harness.sink())
        await live_cost(url, sink.url, turns, f"sending {RATE} a second", verdict)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=30, help="that each page is asked for")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="databases, for the next with --keep")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's user passes through
        arguments = (Path(name), given.clients, given.times, given.turns)
        sys.exit(uvloop.run(main(*arguments, keep=given.keep)))
