"""Measure how soon the first request of a mailing reaches the gateway, never before its start.

The time is measured from the answer to `POST /mailings` if the mailing is due at once, and from
`datetime_start` if it starts later; with few and with many clients in the directory. The gateway
runs in this process, so that one clock measures all times.

Limits: a median of 150 ms over 20 rounds; no request before `datetime_start`. Takes about two
minutes.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from datetime import datetime

import uvloop

import harness
from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway, SandboxRequest

MAX_MEDIAN = 0.150
"""Seconds."""
ROUNDS = 20
START_DELAY = (2.0, 2.5)
"""Seconds until a later mailing starts; drawn anew each round, to fit no interval of mailer's."""
REQUEST_TIMEOUT = 30.0
"""Seconds to wait for the first request."""
SETTLE = 0.2
"""Seconds between rounds, for requests still in flight."""


class FirstRequest:
    """Records the time of the first request after each `reset`."""

    def __init__(self) -> None:
        self._has_arrived = asyncio.Event()
        self._arrived_at = 0.0

    def record(self, request: SandboxRequest) -> None:
        """Record a request if it is the first."""
        if not self._has_arrived.is_set():
            self._arrived_at = request.arrived / 1e6
            self._has_arrived.set()

    def reset(self) -> None:
        """Wait for a new first request."""
        self._has_arrived.clear()

    async def wait(self) -> float:
        """Wait for the first request; return when it arrived, in seconds of Unix time."""
        await asyncio.wait_for(self._has_arrived.wait(), REQUEST_TIMEOUT)
        return self._arrived_at


async def measure_once(
    mailer: harness.Mailer, first: FirstRequest, starts_in: float, client_filter: str | None
) -> float:
    """Return the seconds from the start of a new mailing to its first request."""
    first.reset()
    mailing = await mailer.create_mailing(starts_in=starts_in, client_filter=client_filter)
    due_at = time.time()
    if starts_in:
        due_at = datetime.fromisoformat(mailing["datetime_start"]).timestamp()
    seconds = await first.wait() - due_at
    await mailer.call("DELETE", f"/mailings/{mailing['id']}")
    await asyncio.sleep(SETTLE)
    return seconds


def print_waits(verdict: harness.Verdict, name: str, waits: list[float], *, is_later: bool) -> None:
    """Print the seconds of all rounds, against the limits."""
    median, worst = statistics.median(waits), max(waits)
    p95 = statistics.quantiles(waits, n=20)[-1]
    times = f"median {median * 1e3:4.0f}  p95 {p95 * 1e3:4.0f}  max {worst * 1e3:4.0f} ms"
    limit, holds = f"{MAX_MEDIAN * 1e3:.0f} ms", median <= MAX_MEDIAN
    if is_later:  # for a mailing that is due, the first request may come before the API's answer
        limit, holds = f"{limit}, never too early", holds and min(waits) >= 0
    verdict.check(f"{name:<44} {times}", limit=limit, holds=holds)


async def measure(verdict: harness.Verdict, clients: int) -> None:
    """Measure with `clients` clients in the directory."""
    first = FirstRequest()
    sandbox = SandboxGateway(Faults(), token=harness.TOKEN, on_request=first.record)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(sandbox.run())
        mailer = await stack.enter_async_context(harness.serve(url))
        await mailer.create_clients(clients)
        for client_filter, audience in (("last", "the ten newest"), (None, "all")):
            for name, delay in (("due", (0.0, 0.0)), ("later", START_DELAY)):
                if client_filter and delay[0]:
                    continue  # the mailing that is due shows the cost of a filter already
                waits = [
                    await measure_once(mailer, first, random.uniform(*delay), client_filter)  # noqa: S311  # not for secrets
                    for _ in range(ROUNDS)
                ]
                title = f"{name:<5} to {audience} of {clients:,} clients"
                print_waits(verdict, title, waits, is_later=bool(delay[0]))


async def main(sizes: list[int]) -> int:
    """Measure with each size of the directory; return the exit status."""
    verdict = harness.Verdict()
    for clients in sizes:
        await measure(verdict, clients)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1_000, 100_000])
    sys.exit(uvloop.run(main(parser.parse_args().clients)))
