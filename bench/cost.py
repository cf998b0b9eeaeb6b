"""Measure the processor time that sending a message takes, in three parts.

1. The request. mailer's gateway client and a bare aiohttp session send to the same sink from this
   process, in alternating blocks of 1,000 requests, 50 at once. The blocks are so close together
   that the machine's noise affects both alike. Limit: a median ratio of at most 1.
2. Everything else: claims, rules, breaker, results, counters. A dispatcher sends in this process
   through a gateway that accepts each message without a request. Limit: at most a third of a bare
   request.
3. The log. At level info it shows nothing of a single message, but mailer calls it all the same.
   Limit: at most 3 % of a message.

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
from typing import NamedTuple, Self

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
from mailer.gateway.channel import Channel, ChannelLimits, Channels
from mailer.gateway.config import default_gateway
from mailer.gateway.http import HttpGateway
from mailer.gateway.protocol import Accepted, Outcome, OutgoingMessage, Request
from mailer.log import configure_logging
from mailer.mailing import service
from mailer.mailing.model import NewMailing
from mailer.message.model import ClaimedMessage, MessageResult
from mailer.sample_data import TEXT
from mailer.settings import Settings

CONCURRENCY = 50
BLOCK_SIZE = 1000
"""Requests in a block."""
MAX_REQUEST_RATIO = 1.0
"""Limit of mailer's request, compared with a bare request."""
MAX_REST_RATIO = 1 / 3
"""Limit of everything but the request, compared with a bare request."""
MAX_LOG_SHARE = 0.03
"""Largest part of the processor time of a message that the log may take."""
REQUEST_TIMEOUT = 60.0
"""Seconds until the deadline of a request; never reached."""
LOG_CALLS = 100_000
"""Messages whose log calls are measured at once."""

Send = Callable[[int], Awaitable[object]]
"""A function that sends the message with the given id."""


async def measure_block(send: Send) -> float:
    """Send a block of requests; return the microseconds of processor time of one request."""
    numbers = iter(range(1, BLOCK_SIZE + 1))  # the tasks share it: each number is sent once

    async def work() -> None:
        for number in numbers:
            await send(number)

    before = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(work())
    return (time.process_time() - before) / BLOCK_SIZE * 1e6


class RequestCosts(NamedTuple):
    """Medians of the processor time of a request."""

    bare: float
    """Microseconds of a request of the bare aiohttp session."""
    mailer: float
    """Microseconds of a request of mailer's gateway client."""
    ratio: float
    """Median of the ratios of neighbouring blocks, mailer to bare."""


def settings_of(url: str) -> Settings:
    """Return the settings for a gateway at `url`."""
    return Settings(gateway_url=url, gateway_token=harness.TOKEN, gateway_concurrency=CONCURRENCY)


async def measure_requests(blocks: int) -> RequestCosts:
    """Measure `blocks` blocks of requests with mailer's gateway client, and as many without."""
    async with (
        harness.sink() as sink,
        bare_session(CONCURRENCY) as session,
        HttpGateway(default_gateway(settings_of(sink.url))) as gateway,
    ):

        async def send_bare(number: int) -> None:
            await post(session, sink.url, number)

        async def send_by_gateway(number: int) -> None:
            deadline = time.monotonic() + REQUEST_TIMEOUT
            phone = str(79_000_000_000 + number)
            request = Request(OutgoingMessage(id=number, phone=phone, text=TEXT), deadline)
            if await gateway.send(request) != Accepted():
                message = "the sink rejected a message"
                raise RuntimeError(message)

        bare_costs: list[float] = []
        mailer_costs: list[float] = []
        for index in range(blocks):
            pair = [(send_bare, bare_costs), (send_by_gateway, mailer_costs)]
            for send, costs in pair if index % 2 else reversed(pair):
                costs.append(await measure_block(send))
    ratios = [cost / bare_cost for bare_cost, cost in zip(bare_costs, mailer_costs, strict=True)]
    return RequestCosts(median(bare_costs), median(mailer_costs), median(ratios))


