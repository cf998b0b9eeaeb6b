"""Measure how soon a mailing's first request is sent while thousands of others start together.

The benchmark creates a mailing for one client that is due at once, and measures the time until its
first request: ten times alone, then ten times while the other mailings start and are sent. Each of
the others has its own filter and its own client, and all start at the same moment.

Limit: the median time with the others is at most five times the median alone. Also prints how long
all the others take. Takes one to ten minutes, depending on the number of mailings.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import uvloop

import harness
from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway, SandboxRequest
from mailer.sample_data import SampleMailing, create_mailings

MAX_RATIO = 5.0
ROUNDS = 10
REQUEST_TIMEOUT = 120.0
"""Seconds to wait for the first request of a mailing."""
POLL_INTERVAL = 0.01
"""Seconds between two checks whether the first request has arrived."""
SETTLE = 0.2
"""Seconds between rounds, for requests still in flight."""
START_DELAY = 3
"""Seconds until all the other mailings start."""
OTHERS_TEXT = "Hello"
"""The text of the other mailings, by which the queries below find them."""
Arrivals = dict[int | None, float]
"""Time of the first request for each message id, in seconds of the monotonic clock."""
TAG_CLIENTS_BY_ID = "UPDATE client SET tag = 'tag ' || id"
"""Gives each client a tag of its own, so that a filter matches one client."""
SELECT_MESSAGE = "SELECT id FROM message WHERE mailing_id = $1"
HAVE_OTHERS_STARTED = (
    "SELECT EXISTS (SELECT FROM mailing WHERE text = $1 AND status <> 'scheduled')"
)
ARE_OTHERS_UNSETTLED = "SELECT EXISTS (SELECT FROM mailing WHERE text = $1 AND NOT is_settled)"


@contextlib.asynccontextmanager
async def mailer_and_arrivals() -> AsyncIterator[tuple[harness.Mailer, Arrivals]]:
    """Run mailer with a gateway that records the time of the first request for each message."""
    arrivals: Arrivals = {}

    def record(request: SandboxRequest) -> None:
        arrivals.setdefault(request.id, request.monotonic)

    sandbox = SandboxGateway(Faults(), token=harness.TOKEN, on_request=record)
    async with sandbox.run() as url, harness.serve(url) as mailer:
        yield mailer, arrivals


async def seconds_to_first(mailer: harness.Mailer, arrivals: Arrivals) -> float:
    """Create a mailing that is due, for client 1 only.

    Return the seconds from the API's answer to the mailing's first request.
    """
    mailing = await mailer.create_mailing(client_filter={"tags": ["tag 1"]})
    created_at = time.monotonic()
    async with asyncio.timeout(REQUEST_TIMEOUT):
        message_id = None  # not known before the audience is enqueued
        while message_id is None or message_id not in arrivals:
            await asyncio.sleep(POLL_INTERVAL)
            if message_id is None:
                message_id = await mailer.database.fetchval(SELECT_MESSAGE, mailing["id"])
    await asyncio.sleep(SETTLE)
    return arrivals[message_id] - created_at


async def main(mailings: int) -> int:
    """Measure alone and together with `mailings` others; return the exit status."""
    verdict = harness.Verdict()
    async with mailer_and_arrivals() as (mailer, arrivals):
        await mailer.create_clients(mailings + 1)
        await mailer.database.execute(TAG_CLIENTS_BY_ID)
        await mailer.database.execute("VACUUM ANALYZE")
        alone = [await seconds_to_first(mailer, arrivals) for _ in range(ROUNDS)]
        start = datetime.now(UTC) + timedelta(seconds=START_DELAY)
        others = (
            SampleMailing(
                start=start,
                status="scheduled",
                clients=1,
                text=OTHERS_TEXT,
                client_filter={"tags": [f"tag {number}"]},
            )
            for number in range(2, mailings + 2)  # the measured mailing is for client 1
        )
        await create_mailings(mailer.database, *others)
        while not await mailer.database.fetchval(HAVE_OTHERS_STARTED, OTHERS_TEXT):  # noqa: ASYNC110  # another process changes it
            await asyncio.sleep(harness.POLL_INTERVAL)
        began = time.perf_counter()
        with_others: list[float] = []
        while await mailer.database.fetchval(ARE_OTHERS_UNSETTLED, OTHERS_TEXT):
            if len(with_others) < ROUNDS:
                with_others.append(await seconds_to_first(mailer, arrivals))
            else:
                await asyncio.sleep(harness.POLL_INTERVAL)
        print(f"{mailings:,} mailings finished in {time.perf_counter() - began:.1f} s")
    median, median_alone = statistics.median(with_others), statistics.median(alone)
    ratio = median / median_alone
    print(f"median time to the first request: {median * 1e3:.0f} ms with the others", end=" ")
    print(f"(at most {max(with_others) * 1e3:.0f} ms), {median_alone * 1e3:.0f} ms alone")
    limit = f"at most {MAX_RATIO}"
    verdict.check(f"ratio {ratio:.1f}", limit=limit, holds=ratio <= MAX_RATIO)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailings", type=int, default=10_000)
    sys.exit(uvloop.run(main(parser.parse_args().mailings)))
