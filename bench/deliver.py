"""How fast one mailing for 100,000 clients is delivered, and whether memory stays flat meanwhile.

The real process on its embedded database, the sandbox gateway in a process of its own. Limits:
everything delivered once, and the resident size at the end within 20 % of that at a tenth of the
way. Takes about a minute.
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

PAUSE = 0.05
"""Seconds between looks at how far it is; they go to the database, not to mailer."""
STATUSES = ("scheduled", "sending", "delivered", "undelivered", "unknown", "cancelled")
PROGRESS = """
    SELECT audience_cursor = audience_until AS is_taken, status = 'finished' AS is_finished,
        delivered FROM mailing JOIN ledger ON mailing_id = id WHERE id = $1"""


class Course(msgspec.Struct):
    """How the delivery went; durations are seconds after the answer to the POST."""

    answered_at: float
    taken_at: float = 0
    finished_at: float = 0
    memory_at_a_tenth: tuple[int, int] = (0, 0)
    memory_at_the_end: tuple[int, int] = (0, 0)
    mailer_cpu: float = 0
    database_cpu: float = 0


async def deliver(mailer: harness.Mailer, clients: int) -> tuple[int, Course]:
    """Create a mailing that is due and watch it until it is finished; return its id too."""
    cpu = harness.cpu_seconds(mailer.pid)
    database = harness.postmaster_of(mailer.pid)
    database_cpu = harness.tree_cpu_seconds(database)
    mailing_id: int = (await mailer.add_mailing())["id"]
    course = Course(time.time())
    while not course.finished_at:
        await asyncio.sleep(PAUSE)
        [(is_taken, is_finished, delivered)] = await mailer.database.fetch(PROGRESS, mailing_id)
        now = time.time() - course.answered_at
        if is_taken and not course.taken_at:
            course.taken_at = now
        if delivered >= clients / 10 and not course.memory_at_a_tenth[0]:
            course.memory_at_a_tenth = harness.memory(mailer.pid)
        if is_finished:
            course.finished_at = now
    course.memory_at_the_end = harness.memory(mailer.pid)
    course.mailer_cpu = harness.cpu_seconds(mailer.pid) - cpu
    course.database_cpu = harness.tree_cpu_seconds(database) - database_cpu
    return mailing_id, course


def rates(arrived: list[int]) -> list[float]:
    """Return the messages a second in each tenth of what arrived, in Unix microseconds."""
    marks = [arrived[round(tenth * (len(arrived) - 1) / 10)] for tenth in range(11)]
    return [len(arrived) / 10 / (end - start) * 1e6 for start, end in pairwise(marks)]


def tell_memory(verdict: harness.Verdict, course: Course) -> None:
    """Print the memory figures."""
    for name, tenth, end in zip(
        ("resident", "proportional"),
        course.memory_at_a_tenth,
        course.memory_at_the_end,
        strict=True,
    ):
        figure = f"{name} size {tenth / 2**20:.1f} MiB at a tenth, {end / 2**20:.1f} MiB at the end"
        if name == "resident":
            ratio = end / tenth
            holds = 0.8 <= ratio <= 1.2  # noqa: PLR2004  # the limit
            verdict.check(f"{figure}, ratio {ratio:.2f}", limit="0.80 to 1.20", holds=holds)
        else:
            print(figure)


def tell_ledger(
    verdict: harness.Verdict, mailing: dict[str, Any], taken: list[dict[str, Any]]
) -> None:
    """Print the ledger beside what the gateway counted."""
    clients = mailing["clients_count"]
    ledger = {name: mailing[f"{name}_messages"] for name in STATUSES}
    verdict.check(
        f"ledger: {', '.join(f'{name} {count:,}' for name, count in ledger.items())}",
        limit=f"{clients:,} delivered",
        holds=ledger["delivered"] == sum(ledger.values()) == clients,
    )
    accepted = sum(row["kind"] == "accepted" for row in taken)
    repeats = sum("repeat" in row for row in taken)
    verdict.check(
        f"gateway: requests {len(taken):,}, accepted {accepted:,}, repeats {repeats:,}",
        limit=f"{clients:,} accepted, 0 repeats",
        holds=len(taken) == accepted == clients and not repeats,
    )


def tell_speed(course: Course, clients: int, arrived: list[int]) -> None:
    """Print the times and rates; `arrived` is sorted."""
    by_tenth = rates(arrived)
    last = arrived[-1] / 1e6 - course.answered_at
    print(f"audience taken after {course.taken_at:.2f} s, while sending already goes on")
    print(f"last message sent after {last:.2f} s, finished after {course.finished_at:.2f} s")
    print(f"{clients / last:,.0f} messages a second; by tenth:", end=" ")
    print(*(f"{rate:,.0f}" for rate in by_tenth), end=" ")
    print(f"(last/first {by_tenth[-1] / by_tenth[0]:.2f})")
    print(f"processor time a message: mailer {course.mailer_cpu / clients * 1e6:.0f} µs,", end=" ")
    print(f"PostgreSQL {course.database_cpu / clients * 1e6:.0f} µs")


async def main(clients: int) -> int:
    """Deliver one mailing and print how it went; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            harness.sandbox(Path(folder, "taken.jsonl")) as gateway,
            harness.serve(gateway.url) as mailer,
        ):
            await mailer.add_clients(clients)
            mailing_id, course = await deliver(mailer, clients)
            mailing = await mailer.call("GET", f"/mailings/{mailing_id}")
        taken = gateway.taken()
    verdict = harness.Verdict()
    print(f"{clients:,} clients")
    tell_speed(course, clients, sorted(row["arrived"] for row in taken))
    tell_memory(verdict, course)
    tell_ledger(verdict, mailing, taken)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100_000)
    sys.exit(asyncio.run(main(parser.parse_args().clients)))
