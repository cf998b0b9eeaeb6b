"""Measure whether rate and memory stay constant during one mailing for a million clients.

The real process on its embedded database sends through the sink, 50 requests at once. Limits:

- the rate of the last tenth of the messages is at least 0.95 of that of the first tenth;
- the resident memory at the end is within 20 % of that after a tenth of the messages;
- there is exactly one request for each client.

Also prints, for each message, the processor time and the bytes of PostgreSQL's write-ahead log
(WAL). Takes about five minutes.
"""

import argparse
import asyncio
import sys
import time

import msgspec

import harness
from sink import SinkReport

MIN_RATE_RATIO = 0.95
CONCURRENCY = 50
POLL_INTERVAL = 0.25
"""Seconds between two reads of the mailing's progress, from the database, not from mailer."""
MIN_RATE = 500
"""Messages a second; the benchmark stops with an error if the mean rate is lower."""
START_TIMEOUT = 60.0
"""Seconds that the mailing may take in addition, before its first and after its last request."""
# The columns are fields of `Progress`. `wal` counts from the creation of the database; a page image
# is a whole page in the WAL, after the first change of the page since a checkpoint.
PROGRESS = """
    SELECT (pg_current_wal_lsn() - '0/0')::bigint AS wal,
        (SELECT wal_fpi FROM pg_stat_wal) AS page_images,
        (SELECT num_timed + num_requested FROM pg_stat_checkpointer) AS checkpoints,
        delivered, audience_cursor = audience_until AS is_enqueued,
        status = 'finished' AS is_finished
    FROM mailing JOIN mailing_counts ON mailing_id = id WHERE id = $1"""


class Progress(msgspec.Struct, frozen=True):
    """Progress of the mailing at a moment, and what mailer and PostgreSQL have used until then."""

    at: float
    """Unix time in seconds."""
    resident: int
    """Bytes of mailer's resident memory."""
    mailer_cpu: float
    """Processor seconds of mailer."""
    database_cpu: float
    """Processor seconds of PostgreSQL."""
    wal: int
    """Bytes of WAL."""
    page_images: int
    checkpoints: int
    delivered: int
    """Messages delivered so far."""
    is_enqueued: bool
    """Whether the whole audience is enqueued."""
    is_finished: bool


class Milestones(msgspec.Struct, frozen=True):
    """The progress at the moments that are compared."""

    start: Progress
    enqueued: Progress
    """When the audience is enqueued."""
    tenth: Progress
    """When a tenth of the messages is delivered."""
    end: Progress


async def read_progress(mailer: harness.Mailer, mailing_id: int) -> Progress:
    """Read the present progress of the mailing."""
    database = harness.postmaster_of(mailer.pid)
    [row] = await mailer.database.fetch(PROGRESS, mailing_id)
    return Progress(
        at=time.time(),
        resident=harness.memory(mailer.pid).resident,
        mailer_cpu=harness.cpu_seconds(mailer.pid),
        database_cpu=harness.server_cpu_seconds(database),
        **dict(row),
    )


async def measure(mailer: harness.Mailer, clients: int) -> Milestones:
    """Create a mailing that starts in a second, and read its progress until it is finished."""
    created = await mailer.create_mailing(starts_in=1)
    start = current = await read_progress(mailer, created["id"])
    enqueued = tenth = None
    async with asyncio.timeout(START_TIMEOUT + clients / MIN_RATE):
        while not current.is_finished:
            await asyncio.sleep(POLL_INTERVAL)
            current = await read_progress(mailer, created["id"])
            if enqueued is None and current.is_enqueued:
                enqueued = current
            if tenth is None and current.delivered >= clients / 10:
                tenth = current
    return Milestones(start, enqueued or current, tenth or current, end=current)


def check_rates(verdict: harness.Verdict, milestones: Milestones, report: SinkReport) -> None:
    """Print the rates by tenth, and check the ratio of the last to the first."""
    times, rates = report.tenth_times, report.rate_by_tenth
    print(f"{report.requests:,} messages in {times[-1] - times[0]:.0f} s,", end=" ")
    print(f"{report.rate:,.0f} a second; the audience was enqueued", end=" ")
    print(f"{milestones.enqueued.at - times[0]:.1f} s after the first message was sent")
    print("messages a second by tenth:", *(f"{rate:,.0f}" for rate in rates))
    ratio = rates[-1] / rates[0]
    verdict.check(
        f"ratio of the last tenth to the first {ratio:.2f}",
        limit=f"at least {MIN_RATE_RATIO}",
        holds=ratio >= MIN_RATE_RATIO,
    )
    after_enqueue = [
        rate
        for rate, began in zip(rates, times[:-1], strict=True)
        if began >= milestones.enqueued.at
    ]
    if after_enqueue:
        ratio = after_enqueue[-1] / after_enqueue[0]
        print(
            f"ratio of the last tenth to the first one after the audience was enqueued {ratio:.2f}"
        )


def print_cost(milestones: Milestones, clients: int) -> None:
    """Print the WAL and the processor time of a message.

    The WAL of sending is measured on the messages delivered after the audience was enqueued. The
    rest of the WAL is attributed to enqueuing.
    """
    start, enqueued, end = milestones.start, milestones.enqueued, milestones.end
    wal = (end.wal - start.wal) / clients
    print(f"WAL {wal:,.0f} bytes a message", end="")
    if sent := end.delivered - enqueued.delivered:
        wal_of_sending = (end.wal - enqueued.wal) / sent
        print(f": {wal - wal_of_sending:,.0f} to enqueue it,", end=" ")
        print(f"{wal_of_sending:,.0f} to send it (measured on the last {sent:,} messages)", end="")
    images, checkpoints = end.page_images - start.page_images, end.checkpoints - start.checkpoints
    print(f" ({images:,} full-page images, {checkpoints} checkpoints)")
    mailer_cpu, database_cpu = (
        (getattr(end, name) - getattr(start, name)) / clients * 1e6
        for name in ("mailer_cpu", "database_cpu")
    )
    print(f"processor time a message: mailer {mailer_cpu:.0f} µs,", end=" ")
    print(f"PostgreSQL {database_cpu:.0f} µs, autovacuum and checkpoints included")


async def main(clients: int) -> int:
    """Send one mailing and print its figures; return the exit status."""
    verdict = harness.Verdict()
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.create_clients(clients)
        await mailer.checkpoint()
        milestones = await measure(mailer, clients)
        report = await sink.read_report()
    check_rates(verdict, milestones, report)
    harness.check_memory(
        verdict, at_a_tenth=milestones.tenth.resident, at_the_end=milestones.end.resident
    )
    print_cost(milestones, clients)
    delivered = milestones.end.delivered
    figure = f"{report.requests:,} requests, {delivered:,} delivered"
    holds = report.requests == delivered == clients
    verdict.check(figure, limit=f"{clients:,} each", holds=holds)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1_000_000)
    sys.exit(asyncio.run(main(parser.parse_args().clients)))
