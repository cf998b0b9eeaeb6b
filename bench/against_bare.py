"""Measure how fast mailer sends, compared with a bare loop that only posts with aiohttp.

mailer claims each message, decides whether to send it, sends it and records its result. The bare
loop (`bare_loop.py`) only sends. Both run in their own process and take turns to send the same text
to equally many clients through the same sink, 50 requests at once.

Each round of mailer is compared with the mean of the bare loops before and after it, because the
speed of a shared machine changes all the time. Limit: a median ratio of at least 0.95. Takes about
three minutes.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from statistics import mean, median

import harness

MIN_RATIO = 0.95
CONCURRENCY = 50


async def run_bare_loop(sink: harness.SinkProcess, messages: int) -> float:
    """Run the bare loop in its own process, and return its rate in messages a second."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("bare_loop.py")), sink.url, str(messages)),
        *("--concurrency", str(CONCURRENCY)),
    )
    if await process.wait() != 0:
        message = "the bare loop failed"
        raise RuntimeError(message)
    return (await sink.read_report()).rate


async def main(messages: int, rounds: int) -> int:
    """Run the rounds, print the rates and their ratio; return the exit status."""
    verdict = harness.Verdict()
    ratios = []
    async with (
        harness.sink() as sink,
        harness.serve(sink.url, gateway_concurrency=CONCURRENCY) as mailer,
    ):
        await mailer.create_clients(messages)
        await harness.send_to_all(mailer, sink, messages)  # to warm up
        bare_after = await run_bare_loop(sink, messages)
        for index in range(rounds):
            bare_before = bare_after
            cpu_before = harness.cpu_seconds(mailer.pid)
            rate = (await harness.send_to_all(mailer, sink, messages)).rate
            cost = (harness.cpu_seconds(mailer.pid) - cpu_before) / messages * 1e6
            bare_after = await run_bare_loop(sink, messages)
            ratios.append(rate / mean([bare_before, bare_after]))
            print(f"round {index + 1}: bare loop {bare_before:,.0f} and", end=" ")
            print(f"{bare_after:,.0f} messages a second, mailer {rate:,.0f},", end=" ")
            print(f"processor time {cost:.0f} µs a message, ratio {ratios[-1]:.2f}", flush=True)
    ratio = median(ratios)
    verdict.check(
        f"median ratio {ratio:.2f}", limit=f"at least {MIN_RATIO}", holds=ratio >= MIN_RATIO
    )
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.messages, args.rounds)))
