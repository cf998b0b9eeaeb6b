"""How soon the first request of a mailing reaches the gateway, and that it never comes early.

Measured from the answer to `POST /mailings` when the mailing is already due, and from
`datetime_start` when it starts later, with few and with many clients in the directory. The gateway
runs in this process, so that all times are by one clock. Limit: 150 ms on the median of 20.
Takes about two minutes.
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
from mailer.gateway.sandbox import SandboxGateway, Taken

LIMIT = 0.150
"""Seconds that the median may take."""
TURNS = 20
AHEAD = (2.0, 2.5)
"""Seconds until a later mailing starts, drawn anew each time: no tick of mailer's fits them all."""
PATIENCE = 30.0
SETTLE = 0.2
"""Seconds between turns for what was on its way."""


class FirstRequest:
    """Catches the first request after each `forget`."""

    def __init__(self) -> None:
        self._came = asyncio.Event()
        self._at = 0.0

    def take(self, taken: Taken) -> None:
        """Note a request."""
        if not self._came.is_set():
            self._at = taken.arrived / 1e6
            self._came.set()

    def forget(self) -> None:
        """Wait for a new one."""
        self._came.clear()

    async def at(self) -> float:
        """Return when it came, seconds of Unix time."""
        await asyncio.wait_for(self._came.wait(), PATIENCE)
        return self._at


async def one_turn(
    mailer: harness.Mailer, first: FirstRequest, starts_in: float, client_filter: str | None
) -> float:
    """Return the seconds from when a new mailing should begin to its first request."""
    first.forget()
    mailing = await mailer.add_mailing(starts_in=starts_in, client_filter=client_filter)
    due_at = time.time()
    if starts_in:
        due_at = datetime.fromisoformat(mailing["datetime_start"]).timestamp()
    waited = await first.at() - due_at
    await mailer.call("DELETE", f"/mailings/{mailing['id']}")
    await asyncio.sleep(SETTLE)
    return waited


def tell(verdict: harness.Verdict, name: str, waits: list[float], *, is_later: bool) -> None:
    """Print what the turns took, against the limits."""
    median, worst = statistics.median(waits), max(waits)
    p95 = statistics.quantiles(waits, n=20)[-1]
    times = f"median {median * 1e3:4.0f}  p95 {p95 * 1e3:4.0f}  max {worst * 1e3:4.0f} ms"
    limit, holds = f"{LIMIT * 1e3:.0f} ms", median <= LIMIT
    if is_later:  # of one that is due the first request may overtake the answer
        limit, holds = f"{limit}, never before", holds and min(waits) >= 0
    verdict.check(f"{name:<44} {times}", limit=limit, holds=holds)


async def measure(verdict: harness.Verdict, clients: int) -> None:
    """Measure with that many clients in the directory."""
    first = FirstRequest()
    sandbox = SandboxGateway(Faults(), token=harness.TOKEN, on_taken=first.take)
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(sandbox.run())
        mailer = await stack.enter_async_context(harness.serve(url))
        await mailer.add_clients(clients)
        for client_filter, audience in (("last", "the ten newest"), (None, "everybody")):
            for name, ahead in (("due", (0.0, 0.0)), ("later", AHEAD)):
                if client_filter and ahead[0]:
                    continue  # what a filter costs shows in the first
                waits = [
                    await one_turn(mailer, first, random.uniform(*ahead), client_filter)  # noqa: S311  # not for secrets
                    for _ in range(TURNS)
                ]
                title = f"{name:<5} to {audience} of {clients:,} clients"
                tell(verdict, title, waits, is_later=bool(ahead[0]))


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
