"""Whether one mailing for a million clients keeps its pace and its memory to the end.

The real process on its embedded database, through the sink, 50 at once. Limits: the last tenth at
least 0.95 of the first's rate, and the resident size at the end within 20 % of that at a tenth of
the way. Prints what a message costs too: log of changes (WAL), PostgreSQL's and mailer's processor
time. Takes about five minutes.
"""

import argparse
import asyncio
import sys
import time

import msgspec

import harness
from sink import Taken

LIMIT = 0.95
CONCURRENCY = 50
PAUSE = 0.25
"""Seconds between looks at how far it is; they go to the database, not to mailer."""
SLOWEST = 500
"""Messages a second, below which the wait is given up."""
PROGRESS = """
    SELECT (pg_current_wal_lsn() - '0/0')::bigint, (SELECT wal_fpi FROM pg_stat_wal),
        (SELECT num_timed + num_requested FROM pg_stat_checkpointer), delivered,
        audience_cursor = audience_until, status = 'finished'
    FROM mailing JOIN ledger ON mailing_id = id WHERE id = $1"""


class Point(msgspec.Struct, frozen=True):
    """How far the mailing was at a moment, seconds of Unix time, and what it had used."""

    at: float
    resident: int
    mailer_cpu: float
    database_cpu: float
    wal: int
    page_images: int
    checkpoints: int
    delivered: int
    is_taken: bool
    is_finished: bool


class Course(msgspec.Struct, frozen=True):
    """The points of the way that are compared."""

    start: Point
    taken: Point
    tenth: Point
    end: Point


async def look(mailer: harness.Mailer, mailing_id: int) -> Point:
    """Return how far the mailing is."""
    database = harness.postmaster_of(mailer.pid)
    [progress] = await mailer.database.fetch(PROGRESS, mailing_id)
    return Point(
        time.time(),
        harness.memory(mailer.pid)[0],
        harness.cpu_seconds(mailer.pid),
        harness.server_cpu_seconds(database),
        *progress,
    )


async def watch(mailer: harness.Mailer, clients: int) -> Course:
    """Create a mailing that is due and watch it until it is finished."""
    created = await mailer.add_mailing(starts_in=1)
    start = point = await look(mailer, created["id"])
    taken = tenth = None
    async with asyncio.timeout(60 + clients / SLOWEST):
        while not point.is_finished:
            await asyncio.sleep(PAUSE)
            point = await look(mailer, created["id"])
            taken = taken or (point if point.is_taken else None)
            tenth = tenth or (point if point.delivered >= clients / 10 else None)
    return Course(start, taken or point, tenth or point, point)


def tell_pace(verdict: harness.Verdict, course: Course, sent: Taken) -> None:
    """Print the rates; `marks` are the moments of each tenth."""
    taken_at = course.taken.at - sent.marks[0]
    duration = sent.marks[-1] - sent.marks[0]
    print(f"{sent.requests:,} messages in {duration:.0f} s, {sent.rate:,.0f} a second", end="; ")
    print(f"the audience was taken {taken_at:.1f} s after the first, while sending already went on")
    print("by tenth:", *(f"{rate:,.0f}" for rate in sent.by_tenth))
    ratio = sent.by_tenth[-1] / sent.by_tenth[0]
    holds = ratio >= LIMIT
    verdict.check(f"last tenth to the first {ratio:.2f}", limit=f"at least {LIMIT}", holds=holds)
    alone = [
        rate
        for rate, begin in zip(sent.by_tenth, sent.marks[:-1], strict=True)
        if begin >= course.taken.at
    ]
    if alone:
        print(f"last tenth to the first after the audience was taken {alone[-1] / alone[0]:.2f}")


def tell_memory(verdict: harness.Verdict, course: Course) -> None:
    """Print the memory figures."""
    tenth, end = course.tenth.resident, course.end.resident
    figure = f"resident size {tenth / 2**20:.1f} MiB at a tenth, {end / 2**20:.1f} MiB at the end"
    ratio = end / tenth
    holds = 0.8 <= ratio <= 1.2  # noqa: PLR2004  # the limit
    verdict.check(f"{figure}, ratio {ratio:.2f}", limit="0.80 to 1.20", holds=holds)


def tell_cost(course: Course, clients: int) -> None:
    """Print what a message cost; only after the audience was taken is sending alone to be seen."""
    start, taken, end = course.start, course.taken, course.end
    wal = (end.wal - start.wal) / clients
    print(f"WAL {wal:,.0f} bytes a message", end="")
    if sent := end.delivered - taken.delivered:
        sending = (end.wal - taken.wal) / sent
        print(f": {sending:,.0f} to send it, by the {sent:,} sent after the audience was", end=" ")
        print(f"taken, and so {wal - sending:,.0f} to take it into the audience", end="")
    images, checkpoints = end.page_images - start.page_images, end.checkpoints - start.checkpoints
    print(f" ({images:,} full-page images, {checkpoints} checkpoints)")
    mailer_cpu, database_cpu = (
        (getattr(end, name) - getattr(start, name)) / clients * 1e6
        for name in ("mailer_cpu", "database_cpu")
    )
    print(f"processor time a message: mailer {mailer_cpu:.0f} µs,", end=" ")
    print(f"PostgreSQL {database_cpu:.0f} µs, autovacuum and checkpoints included")


async def main(clients: int) -> int:
    """Send one mailing and print how it went; return the exit status."""
    verdict = harness.Verdict()
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.add_clients(clients)
        await mailer.checkpoint()
        course = await watch(mailer, clients)
        sent = await sink.taken()
    tell_pace(verdict, course, sent)
    tell_memory(verdict, course)
    tell_cost(course, clients)
    holds = sent.requests == course.end.delivered == clients
    figure = f"{sent.requests:,} requests, {course.end.delivered:,} delivered"
    verdict.check(figure, limit=f"{clients:,} each", holds=holds)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    sys.exit(asyncio.run(main(parser.parse_args().clients)))
