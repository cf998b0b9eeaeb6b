"""Whether a message costs more to send than by an earlier version, installed in another Python.

Both versions run as real processes, each on an embedded database of its own, and take turns to
send one mailing through the same sink, 50 at once; the order changes from pair to pair. Compared
are the processor time a message of mailer and of its PostgreSQL, which a busy machine changes
little, and the write-ahead log (WAL). Limit: a median ratio of the processor time of both together
of at most 1.02. Takes about three minutes. The earlier version is made ready by, for example,
`git worktree add ../before COMMIT`, a virtual environment there and `pip install -e .[embedded]`.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from statistics import median

import msgspec

import harness

LIMIT = 1.02
CONCURRENCY = 50
WAL = "SELECT (pg_current_wal_lsn() - '0/0')::bigint"


class Cost(msgspec.Struct, frozen=True):
    """What a message costs: µs of processor time of both processes, bytes of WAL; and the rate."""

    mailer: float
    database: float
    wal: float
    rate: float

    @property
    def both(self) -> float:
        """Processor time of mailer and its PostgreSQL, µs."""
        return self.mailer + self.database


async def send(mailer: harness.Mailer, sink: harness.SinkProcess, messages: int) -> Cost:
    """Send one mailing to everybody and return what a message of it cost."""
    await mailer.checkpoint()
    postgres = harness.postmaster_of(mailer.pid)
    cpu, server = harness.exact_cpu_seconds(mailer.pid), harness.server_cpu_seconds(postgres)
    wal = await mailer.database.fetchval(WAL)
    taken = await harness.send_to_all(mailer, sink, messages)
    return Cost(
        (harness.exact_cpu_seconds(mailer.pid) - cpu) / messages * 1e6,
        (harness.server_cpu_seconds(postgres) - server) / messages * 1e6,
        (await mailer.database.fetchval(WAL) - wal) / messages,
        taken.rate,
    )


def tell(name: str, cost: Cost) -> None:
    """Print what a message cost."""
    print(f"  {name:<6} mailer {cost.mailer:.1f} µs, PostgreSQL {cost.database:.1f} µs,", end=" ")
    print(f"WAL {cost.wal:,.0f} bytes a message, {cost.rate:,.0f} messages a second", flush=True)


def judge(before: Sequence[Cost], now: Sequence[Cost]) -> int:
    """Print the median ratios; return the exit status."""
    ratios = {
        name: median(getattr(b, name) / getattr(a, name) for a, b in zip(before, now, strict=True))
        for name in ("both", "mailer", "database", "wal", "rate")
    }
    print("median ratios:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    verdict = harness.Verdict()
    figure = f"processor time {ratios['both']:.3f}"
    verdict.check(figure, limit=f"at most {LIMIT}", holds=ratios["both"] <= LIMIT)
    return verdict.status


async def main(python: str, messages: int, pairs: int) -> int:
    """Take turns and print what they cost; return the exit status."""
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, python=python, gateway_concurrency=CONCURRENCY) as before,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as now,
    ):
        versions = {"before": before, "now": now}
        for mailer in versions.values():
            await mailer.add_clients(messages)
            await harness.send_to_all(mailer, sink, messages)  # to warm up
        costs: dict[str, list[Cost]] = {name: [] for name in versions}
        for pair in range(pairs):
            print(f"pair {pair + 1}")
            for name in versions if pair % 2 else reversed(versions):
                costs[name].append(await send(versions[name], sink, messages))
                tell(name, costs[name][-1])
    return judge(costs["before"], costs["now"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="of the version to compare with: .../bin/python")
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.python, given.messages, given.pairs)))
