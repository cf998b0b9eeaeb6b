"""Measure what the contact cap costs the sending of a message.

Two mailer processes, one without a cap and one with it, each with its own embedded database, take
turns to send a mailing through the same sink, 50 requests at once; the order changes from pair to
pair. Each client has got a mailing every three days, and the cap permits three in seven days: so it
permits every message, but only because older ones do not count any more.

The benchmark compares the rates, and for each message the processor time of mailer and of its
PostgreSQL, which a busy machine changes little. The first mailing with the cap, for which the
earlier messages of each client are searched, is printed and has no limit. Takes about three
minutes.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median

import harness
from against_before import CONCURRENCY, Cost, print_cost, send
from mailer import sample_data

MIN_RATE = 0.95
CAP = "3/7d"
BETWEEN_MAILINGS = timedelta(days=3)
MAKE_OLDER = """
    UPDATE client_contact SET contacted_at = ARRAY(
        SELECT at - $1::interval FROM unnest(contacted_at) WITH ORDINALITY AS contact (at, n)
        ORDER BY n)"""
"""Makes the time of each recorded message earlier."""


async def add_earlier_mailings(mailer: harness.Mailer, clients: Sequence[int], count: int) -> None:
    """Create `count` ended mailings, each of which was delivered to all clients."""
    now = datetime.now(UTC)
    for number in range(count):
        start = now - BETWEEN_MAILINGS * (count - number)
        [mailing_id] = await sample_data.create_mailings(
            mailer.database,
            sample_data.SampleMailing(start=start, status="finished", clients=len(clients)),
        )
        await sample_data.create_messages(
            mailer.database, mailing_id, clients, ("delivered", None), at=start
        )
        await sample_data.settle_mailings(mailer.database, [mailing_id])
    await mailer.database.execute("VACUUM ANALYZE message")


async def make_older(mailer: harness.Mailer) -> None:
    """Make it seem that the last mailing was sent three days ago."""
    await mailer.database.execute(MAKE_OLDER, BETWEEN_MAILINGS)
    await mailer.database.execute("VACUUM ANALYZE client_contact")


def check_limit(without: Sequence[Cost], with_cap: Sequence[Cost]) -> int:
    """Print the median ratios and the limit; return the exit status."""
    pairs = list(zip(without, with_cap, strict=True))
    ratios = {
        name: median(getattr(capped, name) / getattr(base, name) for base, capped in pairs)
        for name in ("both", "mailer", "database", "wal", "rate")
    }
    print("median ratios:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    verdict = harness.Verdict()
    figure = f"rate {ratios['rate']:.3f} (processor time {ratios['both']:.3f})"
    verdict.check(figure, limit=f"at least {MIN_RATE}", holds=ratios["rate"] >= MIN_RATE)
    return verdict.status


async def main(messages: int, earlier: int, pairs: int) -> int:
    """Send with and without the cap in turns and print the costs; return the exit status."""
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as without,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY, contact_cap=CAP) as with_cap,
    ):
        mailers = {"without": without, "with": with_cap}
        for name, mailer in mailers.items():
            clients = await mailer.create_clients(messages)
            await add_earlier_mailings(mailer, clients, earlier)
            print_cost(f"{name}, first mailing:", await send(mailer, sink, messages))
        costs: dict[str, list[Cost]] = {name: [] for name in mailers}
        for pair in range(pairs):
            print(f"pair {pair + 1}")
            await make_older(with_cap)
            for name in mailers if pair % 2 else reversed(mailers):
                costs[name].append(await send(mailers[name], sink, messages))
                print_cost(name, costs[name][-1])
    return check_limit(costs["without"], costs["with"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--earlier", type=int, default=20, help="earlier mailings to each client")
    parser.add_argument("--pairs", type=int, default=6)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.messages, args.earlier, args.pairs)))
