"""Measure speed and size of the admin pages with a million clients, and the cost of open pages.

The real process works on the data set of `bench/scale.py`. Limits:

- the first response of every page in a new process within 150 ms;
- the clients whom 20 mailings for a list of 100,000 clients share, in the calendar and in the
  preview of another mailing for it, within 1 s each, at the median;
- a page with all its assets (style sheets, scripts, images) under 200 kB;
- for ten open pages that receive live updates, mailer uses less than 1 % of a core more than
  without open pages. Both are measured in turns, while mailer is idle and while it sends.

The benchmark creates its own database on the server of MAILER_DATABASE_URL, else on an embedded
server. Needs 8 GB of disk; takes about eight minutes.
"""

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

import harness
import scale
from scaling import calls, lists

MAX_FIRST_RESPONSE = 0.150
"""Seconds."""
MAX_COUNTING = 1.0
"""Seconds for a page that counts the clients of a large list."""
MAX_BYTES = 200_000
"""Bytes of a page with its assets."""
MAX_CPU = 0.01
"""Part of a core that mailer may use for ten open pages."""
SEND_RATE = 20
"""Messages a second while mailer sends."""
MEASURE_SECONDS = 15.0
"""Seconds over which processor time is measured."""
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
    "/clients/{existing_client}",
    "/clients/{existing_client}/delete",
    "/clients/import",
    "/system",
)
"""The measured pages. Names in braces stand for values of the data set (`scaling/calls.py`)."""
LIST_PAGES = (
    "/calendar",
    "/calendar?view=month",
    "/clients/lists",
    "/clients/lists/{list}",
)
"""The measured pages that show the large list or the mailings for it. The name in braces stands for
a value of `scaling/lists.py`."""
COUNTING_PAGES = ("/calendar?view=month&overlaps=yes", "/mailings/new?list={list}")
"""Pages that count the clients of the large list, or those whom the mailings for it share."""
PREVIEW = "/mailings/preview"
FORM = {
    "zone": "Europe/Moscow",
    "audience": "lists",
    "lists": lists.LIST_NAME,
    "purpose": "marketing",
    "on_unknown": "hold",
    "priority": "normal",
}
"""The form of a mailing for the large list, with neither start nor end: all mailings for the list
are compared with it."""
PREVIEWED_TEXTS = ("Half price.", "Dear {{ name | friend }}, half price.")
"""Texts of the form: without and with a placeholder."""
OPEN_PAGES = (
    *("/", "/", "/", "/mailings", "/mailings", "/mailings?status=running"),
    "/mailings/{largest}",
    "/mailings/{largest}",
    "/mailings/{short}",
    "/system",
)
"""Ten pages as users keep them open, with the same names in braces. All receive live updates."""
PAGE_PREFIX = ""
"""What goes before the path of a page: nothing, because pages are not under `/api/v1`."""
ASSET = re.compile(r'(?:src|href)="(/static/[^"]+)"')
"""The URL of an asset, in the HTML of a page."""
LIVE_URL = re.compile(r'data-live="([^"]+)"')
"""The URL of the live updates, in the HTML of a page."""
RESPONSE_HEAD_SIZE = 300
"""Bytes of the head of a response, roughly."""


async def page_size(mailer: harness.Mailer, html: bytes, asset_sizes: dict[str, int]) -> int:
    """Return the bytes of a page with all its assets; `asset_sizes` caches known sizes."""
    total = len(html) + RESPONSE_HEAD_SIZE
    for asset in set(ASSET.findall(html.decode())):
        if asset not in asset_sizes:
            asset_sizes[asset] = len(await mailer.get(asset)) + RESPONSE_HEAD_SIZE
        total += asset_sizes[asset]
    return total


class WorstPage(NamedTuple):
    """The largest value of a figure so far, and its page."""

    value: float
    page: str


async def measure_page(
    name: str, times: int, get: Callable[[], Awaitable[bytes]]
) -> tuple[list[float], bytes]:
    """Get a page `times` times, and print the figures; return the seconds and the last HTML."""
    seconds, html = [], b""
    for _ in range(times):
        began = time.perf_counter()
        html = await get()
        seconds.append(time.perf_counter() - began)
    median, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[-1]
    figures = f"{seconds[0] * 1e3:6.1f} {median * 1e3:7.1f} {p99 * 1e3:6.1f}"
    print(f"{figures} ms {len(html):8,}  {name}", flush=True)
    return seconds, html


async def measure_pages(url: str, times: int, verdict: harness.Verdict) -> None:
    """Get each page `times` times from a new process, and check times and sizes."""
    slowest_first = slowest_counting = largest = WorstPage(0.0, "")
    asset_sizes: dict[str, int] = {}
    print(" first  median    p99       HTML  page")
    async with harness.serve(harness.NO_GATEWAY, database_url=url) as mailer:
        values = await calls.read_values(mailer.database)
        list_values = await lists.read_values(mailer.database)

        def get(page: str) -> Awaitable[bytes]:
            if page in LIST_PAGES:
                return mailer.get(page.format(**list_values))
            return mailer.get(values.path(page, prefix=PAGE_PREFIX))

        for page in (*PAGES, *LIST_PAGES):
            seconds, html = await measure_page(page, times, partial(get, page))
            size = await page_size(mailer, html, asset_sizes)
            slowest_first = max(slowest_first, WorstPage(seconds[0], page))
            largest = max(largest, WorstPage(size, page))
        counting = {
            page: partial(mailer.get, page.format(**list_values)) for page in COUNTING_PAGES
        } | {
            f"{PREVIEW} of “{text}”": partial(mailer.submit, PREVIEW, FORM | {"text": text})
            for text in PREVIEWED_TEXTS
        }
        for name, submit in counting.items():
            seconds, _ = await measure_page(name, times, submit)
            slowest_counting = max(slowest_counting, WorstPage(statistics.median(seconds), name))
    for figure, (seconds_of_slowest, page), limit in (
        ("slowest first response", slowest_first, MAX_FIRST_RESPONSE),
        ("slowest count of a large list", slowest_counting, MAX_COUNTING),
    ):
        verdict.check(
            f"{figure} {seconds_of_slowest * 1e3:.0f} ms, of {page}",
            limit=f"{limit * 1e3:.0f} ms",
            holds=seconds_of_slowest < limit,
        )
    figure = f"largest page {largest.value:,.0f} bytes with assets, {largest.page}"
    verdict.check(figure, limit=f"{MAX_BYTES:,}", holds=largest.value < MAX_BYTES)