class InstantGateway:
    """A gateway that accepts every message at once, without a request."""

    async def __aenter__(self) -> Self:
        """Open nothing."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close nothing."""

    async def send(self, request: Request) -> Outcome:
        """Accept the message.

        The two calls are the duty of every gateway (see `Request`), so their cost is measured too.
        """
        request.attach_task()
        request.mark_written()
        return Accepted()


async def measure_rest(messages: int, rounds: int) -> float:
    """Return the median microseconds of processor time of a message without its request.

    In each round a dispatcher in this process sends `messages` messages.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103  # PostgreSQL's own user must enter it
        async with embedded_postgres(Path(folder)) as url:
            engine = create_engine(url)
            await migrate(engine)
            await sample_clock(engine)  # before it, the dispatcher cannot know the time
            database = await asyncpg.connect(url)
            await harness.create_clients(database, messages)
            settings = Settings(auth="none")
            configured = default_gateway(settings)
            limits = ChannelLimits.of(configured, settings)
            channels = Channels([Channel(InstantGateway(), configured, limits)])
            dispatcher = Dispatcher(url, engine, channels, DispatcherLimits.of(settings))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(dispatcher.run())
                costs = [await send_mailing(engine, database, messages) for _ in range(rounds)]
                dispatcher.stop()
            await database.close()
            await engine.dispose()
    return median(costs)


async def send_mailing(engine: AsyncEngine, database: asyncpg.Connection, messages: int) -> float:
    """Send one mailing to all clients; return this process's microseconds for each message."""
    before = time.process_time()
    start = datetime.now(UTC)
    end = start + timedelta(hours=1)
    new = NewMailing(datetime_start=start, datetime_end=end, text=TEXT)
    created = await service.create(engine, new, COMMAND_LINE)
    while await database.fetchval(harness.SELECT_STATUS, created.id) != "finished":  # noqa: ASYNC110  # another task changes it
        await asyncio.sleep(harness.POLL_INTERVAL)
    return (time.process_time() - before) / messages * 1e6


def measure_log_calls() -> float:
    """Return the microseconds of a message's log calls, with the log at level info."""
    claim = ClaimedMessage(
        id=1,
        mailing_id=1,
        attempts=1,
        lease_expires_at=datetime.now(UTC),
        phone="79161234567",
        time_zone="UTC",
    )
    result = MessageResult(claim, "delivered", attempts=1, sent_at=datetime.now(UTC))

    def log_message() -> None:
        message_log.log_claimed(claim)
        message_log.log_result(result)

    return min(timeit.repeat(log_message, number=LOG_CALLS, repeat=5)) / LOG_CALLS * 1e6


async def main(blocks: int, messages: int, rounds: int) -> int:
    """Print the costs and their limits; return the exit status."""
    verdict = harness.Verdict()
    request = await measure_requests(blocks)
    bare, mailer = request.bare, request.mailer
    print(f"processor time of a bare request {bare:.0f} µs, of mailer's {mailer:.0f} µs")
    figure = f"median ratio {request.ratio:.2f}"
    limit, holds = f"at most {MAX_REQUEST_RATIO:g}", request.ratio <= MAX_REQUEST_RATIO
    verdict.check(figure, limit=limit, holds=holds)
    rest = await measure_rest(messages, rounds)
    figure = f"all but the request {rest:.0f} µs a message"
    max_rest = bare * MAX_REST_RATIO
    verdict.check(figure, limit=f"at most {max_rest:.0f}", holds=rest <= max_rest)
    log_cost = measure_log_calls()
    log_share = log_cost / (mailer + rest)
    figure = f"the log at info {log_cost:.1f} µs a message, {log_share:.1%}"
    limit = f"at most {MAX_LOG_SHARE:.0%}"
    verdict.check(figure, limit=limit, holds=log_share <= MAX_LOG_SHARE)
    return verdict.status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=100, help="blocks of requests of each kind")
    parser.add_argument("--messages", type=int, default=100_000, help="messages in each round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with Path(os.devnull).open("w") as null:
        configure_logging("info", "json", null)
        status = uvloop.run(main(args.blocks, args.messages, args.rounds))
    sys.exit(status)
