"""Measure whether a second worker on the same database doubles the rate.

The gateway answers after 100 ms, and each worker sends 50 requests at once. So waiting for the
gateway limits the rate of a worker, not its processor time. In each round one worker sends alone,
then together with a second one, to equally many clients. Limit: a median ratio of the rates of at
least 1.9. Takes about three minutes.
"""

import argparse
import asyncio
import sys
from statistics import median

import harness

MIN_RATIO = 1.9
CONCURRENCY = 50
LATENCY = 0.1
"""Seconds until the sink answers a request."""


async def main(clients: int, rounds: int) -> int:
    """Run the rounds, print the rates and their ratio; return the exit status."""
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink(LATENCY) as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as first,
    ):
        await first.create_clients(clients)
        for index in range(rounds):
            alone = (await harness.send_to_all(first, sink, clients)).rate
            async with harness.serve(
                sink.url, gateway_concurrency=CONCURRENCY, database_url=first.database_url
            ):
                both = (await harness.send_to_all(first, sink, clients)).rate
            ratios.append(both / alone)
            print(f"round {index + 1}: one worker {alone:,.0f} messages a second,", end=" ")
            print(f"two {both:,.0f}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"{CONCURRENCY} requests at once and {LATENCY * 1e3:.0f} ms allow each worker", end=" ")
    print(f"{CONCURRENCY / LATENCY:,.0f} messages a second")
    ratio = median(ratios)
    verdict.check(
        f"median ratio {ratio:.2f}", limit=f"at least {MIN_RATIO}", holds=ratio >= MIN_RATIO
    )
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000, help="messages in each round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.clients, args.rounds)))
