"""What of a message's processor time goes where: the request to the gateway, and all the rest.

The request is measured in blocks of a thousand, 50 at once, in turns with a bare aiohttp request to
the same sink, in one process: so close together that a machine's noise falls on both alike. Limit:
a median ratio of at most 1. All the rest (claim, rules, breaker, record, ledger) is what a
dispatcher costs whose gateway accepts at once, in the same process. Limit: at most a third
of the bare request.
What the log costs at info, where each message is passed over in silence: at most 3 % of a message.
Takes about a minute.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import asyncpg
import uvloop
from sqlalchemy.ext.asyncio import AsyncEngine

import harness
from bare_loop import bare_session, post
from mailer.access.model import COMMAND_LINE
from mailer.db.embedded import embedded_postgres
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.db.opening import sample_clock
from mailer.dispatch import story
from mailer.dispatch.dispatcher import Dispatcher
from mailer.gateway.breaker import Breaker
from mailer.gateway.http import HttpGateway
from mailer.gateway.pace import Pace
from mailer.gateway.port import Accepted, Outcome, Request
from mailer.log import configure_logging
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.message.model import ClaimedMessage, FinishedMessage
from mailer.settings import Settings

CONCURRENCY = 50
BLOCK = 1000
"""Requests that are measured at a time."""
LOG_PART = 0.03
WITHIN = 60.0
"""Seconds that a request is given; none needs them."""

Send = Callable[[int], Awaitable[object]]


async def block(send: Send) -> float:
    """Return the microseconds of processor time that a request costs."""
    numbers = iter(range(1, BLOCK + 1))

    async def work() -> None:
        for number in numbers:
            await send(number)

    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(work())
    return (time.process_time() - before) / BLOCK * 1e6


async def requests(blocks: int) -> tuple[float, float, float]:
    """Return what a bare request costs, what a gateway's does, and the median ratio of both."""
    async with (
        harness.sink() as sink,
        bare_session(CONCURRENCY) as session,
        HttpGateway(sink.url, harness.TOKEN, concurrency=CONCURRENCY) as gateway,
    ):

        async def bare(number: int) -> None:
            await post(session, sink.url, number)

        async def own(number: int) -> None:
            deadline = time.monotonic() + WITHIN
            request = Request(number, str(79_000_000_000 + number), harness.TEXT, deadline)
            if await gateway.send(request) != Accepted():
                message = "the sink refused a message"
                raise RuntimeError(message)

        costs: dict[Send, list[float]] = {bare: [], own: []}
        for turn in range(blocks):
            for send in (bare, own) if turn % 2 else (own, bare):
                costs[send].append(await block(send))
    ratios = [mine / peer for peer, mine in zip(costs[bare], costs[own], strict=True)]
    return median(costs[bare]), median(costs[own]), median(ratios)


class Instant:
    """A gateway that accepts at once and costs nothing."""

    async def send(self, request: Request) -> Outcome:
        """Take the message."""
        request.begin()
        request.write()
        return Accepted()


async def rest(messages: int, turns: int) -> float:
    """Return the microseconds of processor time that all but the request costs a message."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's user passes through
        async with embedded_postgres(Path(folder)) as url:
            engine = create_engine(url)
            await migrate(engine)
            await sample_clock(engine)
            database = await asyncpg.connect(url)
            await database.execute(harness.ADD_CLIENTS, messages)
            await database.execute("VACUUM ANALYZE client")
            settings = Settings(auth="none")
            breaker = Breaker(settings.breaker_failures, settings.breaker_reset)
            pace = Pace(settings.gateway_concurrency)
            dispatcher = Dispatcher(url, engine, Instant(), breaker, pace, settings)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(dispatcher.run())
                costs = [await mailing(engine, database, messages) for _ in range(turns)]
                dispatcher.stop()
            await database.close()
            await engine.dispose()
    return median(costs)


async def mailing(engine: AsyncEngine, database: asyncpg.Connection, messages: int) -> float:
    """Send one mailing to everybody, and return what a message of it cost this process."""
    before = time.process_time()
    start = datetime.now(UTC)
    end = start + timedelta(hours=1)
    new = NewMailing(datetime_start=start, datetime_end=end, text=harness.TEXT)
    created = await service.create(engine, new, COMMAND_LINE)
    while await database.fetchval(harness.STATUS, created.id) != "finished":  # noqa: ASYNC110  # it happens in another task
        await asyncio.sleep(harness.PAUSE)
    return (time.process_time() - before) / messages * 1e6


def log_calls() -> float:
    """Return the microseconds that a message costs in calls to a log that shows info and above."""
    claim = ClaimedMessage(1, 1, 1, datetime.now(UTC), "79161234567", "UTC")
    finished = FinishedMessage(claim, "delivered", 1, sent_at=datetime.now(UTC))

    def tell() -> None:
        story.tell_claimed(claim)
        story.tell_finished(finished)

    times = 100_000
    return min(timeit.repeat(tell, number=times, repeat=5)) / times * 1e6


async def main(blocks: int, messages: int, turns: int) -> int:
    """Print the parts and judge them; return the exit status."""
    verdict = harness.Verdict()
    bare, own, ratio = await requests(blocks)
    print(f"a bare request costs {bare:.0f} µs of processor time, mailer's {own:.0f}")
    verdict.check(f"median ratio {ratio:.2f}", limit="at most 1", holds=ratio <= 1)
    others = await rest(messages, turns)
    figure = f"all but the request {others:.0f} µs a message"
    verdict.check(figure, limit=f"at most {bare / 3:.0f}", holds=others <= bare / 3)
    logging = log_calls()
    part = logging / (own + others)
    figure = f"the log at info {logging:.1f} µs a message, {part:.1%}"
    verdict.check(figure, limit="at most 3 %", holds=part <= LOG_PART)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with Path(os.devnull).open("w") as nowhere:
        configure_logging("info", "json", nowhere)
        status = uvloop.run(main(given.blocks, given.messages, given.turns))
    sys.exit(status)
