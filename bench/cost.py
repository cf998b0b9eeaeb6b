"""Measure the processor time of a message: the gateway request, everything else, and the log.

The request: mailer's gateway client and a bare aiohttp session send to the same sink from one
process, in alternating blocks of 1,000 requests, 50 at once. The blocks are so close together that
the machine's noise affects both alike. Limit: a median ratio of at most 1.

Everything else (claims, rules, breaker, results, counters): a dispatcher sends in this process
through a gateway that accepts at once. Limit: at most a third of the bare request.

The log at level info, which shows nothing of a single message: at most 3 % of a message.

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
from mailer.db.engine import create_engine
from mailer.db.migrate import migrate
from mailer.db.startup import sample_clock
from mailer.dispatch import message_log
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.embedded_postgres.cluster import embedded_postgres
from mailer.gateway.channel import Channel, ChannelLimits
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Accepted, Outcome, Request
from mailer.log import configure_logging
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.sample_data import TEXT
from mailer.settings import Settings

CONCURRENCY = 50
BLOCK_SIZE = 1000
"""Requests in a block."""
MAX_LOG_SHARE = 0.03
"""Of the processor time of a message."""
REQUEST_TIMEOUT = 60.0
"""Seconds until the deadline of a request; never reached."""

Send = Callable[[int], Awaitable[object]]


async def measure_block(send: Send) -> float:
    """Send a block of requests; return the microseconds of processor time a request."""
    numbers = iter(range(1, BLOCK_SIZE + 1))

    async def work() -> None:
        for number in numbers:
            await send(number)

    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(work())
    return (time.process_time() - before) / BLOCK_SIZE * 1e6


async def measure_requests(blocks: int) -> tuple[float, float, float]:
    """Return the median µs of a bare request and of mailer's, and the median of their ratios."""
    async with (
        harness.sink() as sink,
        bare_session(CONCURRENCY) as session,
        HttpGateway(sink.url, harness.TOKEN, concurrency=CONCURRENCY) as gateway,
    ):

        async def send_bare(number: int) -> None:
            await post(session, sink.url, number)

        async def send_by_gateway(number: int) -> None:
            deadline = time.monotonic() + REQUEST_TIMEOUT
            request = Request(number, str(79_000_000_000 + number), TEXT, deadline)
            if await gateway.send(request) != Accepted():
                message = "the sink rejected a message"
                raise RuntimeError(message)

        bare: list[float] = []
        own: list[float] = []
        for index in range(blocks):
            order = [(send_bare, bare), (send_by_gateway, own)]
            for send, costs in order if index % 2 else reversed(order):
                costs.append(await measure_block(send))
    ratios = [cost / bare_cost for bare_cost, cost in zip(bare, own, strict=True)]
    return median(bare), median(own), median(ratios)


class InstantGateway:
    """A gateway that accepts every message at once, without a request."""

    async def send(self, request: Request) -> Outcome:
        """Accept the message."""
        request.attach_task()
        request.mark_written()
        return Accepted()


async def measure_rest(messages: int, rounds: int) -> float:
    """Return the median microseconds of processor time a message without its request."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        async with embedded_postgres(Path(folder)) as url:
            engine = create_engine(url)
            await migrate(engine)
            await sample_clock(engine)
            database = await asyncpg.connect(url)
            await harness.create_clients(database, messages)
            settings = Settings(auth="none")
            channel = Channel(InstantGateway(), ChannelLimits.of(settings))
            dispatcher = Dispatcher(url, engine, channel, DispatcherLimits.of(settings))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(dispatcher.run())
                costs = [await send_mailing(engine, database, messages) for _ in range(rounds)]
                dispatcher.stop()
            await database.close()
            await engine.dispose()
    return median(costs)


async def send_mailing(engine: AsyncEngine, database: asyncpg.Connection, messages: int) -> float:
    """Send one mailing to all clients; return this process's microseconds a message."""
    before = time.process_time()
    start = datetime.now(UTC)
    end = start + timedelta(hours=1)
    new = NewMailing(datetime_start=start, datetime_end=end, text=TEXT)
    created = await service.create(engine, new, COMMAND_LINE)
    while await database.fetchval(harness.SELECT_STATUS, created.id) != "finished":  # noqa: ASYNC110  # another task changes it
        await asyncio.sleep(harness.POLL_INTERVAL)
    return (time.process_time() - before) / messages * 1e6


def measure_log_calls() -> float:
    """Return the microseconds of a message's log calls when the log shows info and above."""
    claim = ClaimedMessage(1, 1, 1, datetime.now(UTC), "79161234567", "UTC")
    result = MessageResult(claim, "delivered", 1, sent_at=datetime.now(UTC))

    def log_message() -> None:
        message_log.log_claimed(claim)
        message_log.log_result(result)

    times = 100_000
    return min(timeit.repeat(log_message, number=times, repeat=5)) / times * 1e6


async def main(blocks: int, messages: int, rounds: int) -> int:
    """Print the costs and their limits; return the exit status."""
    verdict = harness.Verdict()
    bare, own, ratio = await measure_requests(blocks)
    print(f"processor time of a bare request {bare:.0f} µs, of mailer's {own:.0f} µs")
    verdict.check(f"median ratio {ratio:.2f}", limit="at most 1", holds=ratio <= 1)
    rest = await measure_rest(messages, rounds)
    figure = f"all but the request {rest:.0f} µs a message"
    verdict.check(figure, limit=f"at most {bare / 3:.0f}", holds=rest <= bare / 3)
    log_cost = measure_log_calls()
    log_share = log_cost / (own + rest)
    figure = f"the log at info {log_cost:.1f} µs a message, {log_share:.1%}"
    verdict.check(figure, limit="at most 3 %", holds=log_share <= MAX_LOG_SHARE)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with Path(os.devnull).open("w") as null:
        configure_logging("info", "json", null)
        status = uvloop.run(main(args.blocks, args.messages, args.rounds))
    sys.exit(status)
