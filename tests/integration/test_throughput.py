"""The throughput that a dispatcher estimates while it sends."""

import asyncio
import itertools

import pytest
from tests.event_timeout import EVENT_TIMEOUT
from tests.factories import add_due_messages, do, mailing_counts

from mailer.db import origin
from mailer.db.engine import create_engine
from mailer.dispatch.dispatcher import Dispatcher, DispatcherLimits
from mailer.gateway.channel import Channel, ChannelLimits
from mailer.gateway.protocol import Accepted, Outcome, Rejected, Request, TemporaryFailure
from mailer.settings import Settings

MESSAGES = 60
CONCURRENCY = 6


class FakeGateway:
    """A gateway with a cycle of delays, in seconds, and outcomes."""

    def __init__(self, *outcomes: tuple[float, Outcome]) -> None:
        self._outcomes = itertools.cycle(outcomes)
        self.request_count = 0

    async def send(self, request: Request) -> Outcome:
        request.attach_task()
        self.request_count += 1
        seconds, outcome = next(self._outcomes)
        await asyncio.sleep(seconds)
        request.mark_written()
        return outcome


async def test_only_accepted_and_rejected_messages_count_for_the_throughput(
    database_url: str,
) -> None:
    engine = create_engine(database_url)
    await do(engine, origin.update)  # as at startup, while no message exists
    gateway = FakeGateway(
        (0.2, Accepted()), (0, TemporaryFailure("http_500")), (0.1, Rejected("rejected_400"))
    )
    settings = Settings(gateway_concurrency=CONCURRENCY, retry_base=0.01, retry_cap=0.02)
    channel = Channel(gateway, ChannelLimits.of(settings))
    mailing_id = await add_due_messages(engine, MESSAGES)
    dispatcher = Dispatcher(database_url, engine, channel, DispatcherLimits.of(settings))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dispatcher.run())
        async with asyncio.timeout(EVENT_TIMEOUT):
            while {"scheduled", "sending"} & (await mailing_counts(engine, mailing_id)).keys():
                await asyncio.sleep(0.05)
        dispatcher.stop()
    await engine.dispose()

    assert gateway.request_count > MESSAGES  # so there were temporary failures
    mean_seconds = (0.2 + 0.1) / 2
    assert channel.throughput.rate == pytest.approx(CONCURRENCY / mean_seconds, rel=0.25)
