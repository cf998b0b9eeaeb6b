"""Whether a second process on the same database sends as much again.

The gateway takes 100 ms for an answer, so that the 50 requests at once of each process are what
limits it. In turns one process alone, and with a second that joins for the turn, send to as many
clients. Limit: a median ratio of at least 1.9. Takes about three minutes.
"""

import argparse
import asyncio
import sys
from statistics import median

import harness

LIMIT = 1.9
CONCURRENCY = 50
LATENCY = 0.1


async def main(clients: int, turns: int) -> int:
    """Take turns and print the rates and their ratio; return the exit status."""
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink(LATENCY) as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as first,
    ):
        await first.add_clients(clients)
        for turn in range(turns):
            alone = (await harness.send_to_all(first, sink, clients)).rate
            async with harness.serve(
                sink.url, gateway_concurrency=CONCURRENCY, database_url=first.database_url
            ):
                both = (await harness.send_to_all(first, sink, clients)).rate
            ratios.append(both / alone)
            print(f"turn {turn + 1}: one process {alone:,.0f} messages a second,", end=" ")
            print(f"two {both:,.0f}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"{CONCURRENCY} at once and {LATENCY * 1e3:.0f} ms allow", end=" ")
    print(f"each process {CONCURRENCY / LATENCY:,.0f} messages a second")
    ratio = median(ratios)
    verdict.check(f"median ratio {ratio:.2f}", limit=f"at least {LIMIT}", holds=ratio >= LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000, help="sent to in each turn")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.clients, given.turns)))
