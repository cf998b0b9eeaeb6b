"""Measure whether sending a message costs more than in an earlier version of mailer.

Both versions run as real processes, each with its own embedded database. They take turns to send
one mailing through the same sink, 50 requests at once; the order changes from pair to pair.

For each message the benchmark compares the processor time of mailer and of its PostgreSQL, which a
busy machine changes little, and the bytes that PostgreSQL writes to its write-ahead log (WAL).
Limit: the processor time of mailer and PostgreSQL together is at most 1.02 times that of the
earlier version, as a median over the pairs. Takes about three minutes.

The earlier version must be installed in another virtual environment, for example with
`git worktree add ../before COMMIT`, a virtual environment there and `pip install -e '.[embedded]'`.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from statistics import median

import msgspec

import harness

MAX_RATIO = 1.02
CONCURRENCY = 50
WAL_BYTES = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"
"""Returns the bytes that PostgreSQL has written to its WAL since the database exists."""


class Cost(msgspec.Struct, frozen=True):
    """Cost of a message, and the rate of the mailing."""

    mailer: float
    """Processor time of mailer, in µs."""
    database: float
    """Processor time of its PostgreSQL, in µs."""
    wal: float
    """Bytes of WAL."""
    rate: float
    """Messages a second."""

    @property
    def both(self) -> float:
        """Processor time of mailer and its PostgreSQL together, in µs."""
        return self.mailer + self.database


async def send(mailer: harness.Mailer, sink: harness.SinkProcess, messages: int) -> Cost:
    """Send one mailing to all clients and return the cost of a message."""
    await mailer.checkpoint()
    postgres = harness.postmaster_of(mailer.pid)
    mailer_before = harness.exact_cpu_seconds(mailer.pid)
    database_before = harness.server_cpu_seconds(postgres)
    wal_before = await mailer.database.fetchval(WAL_BYTES)
    report = await harness.send_to_all(mailer, sink, messages)
    return Cost(
        mailer=(harness.exact_cpu_seconds(mailer.pid) - mailer_before) / messages * 1e6,
        database=(harness.server_cpu_seconds(postgres) - database_before) / messages * 1e6,
        wal=(await mailer.database.fetchval(WAL_BYTES) - wal_before) / messages,
        rate=report.rate,
    )


def print_cost(name: str, cost: Cost) -> None:
    """Print the cost of a message."""
    print(f"  {name:<6} mailer {cost.mailer:.1f} µs, PostgreSQL {cost.database:.1f} µs,", end=" ")
    print(f"WAL {cost.wal:,.0f} bytes a message, {cost.rate:,.0f} messages a second", flush=True)


def check_limits(before: Sequence[Cost], now: Sequence[Cost]) -> int:
    """Print the median ratios and the limit; return the exit status."""
    pairs = list(zip(before, now, strict=True))
    ratios = {
        name: median(getattr(new, name) / getattr(old, name) for old, new in pairs)
        for name in ("both", "mailer", "database", "wal", "rate")
    }
    print("median ratios:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    verdict = harness.Verdict()
    figure = f"processor time {ratios['both']:.3f}"
    verdict.check(figure, limit=f"at most {MAX_RATIO}", holds=ratios["both"] <= MAX_RATIO)
    return verdict.status


async def main(python: str, messages: int, pairs: int) -> int:
    """Send with both versions in turns and print the costs; return the exit status."""
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, python=python, gateway_concurrency=CONCURRENCY) as before,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as now,
    ):
        versions = {"before": before, "now": now}
        for mailer in versions.values():
            await mailer.create_clients(messages)
            await harness.send_to_all(mailer, sink, messages)  # to warm up
        costs: dict[str, list[Cost]] = {name: [] for name in versions}
        for pair in range(pairs):
            print(f"pair {pair + 1}")
            for name in versions if pair % 2 else reversed(versions):
                costs[name].append(await send(versions[name], sink, messages))
                print_cost(name, costs[name][-1])
    return check_limits(costs["before"], costs["now"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="interpreter of the earlier version: .../bin/python")
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.python, args.messages, args.pairs)))
