"""Measure how importing files of 10 MB, valid or hostile, affects sending and response times.

A real process that reports blocks of its event loop (`serve_monitored.py`) sends a mailing to a
sink at a steady rate. For each file the benchmark measures the rate for five seconds without an
import. Then it imports the file again and again for at least five seconds. It does all of this
three times.

Limits for the median of the three measurements of a file:

- at least half the rate without an import;
- at most 10 ms of processor time for the longest block of the event loop;
- at most one second for the slowest response of /health/live.

No message may be sent twice. Takes half an hour.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from statistics import median

import msgspec
import uvloop

import harness

FILE_SIZE = 10_000_000
"""Bytes."""
SEND_RATE = 200
"""Messages a second: one process with a modest gateway."""
MIN_SCHEDULED = 300 * SEND_RATE
"""Scheduled messages before a file is imported; enough for longer than its imports take."""
AUDIENCE_FILTER = {"operator_codes": [f"{code}" for code in range(900, 945)]}
"""The filter of the mailing. It matches half of the clients created at first, and hardly any of the
imported ones."""
MEASURE_SECONDS = 5.0
"""Seconds to measure the rate without an import, and at least with imports."""
MIN_RATE_RATIO = 0.5
"""Smallest rate during imports, compared with the rate without."""
MAX_BLOCK = 0.010
"""Seconds of processor time."""
MAX_HEALTH_SECONDS = 1.0
"""Seconds; the usual default timeout of health probes."""
TIMES = 3
"""Measurements of each file."""
PROBE_INTERVAL = 0.1
"""Seconds between two probes of /health/live, and between two reads of a mailing."""


def repeated(line: str) -> Callable[[int], bytes]:
    """Return a function that creates a file of a given size: a header, then the line repeated."""
    return lambda size: b"phone,tag\n" + line.encode() * (size // len(line.encode()))


def valid_file(size: int) -> bytes:
    """Return a file of valid clients, all different."""
    rows = (f"79{n:09},tag {n % 100}\n" for n in count(500_000_000))
    row_size = 19  # bytes, with a tag of six or seven characters
    return ("phone,tag\n" + "".join(next(rows) for _ in range(size // row_size))).encode()


# By name: a function that returns a file of the given size in bytes.
FILES: dict[str, Callable[[int], bytes]] = {
    "valid clients": valid_file,
    "formatted phones": repeated("+7 (916) 123-45-67,vip\n"),
    "lines x": repeated("x\n"),
    'lines x","': repeated('x","\n'),
    "quotes that open": repeated('79160000001,"\n'),
    "a quote in each line": repeated('"\n'),
    "empty lines": repeated("\n"),
    "lines of NUL": repeated("\0\n"),
    "mixed line ends": repeated("1,\r\n2,\r3,\n"),
    "a quoted field of many lines": repeated('79160000001,"' + "\n" * 1900 + '"\n'),
    "one quoted field": lambda size: b'phone\n"' + b"x" * size,
    "one line": lambda size: b"phone\n" + b"x" * size,
    "a header of many columns": lambda size: b"phone" + b",tag" * (size // 4),
    "not UTF-8": lambda size: b"\xef\xbb\xbfphone,tag\n" + b"79160000001,\xff\xff\n" * (size // 15),
    "windows-1251": repeated("79160000001,\N{CYRILLIC SMALL LETTER YA}\n"),
    "UTF-16 of lone surrogates": lambda size: b"\xff\xfephone" + b"\x00\xd8" * (size // 2),
}


class ImportFigures(msgspec.Struct):
    """Figures of one measurement with a file."""

    rate_ratio: float
    """Rate during the imports, divided by the rate just before them."""
    block: float
    """Processor seconds of the longest block of the event loop."""
    health: float
    """Seconds of the slowest response of /health/live."""


@asynccontextmanager
async def probing(mailer: harness.Mailer) -> AsyncIterator[list[float]]:
    """Probe /health/live again and again during the block.

    Yields the list to which the seconds of each response are added.
    """
    seconds: list[float] = []

    async def probe() -> None:
        while True:
            began = time.monotonic()
            await mailer.get("/health/live")
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(PROBE_INTERVAL)

    async with asyncio.TaskGroup() as tasks:
        probes = tasks.create_task(probe())
        yield seconds
        probes.cancel()


async def measure(
    mailer: harness.Mailer, sink: harness.SinkProcess, name: str, content: bytes
) -> ImportFigures:
    """Measure the rate without an import, then import a file for `MEASURE_SECONDS` or longer."""
    await sink.forget_requests()
    await asyncio.sleep(MEASURE_SECONDS)
    rate_without = (await sink.read_report()).requests / MEASURE_SECONDS
    mailer.blocks.clear()
    began = time.monotonic()
    async with probing(mailer) as health_seconds:
        imports, seconds = 0, 0.0
        while seconds < MEASURE_SECONDS:  # one import alone may be too short to measure a rate
            status = await mailer.upload("/clients/import", content, "text/csv")
            imports, seconds = imports + 1, time.monotonic() - began
        rate = (await sink.read_report()).requests / seconds
    longest = max(mailer.blocks, key=lambda block: block.cpu_seconds, default=None)
    block_seconds = longest.cpu_seconds if longest else 0.0
    frames = f" in {longest.frames}" if longest and block_seconds >= MAX_BLOCK else ""
    print(f"{name}: status {status} in {seconds / imports:.1f} s,", end=" ")
    print(f"{rate:.0f} messages a second ({rate_without:.0f} without an import),", end=" ")
    print(f"longest block {block_seconds * 1e3:.0f} ms{frames}", flush=True)
    return ImportFigures(rate / rate_without, block_seconds, max(health_seconds, default=0.0))


async def schedule_messages(mailer: harness.Mailer) -> None:
    """Make sure that enough messages wait to be sent.

    If not, create a mailing and wait until its audience is enqueued.
    """
    counts = await mailer.call("GET", "/statistics")
    if counts["messages"]["scheduled"] >= MIN_SCHEDULED:
        return
    mailing = await mailer.create_mailing(client_filter=AUDIENCE_FILTER)
    async with asyncio.timeout(harness.PROCESS_TIMEOUT):
        while mailing["created_messages"] < mailing["clients_count"]:
            await asyncio.sleep(PROBE_INTERVAL)
            mailing = await mailer.call("GET", f"/mailings/{mailing['id']}")


async def main(size: int, only: str, times: int) -> int:
    """Import every file while a mailing is sent, and check the limits; return the exit status."""
    verdict = harness.Verdict()
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.SERVE_MONITORED, gateway_rate=SEND_RATE) as mailer,
    ):
        await mailer.create_clients(200_000)
        results = {}
        for name, create_file in FILES.items():
            if only in name:
                await schedule_messages(mailer)
                content = create_file(size)
                results[name] = [await measure(mailer, sink, name, content) for _ in range(times)]
        repeats = (await sink.read_report()).repeats
    for name, figures in results.items():
        check_limits(verdict, name, figures)
    verdict.check(f"messages sent twice: {repeats}", limit="0", holds=repeats == 0)
    return verdict.status


def check_limits(verdict: harness.Verdict, name: str, figures: list[ImportFigures]) -> None:
    """Print the medians of a file's figures with their limits."""
    ratio = median(each.rate_ratio for each in figures)
    figure = f"{name}: {ratio:.2f} of the rate without an import"
    verdict.check(figure, limit=f"at least {MIN_RATE_RATIO}", holds=ratio >= MIN_RATE_RATIO)
    block = median(each.block for each in figures)
    figure, limit = f"  longest block {block * 1e3:.0f} ms", f"{MAX_BLOCK * 1e3:.0f} ms"
    verdict.check(figure, limit=limit, holds=block <= MAX_BLOCK)
    health = median(each.health for each in figures)
    limit = f"{MAX_HEALTH_SECONDS * 1e3:.0f} ms"
    figure = f"  slowest /health/live {health * 1e3:.0f} ms"
    verdict.check(figure, limit=limit, holds=health <= MAX_HEALTH_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=FILE_SIZE, help="bytes of each file")
    parser.add_argument("--only", default="", help="only files whose names contain this text")
    parser.add_argument("--times", type=int, default=TIMES, help="measurements of each file")
    args = parser.parse_args()
    sys.exit(uvloop.run(main(args.size, args.only, args.times)))
