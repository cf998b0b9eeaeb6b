"""How soon a mailing's first request comes beside thousands of others that begin together.

Each of the others has a filter and a client of its own, and all are due at one moment. A mailing to
a client of its own is posted for now: alone, again and again, and then while the others begin and
are sent. Limit: the median beside them is at most five times the median alone. Also tells when all
of them are finished. Takes one to ten minutes, by the number of mailings.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator

import uvloop

import harness
from mailer.gateway.faults import Faults
from mailer.gateway.sandbox import SandboxGateway, Taken

LIMIT = 5.0
TURNS = 10
PATIENCE = 120.0
POLL = 0.01
SETTLE = 0.2
"""Seconds between turns for what was on its way."""
AHEAD = 3
"""Seconds until all the others begin."""
Arrivals = dict[int | None, float]
"""When the first request for a message came, seconds of the monotonic clock, by its id."""
TAG_ALL = "UPDATE client SET tag = 'tag ' || id"
MESSAGE = "SELECT id FROM message WHERE mailing_id = $1"
ADD_MAILINGS = """
    WITH added AS (
        INSERT INTO mailing (datetime_start, datetime_end, text, client_filter, clients_count)
        SELECT now() + make_interval(secs => $2), now() + interval '1 day', 'Hello',
            jsonb_build_object('tags', jsonb_build_array('tag ' || n)), 1
        FROM generate_series(2, $1::bigint + 1) AS n
        RETURNING id
    )
    INSERT INTO ledger (mailing_id) SELECT id FROM added"""
HAVE_BEGUN = "SELECT EXISTS (SELECT FROM mailing WHERE text = 'Hello' AND status <> 'scheduled')"
LEFT = "SELECT count(*) FROM mailing WHERE text = 'Hello' AND NOT is_settled"


@contextlib.asynccontextmanager
async def mailer_and_arrivals() -> AsyncIterator[tuple[harness.Mailer, Arrivals]]:
    """Run mailer before a gateway that notes when the first request for each message comes."""
    arrivals: Arrivals = {}

    def take(taken: Taken) -> None:
        arrivals.setdefault(taken.id, taken.monotonic)

    sandbox = SandboxGateway(Faults(), token=harness.TOKEN, on_taken=take)
    async with sandbox.run() as url, harness.serve(url) as mailer:
        yield mailer, arrivals


async def seconds_to_first(mailer: harness.Mailer, arrivals: Arrivals) -> float:
    """Post a mailing for now; return the seconds from the answer to its request."""
    mailing = await mailer.add_mailing(client_filter={"tags": ["tag 1"]})
    answered = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        message_id = None
        while message_id is None or message_id not in arrivals:
            await asyncio.sleep(POLL)
            if message_id is None:
                message_id = await mailer.database.fetchval(MESSAGE, mailing["id"])
    await asyncio.sleep(SETTLE)
    return arrivals[message_id] - answered


async def main(mailings: int) -> int:
    """Measure beside that many mailings; return the exit status."""
    verdict = harness.Verdict()
    async with mailer_and_arrivals() as (mailer, arrivals):
        await mailer.add_clients(mailings + 1)
        await mailer.database.execute(TAG_ALL)
        await mailer.database.execute("VACUUM ANALYZE")
        alone = [await seconds_to_first(mailer, arrivals) for _ in range(TURNS)]
        await mailer.database.execute(ADD_MAILINGS, mailings, AHEAD)
        while not await mailer.database.fetchval(HAVE_BEGUN):  # noqa: ASYNC110  # it happens in another process
            await asyncio.sleep(harness.PAUSE)
        began = time.perf_counter()
        beside: list[float] = []
        while await mailer.database.fetchval(LEFT):
            if len(beside) < TURNS:
                beside.append(await seconds_to_first(mailer, arrivals))
            else:
                await asyncio.sleep(harness.PAUSE)
        print(f"{mailings:,} mailings finished in {time.perf_counter() - began:.1f} s")
    medians = statistics.median(beside), statistics.median(alone)
    times = [f"{median * 1e3:.0f} ms" for median in (*medians, max(beside))]
    figure = f"first request {times[0]} beside them, {times[2]} at most; {times[1]} alone"
    ratio = medians[0] / medians[1]
    verdict.check(f"{figure}, {ratio:.1f}", limit=f"{LIMIT}", holds=ratio <= LIMIT)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailings", type=int, default=10_000)
    sys.exit(uvloop.run(main(parser.parse_args().mailings)))