async def read_updates(session: aiohttp.ClientSession, path: str) -> None:
    """Read the live updates of a page, as a browser does, until this task is cancelled.

    Raises `RuntimeError` when they end earlier, and aiohttp's error for a status of 400 or above.
    """
    no_timeout = aiohttp.ClientTimeout(total=None)
    async with session.get(path, timeout=no_timeout, raise_for_status=True) as response:
        async for _ in response.content:
            pass
    message = f"the live updates {path} ended during the measurement"
    raise RuntimeError(message)


async def open_pages(mailer: harness.Mailer, stack: AsyncExitStack) -> None:
    """Open ten pages, and read their live updates until `stack` is closed.

    Raises `RuntimeError` for a page without live updates: its cost would not be measured.
    """
    values = await calls.read_values(mailer.database)
    session = await stack.enter_async_context(aiohttp.ClientSession(mailer.address))
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    for page in OPEN_PAGES:
        html = (await mailer.get(values.path(page, prefix=PAGE_PREFIX))).decode()
        live_url = LIVE_URL.search(html)
        if live_url is None:
            message = f"the page {page} has no live updates"
            raise RuntimeError(message)
        updates = tasks.create_task(read_updates(session, live_url[1].replace("&amp;", "&")))
        stack.callback(updates.cancel)


class CpuUse(NamedTuple):
    """The parts of a core that the processes use."""

    mailer: float
    database: float


async def cpu_use(mailer: harness.Mailer) -> CpuUse:
    """Measure the processor use of mailer and of its PostgreSQL over `MEASURE_SECONDS`."""
    server = harness.parent_of(await mailer.database.fetchval("SELECT pg_backend_pid()"))
    began = time.monotonic()
    mailer_before = harness.cpu_seconds(mailer.pid)
    database_before = harness.server_cpu_seconds(server)
    await asyncio.sleep(MEASURE_SECONDS)
    elapsed = time.monotonic() - began
    mailer_seconds = harness.cpu_seconds(mailer.pid) - mailer_before
    database_seconds = harness.server_cpu_seconds(server) - database_before
    return CpuUse(mailer_seconds / elapsed, database_seconds / elapsed)


async def measure_open_pages(
    verdict: harness.Verdict, url: str, *, gateway_url: str, rounds: int, state: str
) -> None:
    """Measure processor time with and without open pages, in turns, and check its limit.

    `state` names in the output what mailer does meanwhile.
    """
    mailer_costs: list[float] = []
    database_costs: list[float] = []
    async with harness.serve(gateway_url, database_url=url, gateway_rate=SEND_RATE) as mailer:
        await asyncio.sleep(MEASURE_SECONDS)  # the work at the start does not count
        for _ in range(rounds):
            without = await cpu_use(mailer)
            async with AsyncExitStack() as stack:
                await open_pages(mailer, stack)
                await asyncio.sleep(1)  # until each page has got its first update
                with_pages = await cpu_use(mailer)
            mailer_costs.append(with_pages.mailer - without.mailer)
            database_costs.append(with_pages.database - without.database)
            print(f"{state}: {without.mailer:.2%} of a core without open pages,", end=" ")
            print(f"{with_pages.mailer:.2%} with them", flush=True)
    cost, database_cost = statistics.median(mailer_costs), statistics.median(database_costs)
    figure = f"ten open pages, {state}: {cost:.2%} of a core (PostgreSQL {database_cost:.2%})"
    verdict.check(figure, limit=f"under {MAX_CPU:.0%}", holds=cost < MAX_CPU)


async def main(folder: Path, clients: int, times: int, rounds: int, *, keep: bool) -> int:
    """Create the data set, measure pages and open pages; return the exit status."""
    verdict = harness.Verdict()
    async with AsyncExitStack() as stack:
        is_new_by_url = await stack.enter_async_context(scale.databases(folder, keep=keep))
        url, is_new = next(iter(is_new_by_url.items()))  # of the large database
        if is_new:
            await scale.fill(url, clients, verify=False)
        await lists.add_list(url)
        await measure_pages(url, times, verdict)
        await measure_open_pages(
            verdict, url, gateway_url=harness.NO_GATEWAY, rounds=rounds, state="idle"
        )
        sink = await stack.enter_async_context(harness.sink())
        state = f"sending {SEND_RATE} a second"
        await measure_open_pages(verdict, url, gateway_url=sink.url, rounds=rounds, state=state)
        requests = (await sink.read_report()).requests
        if requests < SEND_RATE * MEASURE_SECONDS * rounds:  # half of the measured time
            message = f"mailer did not send all the time: {requests} requests"
            raise RuntimeError(message)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=30, help="how often to get each page")
    parser.add_argument("--rounds", type=int, default=3)
    keep_help = "keep the databases for the next run with --keep"
    parser.add_argument("--keep", action="store_true", help=keep_help)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's own user must enter it
        arguments = (Path(name), args.clients, args.times, args.rounds)
        sys.exit(uvloop.run(main(*arguments, keep=args.keep)))
