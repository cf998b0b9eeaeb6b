"""Measure how soon the first request of a mailing reaches the gateway.

If the mailing is due at once, the time is measured from the answer to `POST /mailings`; if it
starts later, from `datetime_start`. Both are measured with few and with many clients in the
directory. The gateway runs in this process, so that one clock measures all times.

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
MIN_START_DELAY, MAX_START_DELAY = 2.0, 2.5
"""Seconds until a later mailing starts. The delay is random, so that it does not always fall on the
same moment between two periodic checks of mailer."""
REQUEST_TIMEOUT = 30.0
"""Seconds to wait for the first request."""
SETTLE = 0.2
"""Seconds between rounds, for requests still in flight."""


class FirstRequest:
    """Records when the first request arrives, and after each `reset` when the next one does."""

    def __init__(self) -> None:
        self._has_arrived = asyncio.Event()
        self._arrived_at = 0.0

    def record(self, request: SandboxRequest) -> None:
        """Record a request if it is the first."""
        if not self._has_arrived.is_set():
            self._arrived_at = request.arrived / 1e6
            self._has_arrived.set()

    def reset(self) -> None:
        """Forget the recorded request, so that the next one counts as the first."""
        self._has_arrived.clear()

    async def wait(self) -> float:
        """Wait for the first request; return when it arrived, in seconds of Unix time."""
        await asyncio.wait_for(self._has_arrived.wait(), REQUEST_TIMEOUT)
        return self._arrived_at


async def measure_once(
    mailer: harness.Mailer, first: FirstRequest, starts_in: float, client_filter: str | None
) -> float:
    """Create a mailing that starts in `starts_in` seconds; delete it after its first request.

    Return the seconds until the request, from the mailing's start, or from the API's answer if it
    is due at once.
    """
    first.reset()
    mailing = await mailer.create_mailing(starts_in=starts_in, client_filter=client_filter)
    due_at = time.time()
    if starts_in:
        due_at = datetime.fromisoformat(mailing["datetime_start"]).timestamp()
    seconds = await first.wait() - due_at
    await mailer.call("DELETE", f"/mailings/{mailing['id']}")
    await asyncio.sleep(SETTLE)
    return seconds


def check_waits(verdict: harness.Verdict, name: str, waits: list[float], *, is_later: bool) -> None:
    """Print the figures of all rounds, and check the limits.

    `waits` are the seconds until the first request; `is_later` is whether the mailings started
    later, not at once.
    """
    median, worst = statistics.median(waits), max(waits)
    p95 = statistics.quantiles(waits, n=20)[-1]
    times = f"median {median * 1e3:4.0f}  p95 {p95 * 1e3:4.0f}  max {worst * 1e3:4.0f} ms"
    limit, holds = f"{MAX_MEDIAN * 1e3:.0f} ms", median <= MAX_MEDIAN
    if is_later:  # for a mailing that is due, the first request may come before the API's answer
        limit, holds = f"{limit}, never too early", holds and min(waits) >= 0
    verdict.check(f"{name:<44} {times}", limit=limit, holds=holds)


async def measure(verdict: harness.Verdict, clients: int) -> None:
    """Run all rounds with `clients` clients in the directory, and check the limits."""
    first = FirstRequest()
    sandbox = SandboxGateway(Faults(), token=harness.TOKEN, on_request=first.record)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(sandbox.run())
        mailer = await stack.enter_async_context(harness.serve(url))
        await mailer.create_clients(clients)
        # The filter is the tag of the ten newest clients, which mailer finds last: it enqueues an
        # audience in the order of the ids. It is not measured for later mailings too, because its
        # cost is the same.
        for client_filter, audience, is_later in (
            ("last", "the ten newest", False),
            (None, "all", False),
            (None, "all", True),
        ):
            waits = []
            for _ in range(ROUNDS):
                delay = random.uniform(MIN_START_DELAY, MAX_START_DELAY) if is_later else 0.0  # noqa: S311  # not for secrets
                waits.append(await measure_once(mailer, first, delay, client_filter))
            title = f"{'later' if is_later else 'due':<5} to {audience} of {clients:,} clients"
            check_waits(verdict, title, waits, is_later=is_later)


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
