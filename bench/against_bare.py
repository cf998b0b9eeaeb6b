"""How much of a bare aiohttp loop's speed mailer keeps: claim, rules, send, record and all.

In turns the bare loop (`bare_loop.py`, on uvloop) and the real process, with its embedded database,
send the same text to as many clients through the same sink, 50 at once. A turn of mailer's is held
against the mean of the bare loops before and after it, since a shared machine changes its speed all
the time. Limit: a median ratio of at least 0.95. Takes about three minutes.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from statistics import mean, median

import harness

LIMIT = 0.95
CONCURRENCY = 50


async def bare(sink: harness.SinkProcess, messages: int) -> float:
    """Return the messages a second of the bare loop."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("bare_loop.py")), sink.url, str(messages)),
        *("--concurrency", str(CONCURRENCY)),
    )
    if await process.wait() != 0:
        message = "the bare loop failed"
        raise RuntimeError(message)
    return (await sink.taken()).rate


async def main(messages: int, turns: int) -> int:
    """Take turns and print the rates and their ratio; return the exit status."""
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.add_clients(messages)
        await harness.send_to_all(mailer, sink, messages)  # to warm up
        after = await bare(sink, messages)
        for turn in range(turns):
            before = after
            cpu = harness.cpu_seconds(mailer.pid)
            own = (await harness.send_to_all(mailer, sink, messages)).rate
            cost = (harness.cpu_seconds(mailer.pid) - cpu) / messages * 1e6
            after = await bare(sink, messages)
            ratios.append(own / mean([before, after]))
            print(
                f"turn {turn + 1}: bare loop {before:,.0f} and {after:,.0f} messages a second,",
                end=" ",
            )
            print(f"mailer {own:,.0f} at {cost:.0f} µs each, ratio {ratios[-1]:.2f}", flush=True)
    ratio = median(ratios)
    verdict.check(f"median ratio {ratio:.2f}", limit=f"at least {LIMIT}", holds=ratio >= LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.messages, given.turns)))
