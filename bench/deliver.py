"""Measure how fast one mailing is delivered to 100,000 clients, and whether memory stays constant.

The real process runs on its embedded database; the sandbox gateway runs in its own process.
Limits: every message is accepted and delivered exactly once; the resident memory of mailer at the
end is within 20 % of that after a tenth of the messages. Takes about a minute.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

import harness
from mailer.statuses import MESSAGE_STATUSES

POLL_INTERVAL = 0.05
"""Seconds between two reads of the mailing's progress, from the database, not from mailer."""
PROGRESS = """
    SELECT audience_cursor = audience_until AS is_enqueued, status = 'finished' AS is_finished,
        delivered FROM mailing JOIN mailing_counts ON mailing_id = id WHERE id = $1"""


class DeliveryRun(msgspec.Struct):
    """Times, memory and processor time of the delivery of one mailing.

    Everything but `created_at` is filled in while the mailing is delivered.
    """

    created_at: float
    """Unix time."""
    enqueued_after: float | None = None
    """Seconds from `created_at` until the whole audience is enqueued."""
    finished_after: float | None = None
    """Seconds from `created_at` until the mailing is finished."""
    memory_at_a_tenth: harness.Memory | None = None
    memory_at_the_end: harness.Memory | None = None
    mailer_cpu: float = 0
    database_cpu: float = 0
    """Processor seconds of mailer and of its PostgreSQL."""


async def deliver(mailer: harness.Mailer, clients: int) -> tuple[int, DeliveryRun]:
    """Create a mailing that is due, and measure it until it is finished.

    Return the id of the mailing and the figures.
    """
    database = harness.postmaster_of(mailer.pid)
    mailer_cpu_before = harness.cpu_seconds(mailer.pid)
    database_cpu_before = harness.tree_cpu_seconds(database)
    mailing_id: int = (await mailer.create_mailing())["id"]
    run = DeliveryRun(time.time())
    while run.finished_after is None:
        await asyncio.sleep(POLL_INTERVAL)
        [(is_enqueued, is_finished, delivered)] = await mailer.database.fetch(PROGRESS, mailing_id)
        seconds = time.time() - run.created_at
        if is_enqueued and run.enqueued_after is None:
            run.enqueued_after = seconds
        if delivered >= clients / 10 and run.memory_at_a_tenth is None:
            run.memory_at_a_tenth = harness.memory(mailer.pid)
        if is_finished:
            run.finished_after = seconds
    run.memory_at_the_end = harness.memory(mailer.pid)
    run.mailer_cpu = harness.cpu_seconds(mailer.pid) - mailer_cpu_before
    run.database_cpu = harness.tree_cpu_seconds(database) - database_cpu_before
    return mailing_id, run


def rates(arrived: list[int]) -> list[float]:
    """Return the messages a second in each tenth of the requests.

    `arrived` are the times of all requests in order, in Unix microseconds.
    """
    last = len(arrived) - 1
    tenth_times = [arrived[round(tenth * last / 10)] for tenth in range(11)]
    return [len(arrived) / 10 / (end - start) * 1e6 for start, end in pairwise(tenth_times)]


def check_memory(verdict: harness.Verdict, run: DeliveryRun) -> None:
    """Check the resident memory of mailer, and print the proportional memory."""
    tenth, end = run.memory_at_a_tenth, run.memory_at_the_end
    assert tenth is not None  # noqa: S101  # the mailing was delivered
    assert end is not None  # noqa: S101  # likewise
    harness.check_memory(verdict, at_a_tenth=tenth.resident, at_the_end=end.resident)
    print(f"proportional size {tenth.proportional / 2**20:.1f} MiB at a tenth,", end=" ")
    print(f"{end.proportional / 2**20:.1f} MiB at the end")


def check_counts(
    verdict: harness.Verdict, mailing: dict[str, Any], requests: list[dict[str, Any]]
) -> None:
    """Check that each message was accepted by the gateway, and is delivered, exactly once.

    `mailing` is the API's JSON; `requests` are the rows of the gateway's log.
    """
    clients = mailing["clients_count"]
    counts = {name: mailing[f"{name}_messages"] for name in MESSAGE_STATUSES}
    verdict.check(
        f"mailing: {', '.join(f'{name} {count:,}' for name, count in counts.items())}",
        limit=f"{clients:,} delivered",
        holds=counts["delivered"] == sum(counts.values()) == clients,
    )
    accepted = sum(row["kind"] == "accepted" for row in requests)
    repeats = sum("repeat" in row for row in requests)
    verdict.check(
        f"gateway: requests {len(requests):,}, accepted {accepted:,}, repeats {repeats:,}",
        limit=f"{clients:,} accepted, 0 repeats",
        holds=len(requests) == accepted == clients and not repeats,
    )


def print_speed(run: DeliveryRun, clients: int, arrived: list[int]) -> None:
    """Print the times and rates.

    `arrived` are the times of all requests in order, in Unix microseconds.
    """
    by_tenth = rates(arrived)
    last_after = arrived[-1] / 1e6 - run.created_at
    print(f"audience enqueued after {run.enqueued_after:.2f} s; sending starts before that")
    print(f"last message sent after {last_after:.2f} s, finished after {run.finished_after:.2f} s")
    print(f"{clients / last_after:,.0f} messages a second; by tenth:", end=" ")
    print(*(f"{rate:,.0f}" for rate in by_tenth), end=" ")
    print(f"(last/first {by_tenth[-1] / by_tenth[0]:.2f})")
    print(f"processor time a message: mailer {run.mailer_cpu / clients * 1e6:.0f} µs,", end=" ")
    print(f"PostgreSQL {run.database_cpu / clients * 1e6:.0f} µs")


async def main(clients: int) -> int:
    """Deliver one mailing and print its figures; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            harness.sandbox(Path(folder, "requests.jsonl")) as gateway,
            harness.serve(gateway.url) as mailer,
        ):
            await mailer.create_clients(clients)
            mailing_id, run = await deliver(mailer, clients)
            mailing = await mailer.call("GET", f"/mailings/{mailing_id}")
        requests = gateway.requests()
    verdict = harness.Verdict()
    print(f"{clients:,} clients")
    print_speed(run, clients, sorted(row["arrived"] for row in requests))
    check_memory(verdict, run)
    check_counts(verdict, mailing, requests)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000)
    sys.exit(asyncio.run(main(parser.parse_args().clients)))
