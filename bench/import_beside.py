"""How a mailing is sent beside imports of 10 MB: files that are good, and as bad as can be.

A mailing goes out at a steady rate to a sink, through a real process that reports each block of its
event loop (`watched.py`). For a while nothing else goes on, then a file is imported, again and
again for as long; three times for each file. Limits, each on the median of the three, since other
work of the process has blocks of its own: half the rate of just before, without an import; 10 ms of
processor time for the longest block; a second for the slowest answer of /health/live. And no
message is sent twice. Takes half an hour.
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

SIZE = 10_000_000
RATE = 200
"""Messages a second: what one process with a modest gateway sends."""
ENOUGH = 300 * RATE
"""Messages that wait before a file is imported: for longer than its imports take."""
AUDIENCE = {"operator_codes": [f"{code}" for code in range(900, 945)]}
"""Half of the clients that there are at first, and hardly one of those that are imported."""
ALONE = 5.0
"""Seconds for which the rate is measured alone, and at least beside a file."""
LEAST_SHARE, LONGEST_BLOCK, SLOWEST_HEALTH = 0.5, 0.010, 1.0
"""Of the rate alone; seconds; seconds, as probes are patient unless told otherwise."""
TIMES = 3
PROBE = 0.1
"""Seconds between two probes of /health/live."""


def lines(line: str) -> Callable[[int], bytes]:
    """Return what makes a file of one line again and again, under a header."""
    return lambda size: b"phone,tag\n" + line.encode() * (size // len(line.encode()))


def good(size: int) -> bytes:
    """Return a file of clients, each another one."""
    every = (f"79{n:09},tag {n % 100}\n" for n in count(500_000_000))
    return ("phone,tag\n" + "".join(next(every) for _ in range(size // 19))).encode()


FILES: dict[str, Callable[[int], bytes]] = {
    "good clients": good,
    "phones as people write them": lines("+7 (916) 123-45-67,vip\n"),
    "lines x": lines("x\n"),
    'lines x","': lines('x","\n'),
    "quotes that open": lines('79160000001,"\n'),
    "a quote in each line": lines('"\n'),
    "empty lines": lines("\n"),
    "lines of NUL": lines("\0\n"),
    "line ends of all kinds": lines("1,\r\n2,\r3,\n"),
    "a quoted field of many lines": lines('79160000001,"' + "\n" * 1900 + '"\n'),
    "one quoted field": lambda size: b'phone\n"' + b"x" * size,
    "one line": lambda size: b"phone\n" + b"x" * size,
    "a header of many columns": lambda size: b"phone" + b",tag" * (size // 4),
    "no UTF-8": lambda size: b"\xef\xbb\xbfphone,tag\n" + b"79160000001,\xff\xff\n" * (size // 15),
    "windows-1251": lines("79160000001,\N{CYRILLIC SMALL LETTER YA}\n"),
    "UTF-16 of half characters": lambda size: b"\xff\xfephone" + b"\x00\xd8" * (size // 2),
}


class Beside(msgspec.Struct):
    """What there was beside the import of one file."""

    share: float
    """Of the rate of just before, when there was no import."""
    block: float
    """Processor time of the longest block, seconds."""
    health: float
    """Slowest answer of /health/live, seconds."""


@asynccontextmanager
async def probing(mailer: harness.Mailer) -> AsyncIterator[list[float]]:
    """Ask /health/live again and again, and note the seconds of each answer."""
    seconds: list[float] = []

    async def probe() -> None:
        while True:
            asked_at = time.monotonic()
            await mailer.read("/health/live")
            seconds.append(time.monotonic() - asked_at)
            await asyncio.sleep(PROBE)

    async with asyncio.TaskGroup() as tasks:
        probes = tasks.create_task(probe())
        yield seconds
        probes.cancel()


async def beside(
    mailer: harness.Mailer, sink: harness.SinkProcess, name: str, content: bytes
) -> Beside:
    """Import a file, again and again for `ALONE` seconds, and return what there was meanwhile."""
    await sink.taken()
    await asyncio.sleep(ALONE)
    alone = (await sink.taken()).requests / ALONE
    mailer.blocks.clear()
    began = time.monotonic()
    async with probing(mailer) as answers:
        imports, seconds = 0, 0.0
        while seconds < ALONE:  # a shorter time would measure how it happens to begin
            answer = await mailer.upload("/clients/import", content, "text/csv")
            imports, seconds = imports + 1, time.monotonic() - began
        rate = (await sink.taken()).requests / seconds
    block = max(mailer.blocks, key=lambda each: each.cpu_seconds, default=None)
    longest = block.cpu_seconds if block else 0.0
    where = f" in {block.frames}" if block and longest >= LONGEST_BLOCK else ""
    figures = (
        f"{rate:.0f} of {alone:.0f} messages a second, longest block {longest * 1e3:.0f} ms{where}"
    )
    print(f"{name}: {answer} in {seconds / imports:.1f} s, {figures}", flush=True)
    return Beside(rate / alone, longest, max(answers, default=0.0))


async def fill(mailer: harness.Mailer) -> None:
    """Add a mailing unless enough messages wait, and wait until its audience is enqueued."""
    counts = await mailer.call("GET", "/statistics")
    if counts["messages"]["scheduled"] >= ENOUGH:
        return
    mailing = await mailer.add_mailing(client_filter=AUDIENCE)
    async with asyncio.timeout(harness.PATIENCE):
        while mailing["created_messages"] < mailing["clients_count"]:
            await asyncio.sleep(PROBE)
            mailing = await mailer.call("GET", f"/mailings/{mailing['id']}")


async def main(size: int, only: str, times: int) -> int:
    """Import every file beside mailings, and judge; return the exit status."""
    verdict = harness.Verdict()
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, harness.WATCHED, gateway_rate=RATE) as mailer,
    ):
        await mailer.add_clients(200_000)
        found = {}
        for name, make in FILES.items():
            if only in name:
                await fill(mailer)
                found[name] = [await beside(mailer, sink, name, make(size)) for _ in range(times)]
        repeats = (await sink.taken()).repeats
    for name, of_file in found.items():
        judge(verdict, name, of_file)
    verdict.check(f"messages sent twice: {repeats}", limit="0", holds=repeats == 0)
    return verdict.status


def judge(verdict: harness.Verdict, name: str, found: list[Beside]) -> None:
    """Hold what there was beside a file against its limits."""
    share = median(each.share for each in found)
    figure = f"beside {name}: {share:.2f} of the rate"
    verdict.check(figure, limit=f"{LEAST_SHARE}", holds=share >= LEAST_SHARE)
    block = median(each.block for each in found)
    figure, limit = f"  longest block {block * 1e3:.0f} ms", f"{LONGEST_BLOCK * 1e3:.0f} ms"
    verdict.check(figure, limit=limit, holds=block <= LONGEST_BLOCK)
    health = median(each.health for each in found)
    figure, limit = f"  /health/live in {health * 1e3:.0f} ms", f"{SLOWEST_HEALTH * 1e3:.0f} ms"
    verdict.check(figure, limit=limit, holds=health <= SLOWEST_HEALTH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of each file")
    parser.add_argument("--only", default="", help="files whose names hold this")
    parser.add_argument("--times", type=int, default=TIMES, help="imports of each file")
    given = parser.parse_args()
    sys.exit(uvloop.run(main(given.size, given.only, given.times)))
